"""A DNS server on loopback with a zone of the test's own."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import dns.asyncresolver
import dns.message
import dns.rcode
import dns.rrset

Zone = dict[tuple[str, str], list[str]]
"""Values by name and type of record."""


@contextmanager
def dns_server(zone: Zone, *, silent: bool = False) -> Iterator[dns.asyncresolver.Resolver]:
    """Serve the zone; yields a resolver that asks this server alone. A `silent` one never answers."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        stopped = threading.Event()

        def serve() -> None:
            while True:
                packet, client = sock.recvfrom(4096)
                if stopped.is_set():
                    return
                if not silent:
                    sock.sendto(_answer(packet, zone), client)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers, resolver.port = ["127.0.0.1"], sock.getsockname()[1]
        try:
            yield resolver
        finally:
            stopped.set()
            sock.sendto(b"", sock.getsockname())
            thread.join()


def _answer(packet: bytes, zone: Zone) -> bytes:
    query = dns.message.from_wire(packet)
    answer = dns.message.make_response(query)
    (question,) = query.question
    name, kind = question.name.to_text().rstrip(".").lower(), question.rdtype.name
    if values := zone.get((name, kind)):
        answer.answer.append(dns.rrset.from_text(question.name, 60, "IN", kind, *values))
    elif not any(known == name for known, _ in zone):
        answer.set_rcode(dns.rcode.NXDOMAIN)
    return answer.to_wire()
