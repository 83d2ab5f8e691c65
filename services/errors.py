"""Refusals: the errors that a service returns to its callers.

    Refusal
    ├── InvalidArgument      a field is malformed or out of range                400
    ├── FailedPrecondition   not possible in this state                          400
    ├── Aborted              another caller was faster, or a time limit passed   409
    ├── AlreadyExists        same key, other parameters                          409
    ├── Unauthenticated      no token, or a bad one                              401
    ├── PermissionDenied     the role may not call this method                   403
    ├── NotFound             missing, or another principal's                     404
    ├── ResourceExhausted    too many, with the time to wait                     429
    ├── DeadlineExceeded     out of time                                         504
    ├── Unavailable          a part is down, with the time to wait               503
    └── Internal             a defect of ours, never raised on purpose           500

Service code raises the class of the gRPC code with a reason of its contract's `ErrorReason`. The guard in
`services/interceptors.py` renders it as google.rpc.Status with exactly one ErrorInfo.
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
# Error details are sent as one base64 header. gRPC peers may refuse metadata of 8 KiB or more; a longer list of wrong
# fields would then reach the caller as a server error.
LARGEST_FIELD_LIST_BYTES: Final = 5000
# The edge refuses with the same two texts. The first does not say what is wrong with the token.
NOT_AUTHENTICATED: Final = "the bearer token is missing or not valid; send a valid token"
DEADLINE_PASSED: Final = (
    "the deadline passed before the call completed; retry with the same idempotency key, so that a change happens "
    "only once"
)


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """A wrong field: its path in the request, what is wrong, and the rule's id."""

    field: str
    description: str
    rule: str = ""


class Refusal(Exception):
    """A refused call. Its class decides the gRPC code; the message is for people."""

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
        """Returns the google.rpc.Status that the caller receives."""
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
        """Returns a refusal that lists the wrong fields; its message names the first one."""
        first = fields[0]
        return cls("INVALID_FIELD", f"{first.field}: {first.description}", fields=fields)


def missing(resource: str) -> str:
    """Returns the message for a resource that does not exist or has another owner; it does not say which."""
    return f"{resource} not found: it does not exist or belongs to another owner; check its id and your token"


class FailedPrecondition(Refusal):
    """The resource's state does not permit the call."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class Aborted(Refusal):
    """Another caller was faster, or a time limit passed."""

    code = grpc.StatusCode.ABORTED


class AlreadyExists(Refusal):
    """The resource or idempotency key exists with other parameters."""

    code = grpc.StatusCode.ALREADY_EXISTS


class Unauthenticated(Refusal):
    """The call has no token, or one that is expired, foreign or forged.

    The error does not say which. Methods that need another proof instead of a token have reasons of their own.
    """

    code = grpc.StatusCode.UNAUTHENTICATED

    def __init__(self, reason: str = "UNAUTHENTICATED", message: str = NOT_AUTHENTICATED) -> None:
        super().__init__(reason, message)


class PermissionDenied(Refusal):
    """The role may not call this method."""

    code = grpc.StatusCode.PERMISSION_DENIED

    def __init__(self) -> None:
        super().__init__(
            "PERMISSION_DENIED", "the role of your token may not call this method; use a token of another role"
        )


class NotFound(Refusal):
    """The resource is missing or has another owner; both get the same error."""

    code = grpc.StatusCode.NOT_FOUND


class ResourceExhausted(Refusal):
    """The caller used up a limit.

    `retry_after_seconds` says when a retry may succeed.
    """

    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class DeadlineExceeded(Refusal):
    """The call ran out of time.

    Its change may have happened; a retry with the same key finds out.
    """

    code = grpc.StatusCode.DEADLINE_EXCEEDED

    def __init__(self) -> None:
        super().__init__("DEADLINE_EXCEEDED", DEADLINE_PASSED)


class Unavailable(Refusal):
    """A part is down. Nothing changed."""

    code = grpc.StatusCode.UNAVAILABLE

    def __init__(self, message: str = "a server that the call needs is unavailable; retry") -> None:
        super().__init__("DEPENDENCY_UNAVAILABLE", message, retry_after_seconds=1)


class Internal(Refusal):
    """A defect of ours. The text is fixed, so that it reveals nothing."""

    code = grpc.StatusCode.INTERNAL

    def __init__(self) -> None:
        super().__init__("INTERNAL", "internal error")
