"""Compares RabbitMQ's users with their roles, and creates or changes them, by the management API."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from otp_stream.broker.management_api import ManagementApi

from .roles import Role


@dataclass(frozen=True, slots=True)
class User:
    """A user, and the role that it must have."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Users:
    """The users of a broker. All methods raise `ManagementError` if the API cannot be used."""

    api: ManagementApi

    async def exists(self, user: User) -> bool:
        """Return whether there is a user of this name."""
        return await self._read(_user_path(user)) is not None

    async def differences(self, user: User) -> list[str]:
        """Return each difference between a user and its role; none if the user has exactly what the role needs."""
        account = await self._read(_user_path(user))
        if account is None:
            return ["does not exist"]
        found: list[str] = []
        tags = _tags(account)
        if tags != set(user.role.tags):
            found.append(f"has {_shown_tags(tags)}, must have {_shown_tags(user.role.tags)}")
        permissions = await self._read(_permissions_path(user))
        if permissions is None:
            found.append(f"may not use the virtual host {self.api.virtual_host}")
            return found
        for action, pattern in user.role.patterns.items():
            if permissions.get(action) != pattern:
                found.append(f"{action} is '{permissions.get(action)}', must be '{pattern}'")
        return found

    async def apply(self, user: User, password: str | None, report: Callable[[str], object]) -> None:
        """Give a user exactly what its role needs. `report` is called after each change, with a text about it.

        `password` is set if it is given; a user that does not exist needs one. Otherwise the password is kept.
        """
        account = await self._read(_user_path(user))
        if account is None or password is not None:
            await self._put_account(user, {"password": password})
            report("created" if account is None else "password changed")
        elif _tags(account) != set(user.role.tags):
            # without its hash, the user would lose its password
            kept = {name: account[name] for name in ("password_hash", "hashing_algorithm") if account.get(name)}
            await self._put_account(user, kept)
            report("tags changed")
        permissions = await self._read(_permissions_path(user))
        wanted: dict[str, str] = {**user.role.patterns}
        if permissions is None or any(permissions.get(action) != pattern for action, pattern in wanted.items()):
            await asyncio.to_thread(self.api.put, _permissions_path(user), wanted)
            report("permissions set")

    async def _put_account(self, user: User, login: Mapping[str, Any]) -> None:
        account = {**login, "tags": ",".join(user.role.tags)}
        await asyncio.to_thread(self.api.put, _user_path(user), account)

    async def _read(self, path: str) -> Mapping[str, Any] | None:
        return await self.api.fetch(path, missing_ok=True)


def _user_path(user: User) -> str:
    return f"users/{quote(user.name, safe='')}"


def _permissions_path(user: User) -> str:
    return f"permissions/{{virtual_host}}/{quote(user.name, safe='')}"


def _tags(account: Mapping[str, Any]) -> set[str]:
    tags: Any = account.get("tags")
    listed: list[Any] = tags.split(",") if isinstance(tags, str) else [*tags] if isinstance(tags, list) else []
    return {str(it) for it in listed if it}


def _shown_tags(tags: set[str] | tuple[str, ...]) -> str:
    return f"the tags {', '.join(sorted(tags))}" if tags else "no tags"
