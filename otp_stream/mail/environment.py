"""The Jinja environment of all templates: sandboxed, strict, with translations."""

from collections.abc import Sequence
from gettext import NullTranslations
from typing import cast

from jinja2 import StrictUndefined, Template, pass_context, select_autoescape
from jinja2.environment import TemplateModule
from jinja2.ext import Extension, InternationalizationExtension
from jinja2.runtime import Context

from .loader import TemplateLoader
from .sandbox import Sandbox

TRANSLATIONS = "the translations"
"""The variable with the translations of a template's language. No template can write its name: all share the object."""


class _Template(Template):
    def _get_default_module(self, ctx: Context | None = None) -> TemplateModule:  # noqa: ARG002 - Jinja calls it
        # Jinja keeps what a file has imported, so that a template could print a code of an earlier e-mail
        return self.make_module()


def environment(loader: TemplateLoader, extensions: Sequence[type[Extension]]) -> Sandbox:
    """Return an environment. One compiled template serves all languages."""
    jinja = Sandbox(
        loader=loader,
        # a subject and a plain text must not be escaped
        autoescape=select_autoescape(enabled_extensions=("html",), default=False),
        undefined=StrictUndefined,
        extensions=(InternationalizationExtension, *extensions),
        optimized=False,  # see `Sandbox`
        auto_reload=False,
        cache_size=-1,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.template_class = _Template
    jinja.policies["ext.i18n.trimmed"] = True
    functions = {"gettext": _gettext, "ngettext": _ngettext, "pgettext": _pgettext, "npgettext": _npgettext}
    jinja.install_gettext_callables(**functions, newstyle=True)  # pyright: ignore[reportAttributeAccessIssue,reportUnknownMemberType] - the extension adds it
    return jinja


def _of(context: Context) -> NullTranslations:
    return cast("NullTranslations", context[TRANSLATIONS])


@pass_context
def _gettext(context: Context, message: str) -> str:
    return _of(context).gettext(message)


@pass_context
def _ngettext(context: Context, singular: str, plural: str, count: int) -> str:
    return _of(context).ngettext(singular, plural, count)


@pass_context
def _pgettext(context: Context, purpose: str, message: str) -> str:
    return _of(context).pgettext(purpose, message)


@pass_context
def _npgettext(context: Context, purpose: str, singular: str, plural: str, count: int) -> str:
    return _of(context).npgettext(purpose, singular, plural, count)
