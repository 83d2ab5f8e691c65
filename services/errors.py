"""Refusals: how a service says no.

    Refusal
    ├── InvalidArgument      a field is malformed or out of range                400
    ├── FailedPrecondition   not allowed in this state                           400
    ├── Aborted              lost to somebody else or to the clock               409
    ├── AlreadyExists        same key, other parameters                          409
    ├── Unauthenticated      no token, or a bad one                              401
    ├── PermissionDenied     the role may not                                    403
    ├── NotFound             missing, or somebody else's                         404
    ├── ResourceExhausted    too many, with the time to wait                     429
    ├── DeadlineExceeded     out of time                                         504
    ├── Unavailable          a part is down, with the time to wait               503
    └── Internal             a defect of ours, never raised on purpose           500

The domain raises the class of its gRPC code with a reason of its contract's `ErrorReason`; one interceptor renders it
as google.rpc.Status with exactly one ErrorInfo.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

DOMAIN: Final = "skyhigh"
# Details travel as one header, in base64. gRPC peers may refuse metadata from 8 KiB on, so that a longer list of wrong
# fields would reach the caller as a server error.
LARGEST_FIELD_LIST_BYTES: Final = 5000


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One wrong field: its path in the request, what is wrong, and the id of the rule that says so."""

    field: str
    description: str
    rule: str = ""


class Refusal(Exception):
    """A refused call: gRPC code by class, reason and metadata by value. The message is for people."""

    code: ClassVar[grpc.StatusCode]

    def __init__(
        self,
        reason: str,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        fields: Sequence[FieldViolation] = (),
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds
        self.fields = tuple(fields)

    def status(self) -> status_pb2.Status:
        """Returns the google.rpc.Status that goes on the wire."""
        details: list[Message] = [
            error_details_pb2.ErrorInfo(reason=self.reason, domain=DOMAIN, metadata=self.metadata)
        ]
        if self.fields:
            bad_request = error_details_pb2.BadRequest()
            for listed, violation in enumerate(self.fields):
                bad_request.field_violations.add(
                    field=violation.field, description=violation.description, reason=violation.rule
                )
                if listed and bad_request.ByteSize() > LARGEST_FIELD_LIST_BYTES:
                    del bad_request.field_violations[-1]
                    rest = len(self.fields) - listed
                    bad_request.field_violations.add(
                        field="request", description=f"{rest} more fields are wrong; correct the listed ones first"
                    )
                    break
            details.append(bad_request)
        if self.retry_after_seconds is not None:
            delay = duration_pb2.Duration()
            delay.FromMilliseconds(math.ceil(self.retry_after_seconds * 1000))
            details.append(error_details_pb2.RetryInfo(retry_delay=delay))
        code: int = self.code.value[0]
        status = status_pb2.Status(code=code, message=self.message)
        for detail in details:
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        return status


class InvalidArgument(Refusal):
    """A field is malformed or out of range."""

    code = grpc.StatusCode.INVALID_ARGUMENT

    @classmethod
    def of(cls, *fields: FieldViolation) -> InvalidArgument:
        """Names the wrong fields, the first of them in the message too."""
        first = fields[0]
        return cls("INVALID_FIELD", f"{first.field}: {first.description}", fields=fields)


class FailedPrecondition(Refusal):
    """Not allowed in this state."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(Refusal):
    """Lost to somebody else or to the clock."""

    code = grpc.StatusCode.ABORTED


class AlreadyExists(Refusal):
    """There is one already, with other parameters."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Unauthenticated(Refusal):
    """No token, or one that is expired, foreign or forged; the answer does not say which.

    Methods that need no token but another proof have reasons of their own.
    """

    code = grpc.StatusCode.UNAUTHENTICATED

    def __init__(self, reason: str = "UNAUTHENTICATED", message: str = "a valid bearer token is needed") -> None:
        super().__init__(reason, message)


class PermissionDenied(Refusal):
    """The role may not call this method."""

    code = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self) -> None:
        super().__init__("PERMISSION_DENIED", "this role may not call this method")


class NotFound(Refusal):
    """Missing, or somebody else's: the same answer."""

    code = grpc.StatusCode.NOT_FOUND


class ResourceExhausted(Refusal):
    """Too many; `retry_after_seconds` says when it may work again."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(Refusal):
    """Out of time; a change may have happened, and a repeat with the same key tells."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__("DEADLINE_EXCEEDED", "the call ran out of time")


class Unavailable(Refusal):
    """A part is down; nothing changed."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str = "a part is down, try again") -> None:
        super().__init__("DEPENDENCY_UNAVAILABLE", message, retry_after_seconds=1)


class Internal(Refusal):
    """A defect of ours; the text is fixed, so that nothing leaks."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self) -> None:
        super().__init__("INTERNAL", "internal error")
