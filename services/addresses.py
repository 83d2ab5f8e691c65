"""Parses client network addresses and groups them as the limits count them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# An IPv6 network of one customer: the provider usually assigns a whole /64.
IPV6_PREFIX_BITS: Final = 64


def parse(text: str) -> Address:
    """Parses an IP address and drops its IPv6 zone. Raises ValueError.

    Returns an IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) as IPv4.
    """
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def counted_source(source: str) -> str:
    """Returns the source key under which limits count a caller.

    Replaces the address, or network, of `address:<address>` by `counted_address`. Returns any other source, and a
    malformed address, unchanged.
    """
    kind, _, text = source.partition(":")
    if kind != "address":
        return source
    try:
        return f"address:{counted_address(text.partition('/')[0])}"
    except ValueError:
        return source


def counted_address(text: str) -> str:
    """Returns an IPv4 address unchanged, an IPv6 address as its /64 network.

    Raises ValueError for any other text.
    """
    parsed = parse(text)
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    groups = ip_network((parsed, IPV6_PREFIX_BITS), strict=False).network_address.exploded.split(":")[:4]
    return f"{':'.join(groups)}::/{IPV6_PREFIX_BITS}"
