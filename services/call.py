"""The running call, as its servicer sees it."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from google.protobuf.message import Message

from services.auth import Principal
from services.errors import FieldViolation, InvalidArgument
from services.idempotency import RequestKey, fingerprint

IDEMPOTENCY_HEADER: Final = "idempotency-key"


@dataclass(frozen=True, slots=True)
class Call:
    """Who calls which method, in which trace, and with which idempotency key in the header."""

    method: str
    principal: Principal
    traceparent: str
    idempotency_header: str | None

    def request_key(self, request: Message) -> RequestKey | None:
        """Returns the key of a mutation, from its `request_id` or from the header; None where there is neither.

        Raises InvalidArgument where both are given and differ, or where the header is no UUID.
        """
        request_id: str = getattr(request, "request_id")  # noqa: B009
        if self.idempotency_header is not None:
            if request_id and request_id.lower() != self.idempotency_header.lower():
                raise InvalidArgument.of(FieldViolation("request_id", f"differs from the header {IDEMPOTENCY_HEADER}"))
            request_id = self.idempotency_header
        if not request_id:
            return None
        try:
            key = UUID(request_id)
        except ValueError as error:
            raise InvalidArgument.of(FieldViolation(IDEMPOTENCY_HEADER, "must be a UUID")) from error
        return RequestKey(self.principal.name, key, fingerprint(self.method, request))


RUNNING: Final[ContextVar[Call]] = ContextVar("call")


def running() -> Call:
    """Returns the call that this task serves."""
    return RUNNING.get()
