"""Composes the mail of a job as the tenant that the job belongs to."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from errno import ENOENT
from functools import partial
from pathlib import Path
from types import MappingProxyType

from otp_stream.core.job import Job
from otp_stream.core.mail import Mail, TenantRemovedError

from .identity import MailIdentity
from .render_process import RenderProcess
from .shared_templates import Fingerprint, Key, SharedTemplates, fingerprint
from .templates import TemplateError, Templates
from .tenant_composer import IsolatedComposer, TenantComposer


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `Composer.prepare` has built for `Composer.use`: all tenants, the default one by the name `""`."""

    composers: Mapping[str, TenantComposer]
    compiled: Mapping[Key, Templates]
    problems: Sequence[str] = ()
    """Why tenants have their earlier templates, one text for each folder."""


class Composer:
    """Renders a job's template and builds its message.

    `identity` is that of the default tenant, `tenants` are those of the others by name; `hash_key` is the key of the
    Message-ID. Raises `TemplateError` if a template cannot be compiled, and `OSError` if the default tenant's folder
    cannot be read.
    """

    def __init__(
        self, identity: MailIdentity, hash_key: bytes, tenants: Mapping[str, MailIdentity] = MappingProxyType({})
    ) -> None:
        self._default = identity
        self._hash_key = hash_key
        self._process = RenderProcess(partial(IsolatedComposer, hash_key))
        self._current = Prepared({}, {})
        self._current = self.prepare(tenants)
        self._composers = self._current.composers

    def prepare(self, tenants: Mapping[str, MailIdentity], *, keep_earlier: bool = False) -> Prepared:
        """Build what `use` needs for other tenants, and change nothing; can be called in a thread.

        Templates are compiled only if anything in their folder has changed. Raises as the constructor does; the text
        of a `TemplateError` has one line for each folder of a tenant with an error. With `keep_earlier`, such a tenant
        keeps its earlier templates instead, if it has not changed.
        """
        earlier = self._current
        shared = SharedTemplates(earlier.compiled)
        folder = self._default.templates_dir
        if folder is not None and not folder.exists():  # without it, the built-in templates would be used
            raise FileNotFoundError(ENOENT, "No such folder", str(folder))
        made = {"": self._made("", self._default, shared.of(self._default), earlier)}
        failed: dict[Key, str] = {}
        for tenant, identity in tenants.items():
            if (key := shared.key(identity)) in failed:
                continue
            try:
                made[tenant] = self._made(tenant, identity, shared.of(identity), earlier)
            except TemplateError as error:
                failed[key] = f"tenant {tenant}: {error}"
            except OSError as error:
                failed[key] = f"tenant {tenant}: {identity.templates_dir} cannot be read ({error.strerror})"
        kept = {tenant: earlier.composers.get(tenant) for tenant in tenants.keys() - made.keys()}
        unchanged = {tenant: it for tenant, it in kept.items() if it is not None and it.identity == tenants[tenant]}
        if failed and not (keep_earlier and len(unchanged) == len(kept)):
            raise TemplateError("\n".join(failed.values()))
        of_earlier = {it.templates for it in unchanged.values()}
        compiled = {key: it for key, it in earlier.compiled.items() if it in of_earlier} | shared.compiled
        return Prepared(made | unchanged, compiled, [*failed.values()])

    def _made(self, tenant: str, identity: MailIdentity, templates: Templates, earlier: Prepared) -> TenantComposer:
        same = earlier.composers.get(tenant)
        if same is not None and same.identity == identity and same.templates is templates:
            return same
        return TenantComposer(tenant, identity, templates, self._hash_key)

    def use(self, prepared: Prepared) -> None:
        """Compose as these tenants from now on. A mail that is being composed in the other process is finished."""
        unused = set(self._current.compiled.values()) - set(prepared.compiled.values())
        self._current = prepared
        self._composers = prepared.composers
        self._process.renew()
        for it in unused:
            it.close()

    @property
    def tenants(self) -> list[str]:
        """The names of all tenants but the default one."""
        return [name for name in self._composers if name]

    @property
    def identities(self) -> dict[str, MailIdentity]:
        """Those of all tenants but the default one, by name."""
        return {name: it.identity for name, it in self._composers.items() if name}

    @property
    def used_folders(self) -> Mapping[Path, Fingerprint]:
        """The state in which each folder was compiled."""
        return {folder: seen for folder, _, seen in self._current.compiled if folder is not None}

    def folders(self) -> Mapping[Path, Fingerprint]:
        """Return the present state of each folder; can be called in a thread."""
        return {folder: fingerprint(folder) for folder in self.used_folders}

    @property
    def templates(self) -> Templates:
        """The templates of the default tenant."""
        return self._composers[""].templates

    def own_templates(self) -> Iterator[TenantComposer]:
        """Yield the first tenant of each folder and default locale; none for the built-in templates."""
        seen: set[int] = set()
        for it in self._composers.values():
            if it.identity.templates_dir is not None and id(it.templates) not in seen:
                seen.add(id(it.templates))
                yield it

    def of(self, tenant: str) -> TenantComposer:
        """Return what composes as this tenant. Raises `TenantRemovedError` for an unknown one."""
        try:
            return self._composers[tenant]
        except KeyError:
            # the job was read before the tenant was removed; the default sender may belong to another company
            raise TenantRemovedError(f"there is no tenant {tenant} in TENANTS_FILE") from None

    def compose(self, job: Job) -> Mail:
        """Return the message, always the same bytes for one job. Raises `ComposeError` if template or data fail."""
        # without a second call for each mail
        composer = self._composers.get(job.tenant) or self.of(job.tenant)
        return composer.compose(job)

    async def compose_isolated(self, job: Job) -> Mail:
        """Return the same message, composed in another process. Raises `ComposeError` if that process crashes.

        If no process can be started, the message is composed in this one, because someone waits for the code.
        """
        composer = self.of(job.tenant)
        try:
            return await self._process.compose(job, composer.identity)
        except OSError as error:
            import structlog  # noqa: PLC0415 - takes a third of the start of a render process, which logs nothing

            structlog.get_logger(__name__).warning(
                "cannot start a render process; composing in this one", error=type(error).__name__
            )
            return composer.compose(job)

    async def close(self) -> None:
        """Stop the other processes."""
        await self._process.close()
        for it in self._current.compiled.values():
            it.close()
