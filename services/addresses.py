"""Network addresses of clients, as limits count them."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Final

# One customer's part of IPv6.
IPV6_PREFIX_BITS: Final = 64


def counted_address(address: str) -> str:
    """Returns an IPv4 address as it is, and of an IPv6 address its /64 network. Raises ValueError for neither."""
    parsed = ip_address(address.partition("%")[0])
    if parsed.version == 4:
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    groups = ip_network((parsed, IPV6_PREFIX_BITS), strict=False).network_address.exploded.split(":")[:4]
    return f"{':'.join(groups)}::/{IPV6_PREFIX_BITS}"
