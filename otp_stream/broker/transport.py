"""aiormq's connections reach a broker whose first address is dead: it would wait there for the kernel's two minutes."""

import asyncio
from typing import Any

from aiormq.connection import SSLContextProvider, TCPTransportFactory, TLSTransportFactory, TransportFactory
from aiormq.exceptions import AMQPConnectionError
from yarl import URL

from otp_stream.sockets import connect

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def try_every_address() -> None:
    """Have every connection of aiormq in this process, also FastStream's, try all addresses of the broker's name."""
    for factory in (TCPTransportFactory, TLSTransportFactory):
        setattr(factory, "create", _create)  # noqa: B010 - its own type is that of a method


async def _create(factory: TransportFactory, url: URL, **kwargs: Any) -> _Streams:  # noqa: ARG001 - it is a method
    provider: SSLContextProvider = kwargs.pop("ssl_context_provider")
    host = str(url.host)
    try:
        context = await provider.get_context() if url.scheme == "amqps" else None
        sock = await connect(host, int(url.port or 0))
        return await asyncio.open_connection(
            sock=sock, ssl=context, server_hostname=host if context else None, **kwargs
        )
    except OSError as error:
        raise AMQPConnectionError(*error.args) from error
