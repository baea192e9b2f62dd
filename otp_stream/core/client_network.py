"""The network of a client, by which clients are distinguished."""

from ipaddress import IPv6Address, ip_address


def network_of(client: str) -> str:
    """Return the /64 network of an IPv6 address, because one client has all addresses in it; else the address."""
    try:
        address = ip_address(client)
    except ValueError:
        return client
    if not isinstance(address, IPv6Address):
        return client
    return str(address.ipv4_mapped or int(address) >> 64)
