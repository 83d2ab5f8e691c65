"""The running call as its servicer sees it: caller, headers, idempotency key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import grpc
from google.protobuf.message import Message

from services import addresses
from services.addresses import Network
from services.auth import Principal, Role
from services.errors import FieldViolation, InvalidArgument
from services.idempotency import RequestKey, fingerprint

IDEMPOTENCY_HEADER: Final = "idempotency-key"
CLIENT_HEADER: Final = "x-skyhigh-client"


@dataclass(frozen=True, slots=True)
class Call:
    """The running call: its method, principal, trace and idempotency header.

    `proxies` are the networks of the gateways; only they may name the client's address in a header.
    """

    method: str
    principal: Principal
    traceparent: str
    idempotency_header: str | None
    context: grpc.aio.ServicerContext[Any, Any]
    proxies: Sequence[Network] = ()

    def header(self, name: str) -> str | None:
        """Returns a header by its lower-case name, or None.

        Returns the last value if the header was sent more than once.
        """
        values = [value for key, value in self.context.invocation_metadata() or () if key == name]
        return str(values[-1]) if values else None

    def client_address(self) -> str:
        """Returns the client's external address if it is known, else the peer's."""
        return self.outside_address() or self._peer()

    def outside_address(self) -> str:
        """Returns the external client address; empty for a call that began inside.

        The gateway writes it into a header, after removing that header from every client request. A service passes it
        on to the services that it calls. The header is ignored if the peer is neither a gateway nor a service.
        """
        named = self.header(CLIENT_HEADER)
        if not named:
            return ""
        try:
            trusted = self.principal.role is Role.SERVICE or any(
                addresses.parse(self._peer()) in network for network in self.proxies
            )
            return str(addresses.parse(named)) if trusted else ""
        except ValueError:
            return ""

    def _peer(self) -> str:
        # `ipv4:127.0.0.1:4711` or `ipv6:[::1]:4711`, percent-encoded.
        peer: str = self.context.peer()
        return peer.partition(":")[2].rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]")

    def take_key(self, request: Message) -> Mapping[str, str]:
        """Copies the idempotency key of the header into a mutation's `request_id` if that is empty.

        So the contract's rule for the field also validates the header. Returns the name by which the caller sent the
        field, by field name; an empty mapping if it sent the field itself. Raises InvalidArgument if both are given and
        differ.
        """
        if self.idempotency_header is None:
            return {}
        request_id: str = getattr(request, "request_id")  # noqa: B009
        if not request_id:
            setattr(request, "request_id", self.idempotency_header)  # noqa: B010
            return {"request_id": IDEMPOTENCY_HEADER}
        if request_id.lower() != self.idempotency_header.lower():
            raise InvalidArgument.of(
                FieldViolation("request_id", f"must equal the header {IDEMPOTENCY_HEADER}; send the key only once")
            )
        return {}

    def request_key(self, request: Message) -> RequestKey | None:
        """Returns the idempotency key of a validated mutation, or None if it has none."""
        request_id: str = getattr(request, "request_id")  # noqa: B009
        if not request_id:
            return None
        return RequestKey(self.principal.name, UUID(request_id), fingerprint(self.method, request))


RUNNING: Final[ContextVar[Call]] = ContextVar("call")


def running() -> Call:
    """Returns the call that the current task serves."""
    return RUNNING.get()


async def open_stream() -> None:
    """Sends the response headers of the running stream before its first message.

    The first message may come much later. Call this only when nothing can refuse the call any more: an error after the
    headers is sent as a trailer, and a JSON client has already read status 200.
    """
    await running().context.send_initial_metadata(())
