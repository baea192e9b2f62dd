"""Check the DNS records of the sender's domain, which receivers such as Google and Yahoo ask for: SPF, DKIM, DMARC, MX.

Nothing here keeps the worker from sending, so every result is a warning at most.
"""

import asyncio
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.name
import dns.resolver

from otp_stream.core.check_result import CheckResult, Report

_LOOKUP_S = 4.0
_MAX_LOOKUPS = 10
"""RFC 7208 §4.6.4: an SPF record that needs more is an error for receivers."""
_INCLUDES = {
    "outlook.com": "spf.protection.outlook.com",
    "office365.com": "spf.protection.outlook.com",
    "gmail.com": "_spf.google.com",
    "google.com": "_spf.google.com",
    "amazonaws.com": "amazonses.com",
    "sendgrid.net": "sendgrid.net",
    "postmarkapp.com": "spf.mtasv.net",
    "mailgun.org": "mailgun.org",
}
"""What an SPF record includes for a relay, by the end of the relay's name."""
_RESERVED = (
    "example",
    "example.com",
    "example.net",
    "example.org",
    "invalid",
    "internal",
    "local",
    "localhost",
    "test",
)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class _NoAnswerError(Exception):
    """DNS does not answer, so nothing is known."""


@dataclass(slots=True)
class _Spf:
    """What an SPF record and all that it includes allow."""

    includes: set[str] = field(default_factory=set[str])
    networks: list[_Network] = field(default_factory=list[_Network])
    hosts: set[str] = field(default_factory=set[str])
    """Names whose addresses may send: of `a` and `mx`."""
    everyone: bool = False
    lookups: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class SenderDomain:
    """The checks of one domain. `relays` are the names of the relays on other machines."""

    domain: str
    relays: Sequence[str]
    report: Report
    resolver: dns.asyncresolver.Resolver

    async def check(self, dkim_selector: str | None) -> None:
        """Report every record."""
        reserved = any(self.domain == it or self.domain.endswith(f".{it}") for it in _RESERVED)
        if reserved or "." not in self.domain or self.domain.startswith("["):
            self.report(CheckResult("note", f"{self.domain}: not checked: it is no public domain"))
            return
        for record in (self._spf(), self._dkim(dkim_selector), self._dmarc(), self._mx()):
            try:
                await record
            except _NoAnswerError as error:
                self.report(CheckResult("note", f"{self.domain}: not checked: {error}"))

    async def _spf(self) -> None:
        found = await self._read_spf(self.domain, spf := _Spf(), top=True)
        if not found:
            allowed = " ".join(f"include:{it}" if (it := _include(host)) else f"a:{host}" for host in self.relays)
            record = f'{self.domain}. TXT "v=spf1 {allowed or "a mx"} -all"'
            self._warn("SPF: no record: many receivers refuse the mail or sort it out as spam", f"add {record}")
        elif spf.problem:
            self._warn(f"SPF: {spf.problem}: receivers ignore the record", "correct it")
        elif spf.everyone:
            self._warn("SPF: all without a sign lets any server send for it", "end the record with -all or ~all")
        elif spf.lookups > _MAX_LOOKUPS:
            text = f"SPF: the record needs more than {_MAX_LOOKUPS} lookups, where receivers stop"
            self._warn(text, "remove what no longer sends")
        elif not self.relays:
            self.report(CheckResult("ok", f"{self.domain}: SPF has a record"))
        else:
            for host in self.relays:
                await self._check_relay(host, spf)

    async def _check_relay(self, host: str, spf: _Spf) -> None:
        include = _include(host)
        if include is not None and include not in spf.includes:
            self._warn(f"SPF: the record does not include {host}", f"add include:{include} before its all")
        elif include is None and not await self._is_allowed(host, spf):
            text = f"{self.domain}: SPF does not name the address of {host}, which may send from another one"
            self.report(CheckResult("note", text))
        else:
            self.report(CheckResult("ok", f"{self.domain}: SPF includes {host}"))

    async def _read_spf(self, name: str, spf: _Spf, *, top: bool = False) -> bool:
        """Add what the record of a name allows; return whether it has one."""
        records = [it for it in await self._texts(name) if it.lower() == "v=spf1" or it.lower().startswith("v=spf1 ")]
        if len(records) != 1:
            if records or not top:
                spf.problem = spf.problem or f"{name} has {len(records) or 'no'} SPF record{'s' * (len(records) > 1)}"
            return bool(records)
        for term in records[0].split()[1:]:
            await self._add_term(term.lower(), name, spf)
        return True

    async def _add_term(self, term: str, name: str, spf: _Spf) -> None:
        mechanism, _, value = term.lstrip("+").partition(":")
        target = value.partition("/")[0] or name
        if term.startswith("redirect="):
            mechanism, target = "include", term.partition("=")[2]
        match mechanism.partition("/")[0]:
            case "include":
                spf.lookups += 1
                spf.includes.add(target)
                if spf.lookups <= _MAX_LOOKUPS and "%" not in target:
                    await self._read_spf(target, spf)
            case "a" | "exists" | "ptr":
                spf.lookups += 1
                spf.hosts.add(target)
            case "mx":
                spf.lookups += 1
                spf.hosts.update(await self._exchanges(target) or [])
            case "ip4" | "ip6":
                try:
                    spf.networks.append(ipaddress.ip_network(value, strict=False))
                except ValueError:
                    spf.problem = f"{term} is no network"
            case "all":
                spf.everyone = True
            case _:
                pass  # another sign than +, or a modifier

    async def _is_allowed(self, relay: str, spf: _Spf) -> bool:
        ours = await self._addresses(relay)
        hosts = [it for it in spf.hosts if it and "%" not in it]
        allowed = [address for host in hosts for address in await self._addresses(host)]
        return any(it in allowed or any(it in network for network in spf.networks) for it in ours)

    async def _dkim(self, selector: str | None) -> None:
        if selector is None:
            text = f"{self.domain}: DKIM not checked: the relay signs; give its selector with --dkim-selector"
            self.report(CheckResult("note", text))
            return
        name = f"{selector}._domainkey.{self.domain}"
        keys = [tags.get("p") for text in await self._texts(name) if "p" in (tags := _tags(text))]
        if not keys:
            self._warn(f"DKIM: no key at {name}", "add the record that your relay's settings show")
        elif not any(keys):
            self._warn(f"DKIM: the key at {name} is revoked (p is empty)", "use the relay's current selector")
        else:
            self.report(CheckResult("ok", f"{self.domain}: DKIM has a key at {name}"))

    async def _dmarc(self) -> None:
        labels = self.domain.split(".")
        for start in range(len(labels) - 1):
            parent = ".".join(labels[start:])
            records = [it for it in await self._texts(f"_dmarc.{parent}") if it.lower().startswith("v=dmarc1")]
            if len(records) > 1:
                self._warn(f"DMARC: _dmarc.{parent} has {len(records)} records: receivers ignore them", "keep one")
                return
            if records:
                policy = _tags(records[0]).get("p" if start == 0 else "sp") or _tags(records[0]).get("p")
                if policy not in {"none", "quarantine", "reject"}:
                    self._warn(f"DMARC: the record at _dmarc.{parent} has no valid policy", "add p=none or p=reject")
                else:
                    self.report(CheckResult("ok", f"{self.domain}: DMARC has the policy {policy} (_dmarc.{parent})"))
                return
        record = f'_dmarc.{self.domain}. TXT "v=DMARC1; p=none; rua=mailto:postmaster@{self.domain}"'
        self._warn("DMARC: no record: Google and Yahoo require one of bulk senders", f"add {record}")

    async def _mx(self) -> None:
        exchanges = await self._exchanges(self.domain)
        if exchanges == [""]:
            self._warn("MX: the domain takes no mail (null MX): bounces and replies are lost", "use another sender")
        elif exchanges or await self._addresses(self.domain):
            self.report(CheckResult("ok", f"{self.domain}: MX takes bounces and replies"))
        else:
            self._warn("MX: no record and no address: receivers refuse a sender that takes no bounces", "add an MX")

    def _warn(self, text: str, fix: str) -> None:
        self.report(CheckResult("warning", f"{self.domain}: {text}", fix))

    async def _texts(self, name: str) -> list[str]:
        answer = await self._resolve(name, "TXT")
        return [b"".join(it.strings).decode(errors="replace") for it in answer]

    async def _exchanges(self, name: str) -> list[str] | None:
        return [str(it.exchange).rstrip(".").lower() for it in await self._resolve(name, "MX")] or None

    async def _addresses(self, host: str) -> list[_Address]:
        try:
            return [ipaddress.ip_address(host)]
        except ValueError:
            answers = await asyncio.gather(self._resolve(host, "A"), self._resolve(host, "AAAA"))
        return [ipaddress.ip_address(it.address) for answer in answers for it in answer]

    async def _resolve(self, name: str, kind: str) -> list[Any]:
        try:
            return list(await self.resolver.resolve(dns.name.from_text(name), kind, lifetime=_LOOKUP_S))
        except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer):
            return []
        except (dns.exception.DNSException, OSError) as error:
            raise _NoAnswerError(f"DNS gives no answer for {name} ({type(error).__name__})") from None


def _tags(text: str) -> dict[str, str]:
    """Return the tags of a record such as `v=DMARC1; p=none`."""
    pairs = (part.partition("=") for part in text.split(";"))
    return {name.strip().lower(): "".join(value.split()).lower() for name, _, value in pairs if name.strip()}


def _include(host: str) -> str | None:
    """Return what an SPF record includes for a well-known relay."""
    return next((it for end, it in _INCLUDES.items() if host == end or host.endswith(f".{end}")), None)
