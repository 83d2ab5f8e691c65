"""Connections of the commands to the services and the gateway.

They use TLS if the stack has certificates.
"""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

from operations.local_stack import address_of, environment
from operations.terminal import fail
from operations.tokens import mint

if TYPE_CHECKING:
    import grpc

Metadata: TypeAlias = tuple[tuple[str, str], ...]
Stub = TypeVar("Stub")

CALL_TIMEOUT_SECONDS: Final = 10


def channel_to(service: str) -> grpc.aio.Channel:
    """Opens a channel to a service by its name, such as `seat`.

    Ends the command if the address is unknown or malformed, or if the certificates are missing or unreadable.
    """
    import grpc

    from deploy.local.addresses import CERTIFICATE_NAMES
    from services import tls
    from services.endpoints import grpc_target
    from services.tls_identity import Identity

    # gRPC would otherwise use the machine's HTTP proxy, which cannot reach the services.
    direct = ("grpc.enable_http_proxy", 0)
    variable, known = f"SKYHIGH_{service.upper()}_ADDRESS", environment()
    try:
        address = grpc_target(address_of(variable))
    except ValueError as error:
        fail(f"{variable}: {error}")
    certificate, key, authority = (known.get(name) for name in CERTIFICATE_NAMES)
    if authority is None:
        return grpc.aio.insecure_channel(address, options=[direct])
    if certificate is None or key is None:
        fail("the services require a certificate: SKYHIGH_CLIENT_CERTIFICATE and SKYHIGH_CLIENT_KEY are not set")
    try:
        credentials = tls.channel_credentials(Identity(Path(certificate), Path(key), Path(authority)).read())
    except ValueError as error:
        fail(str(error))
    return grpc.aio.secure_channel(address, credentials, options=[direct, tls.expected_name(service)])


def context_for(url: str) -> ssl.SSLContext | None:
    """Returns the TLS context for this URL; None if it is not https."""
    return _context_that_trusts(environment().get("SKYHIGH_CA")) if url.startswith("https:") else None


@cache
def _context_that_trusts(authority: str | None) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


async def ask(
    service: str,
    stub: Callable[[grpc.aio.Channel], Stub],
    question: Callable[[Stub, Metadata], Awaitable[None]],
    *,
    role: str = "operations",
) -> None:
    """Runs `question` with a stub of the service and the metadata of a demo token of this role.

    An error response ends the command.
    """
    with refusals_of(service):
        async with channel_to(service) as channel:
            await question(stub(channel), metadata_of(role))


def metadata_of(role: str, subject: str = "demo") -> Metadata:
    """Returns the metadata of a call with a new demo token."""
    return (("authorization", f"Bearer {mint(role, subject)}"),)


@contextmanager
def refusals_of(service: str) -> Iterator[None]:
    """Ends the command if a call in the block fails."""
    import grpc

    name = {"checkin": "check-in"}.get(service, service)
    try:
        yield
    except grpc.aio.AioRpcError as error:
        fail(f"the {name} service responded with {error.code().name}: {error.details()}")
