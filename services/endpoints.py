"""Parses `host:port`, as settings name servers: one, or several with commas."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from typing import Self

LARGEST_PORT = 65_535


@dataclass(frozen=True, slots=True)
class Endpoint:
    """The address of a server.

    IPv6 addresses are written in brackets; `host` is without them.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parses `host:port`. Raises ValueError.

        Port 0 means a free port, for a server that listens.
        """
        host, _, port = text.strip().rpartition(":")
        bracketed = host.startswith("[") and host.endswith("]")
        name = host[1:-1] if bracketed else host
        if not name or "[" in name or "]" in name or (":" in name) != bracketed:
            raise ValueError(f"{text.strip()!r} is not host:port")
        if not (port.isascii() and port.isdecimal()):
            raise ValueError(f"{text.strip()!r} is not host:port")
        if int(port) > LARGEST_PORT:
            raise ValueError(f"{text.strip()!r} has a port above {LARGEST_PORT}")
        return cls(name, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoints(text: str) -> tuple[Endpoint, ...]:
    """Parses one endpoint, or several separated by commas.

    Raises ValueError for malformed text, and if there is no endpoint.
    """
    found = tuple(Endpoint.parse(part) for part in text.split(",") if part.strip())
    if not found:
        raise ValueError("no address")
    return found


def grpc_target(text: str) -> str:
    """Returns the gRPC target of the endpoints.

    Raises ValueError for several endpoints that are not IP addresses of one family.
    """
    found = endpoints(text)
    if len(found) == 1:
        return str(found[0])
    try:
        (version,) = {ip_address(each.host).version for each in found}
    except ValueError as error:
        raise ValueError(f"{text!r}: several addresses must be IP addresses of one family") from error
    return f"ipv{version}:{','.join(map(str, found))}"
