"""Network addresses of clients, as limits count them."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# One customer's part of IPv6.
IPV6_PREFIX_BITS: Final = 64


def parse(text: str) -> Address:
    """Returns an address without its zone; an IPv4 address that is written as IPv6 is IPv4. Raises ValueError."""
    address = ip_address(text.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def counted_source(source: str) -> str:
    """Returns a caller as limits count it: of `address:` and an address, or its network, what counts as one address."""
    kind, _, text = source.partition(":")
    if kind != "address":
        return source
    try:
        return f"address:{counted_address(text.partition('/')[0])}"
    except ValueError:
        return source


def counted_address(text: str) -> str:
    """Returns an IPv4 address as it is, and of an IPv6 address its /64 network. Raises ValueError for neither."""
    parsed = parse(text)
    if isinstance(parsed, IPv4Address):
        return str(parsed)
    groups = ip_network((parsed, IPV6_PREFIX_BITS), strict=False).network_address.exploded.split(":")[:4]
    return f"{':'.join(groups)}::/{IPV6_PREFIX_BITS}"
