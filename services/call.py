"""The running call, as its servicer sees it."""

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
    """Who calls which method, in which trace, and with which idempotency key in the header.

    `proxies` are the networks of the gateways, whose header names the client's address.
    """

    method: str
    principal: Principal
    traceparent: str
    idempotency_header: str | None
    context: grpc.aio.ServicerContext[Any, Any]
    proxies: Sequence[Network] = ()

    def header(self, name: str) -> str | None:
        """Returns a header by its lower-case name; the last one where it was sent more than once."""
        values = [value for key, value in self.context.invocation_metadata() or () if key == name]
        return str(values[-1]) if values else None

    def client_address(self) -> str:
        """Returns the address that the call comes from: the outside one if it is known, else the peer's."""
        return self.outside_address() or self._peer()

    def outside_address(self) -> str:
        """Returns the address outside that the call comes from; empty for a call that began inside.

        The gateway names it in a header that it takes from no client, and a service passes on what it was told. The
        same header from another peer is ignored.
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
        """Writes the key of the header into `request_id`, so that the contract's rule of the field is the header's too.

        Returns by which other name the caller has sent the field. Raises InvalidArgument if both are given and differ.
        """
        if self.idempotency_header is None or "request_id" not in request.DESCRIPTOR.fields_by_name:
            return {}
        request_id: str = getattr(request, "request_id")  # noqa: B009
        if not request_id:
            setattr(request, "request_id", self.idempotency_header)  # noqa: B010
            return {"request_id": IDEMPOTENCY_HEADER}
        if request_id.lower() != self.idempotency_header.lower():
            raise InvalidArgument.of(FieldViolation("request_id", f"differs from the header {IDEMPOTENCY_HEADER}"))
        return {}

    def request_key(self, request: Message) -> RequestKey | None:
        """Returns the key of a valid mutation; None if it has none."""
        request_id: str = getattr(request, "request_id")  # noqa: B009
        if not request_id:
            return None
        return RequestKey(self.principal.name, UUID(request_id), fingerprint(self.method, request))


RUNNING: Final[ContextVar[Call]] = ContextVar("call")


def running() -> Call:
    """Returns the call that this task serves."""
    return RUNNING.get()


async def open_stream() -> None:
    """Sends the response headers of the running stream now: its first message may come much later.

    Call it once nothing is left that refuses the call. A refusal after the headers comes as a trailer, and a JSON
    client has already read status 200.
    """
    await running().context.send_initial_metadata(())
