"""TCP connections to host names with several addresses, some of which may not work."""

import asyncio
import ipaddress
import socket
from asyncio.staggered import staggered_race
from collections.abc import Awaitable, Callable, Collection
from concurrent.futures import Future
from functools import partial
from itertools import zip_longest

from .tasks import start_thread

_DELAY_S = 0.25
"""RFC 8305 §5: how long to wait for one address before the next one is tried in parallel."""
_MOST_ADDRESSES = 16
"""Addresses that are tried for one connection: a DNS server may return thousands. Those that fail go last next time."""
_MAX_FAILED = 100
"""Maximum number of stored addresses, because the addresses of a name change."""
SMALL_BUFFER = 16_384
"""A receive buffer for short replies; Linux doubles it. An event loop reads as much as it contains at once."""
_Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]
_Found = list[tuple[socket.AddressFamily, socket.SocketKind, int, str, _Address]]


class Addresses:
    """Connects to host names. Addresses that accepted a connection but no session are tried last.

    A frozen server, or a load balancer without a backend, still accepts connections. `receive_buffer`: as in `connect`.
    """

    def __init__(self, receive_buffer: int | None = None) -> None:
        self._receive_buffer = receive_buffer
        self._failed: dict[object, None] = {}
        """Addresses, ordered by the time of their last failure."""

    async def connect(self, host: str, port: int) -> socket.socket:
        """Connect as the function `connect` does, with failed addresses last."""
        return await connect(host, port, last=self._failed, receive_buffer=self._receive_buffer)

    def succeeded(self, address: object) -> None:
        """Record that the server at this address (`getpeername`) accepted a session."""
        self._failed.pop(address, None)

    def failed(self, address: object) -> None:
        """Record that the server at this address did not accept a session."""
        self._failed.pop(address, None)
        self._failed[address] = None
        if len(self._failed) > _MAX_FAILED:
            del self._failed[next(iter(self._failed))]


def certificate_name(host: str) -> str:
    """Return the name in a certificate for `host`, without the trailing dot of an absolute DNS name."""
    return host.removesuffix(".")


async def connect(
    host: str, port: int, *, last: Collection[object] = (), receive_buffer: int | None = None
) -> socket.socket:
    """Return a socket that is connected to the first address of `host` that answers.

    Addresses are tried in the order of the resolver, alternating between families, then those in `last`, in its order.
    (uvloop supports neither `happy_eyeballs_delay` nor `interleave`.) `receive_buffer` is its size in bytes; `None` is
    the system's, which grows to megabytes. Raises the `OSError` of the first address if all of them fail.
    """
    if _is_address(host):
        return await _open(socket.AF_INET6 if ":" in host else socket.AF_INET, (host, port), receive_buffer)
    found = await _lookups.find(host, port)
    by_family: dict[socket.AddressFamily, list[_Address]] = {}
    for family, _, _, _, address in found:
        by_family.setdefault(family, []).append(address)
    in_turn = [
        it
        for group in zip_longest(*([(family, it) for it in addresses] for family, addresses in by_family.items()))
        for it in group
        if it is not None
    ]
    order = {address: at for at, address in enumerate(last, 1)}
    in_turn.sort(key=lambda it: order.get(it[1], 0))
    tries: list[Callable[[], Awaitable[socket.socket]]] = [
        partial(_open, *it, receive_buffer) for it in in_turn[:_MOST_ADDRESSES]
    ]
    connected, _, errors = await staggered_race(tries, _DELAY_S)
    if connected is None:
        raise next((error for error in errors if isinstance(error, OSError)), OSError(f"no address of {host} answers"))
    return connected


class _Lookups:
    """Looks up names, each in its own thread, and once for all that wait for it.

    The event loop has few threads for this (uvloop two): a tenant's name whose DNS servers do not respond, which takes
    the resolver half a minute, would block the lookups of all other names.
    """

    def __init__(self) -> None:
        self._running: dict[tuple[str, int], Future[_Found]] = {}

    async def find(self, host: str, port: int) -> _Found:
        """Return the addresses. Raises `OSError`. A lookup whose caller is cancelled continues for the next one."""
        key = host, port
        lookup = self._running.get(key)
        if lookup is None:
            look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
            try:
                lookup = self._running[key] = start_thread(look_up, "name lookup")
            except RuntimeError:  # the system permits no more threads
                raise OSError(f"no thread to look up {host}") from None
            lookup.add_done_callback(lambda _: self._running.pop(key))
        return await asyncio.wrap_future(lookup)


_lookups = _Lookups()


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # a scope must be resolved


async def _open(family: socket.AddressFamily, address: _Address, receive_buffer: int | None) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:  # before the connection: it limits the window that is offered
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await asyncio.get_running_loop().sock_connect(sock, address)
    except BaseException:
        sock.close()
        raise
    return sock
