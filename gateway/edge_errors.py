"""What the edge answers by itself, before or instead of a service, in the one shape of all errors."""

from __future__ import annotations

from dataclasses import dataclass

from google.rpc import code_pb2

ENVOY_SAYS = "%LOCAL_REPLY_BODY%"
# As the services say it: not what is wrong with the token.
NOT_AUTHENTICATED = "a valid bearer token is needed"


@dataclass(frozen=True, slots=True)
class EdgeError:
    """One kind of answer as google.rpc.Status."""

    when: str
    """A CEL expression over Envoy's answer."""
    code: int
    """google.rpc.Code."""
    reason: str
    """A value of `skyhigh.gateway.v1.ErrorReason`."""
    message: str
    """ENVOY_SAYS where Envoy's own words help the caller and tell nothing of what is behind the edge."""
    native_code: int | None = None
    """The code for native gRPC, where HTTP's meaning of the status is another."""
    status: int | None = None
    """The HTTP status, where Envoy's own would mislead."""
    retry_after_seconds: int | None = None
    """How long a caller should wait, where a repeat can help."""


# The first line that matches counts, so that the special come before the general.
EDGE_ERRORS = (
    # Envoy says 403 to a token that was made for somebody else; to its bearer it is a bad token like any other.
    EdgeError(
        "response.code_details.startsWith('jwt_authn_access_denied')",
        code_pb2.UNAUTHENTICATED,
        "UNAUTHENTICATED",
        NOT_AUTHENTICATED,
        status=401,
    ),
    EdgeError(
        "response.code_details == 'lua_response' && response.code == 429",
        code_pb2.RESOURCE_EXHAUSTED,
        "BLOCKED",
        "this caller did what nobody does who wants a seat; it is let in again after a while",
    ),
    EdgeError(
        "response.code == 429",
        code_pb2.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        "too many calls; go on after a while",
    ),
    EdgeError(
        "request.url_path == '/healthz'",
        code_pb2.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "a part behind the gateway is not well",
        retry_after_seconds=1,
    ),
    EdgeError(
        "response.code_details == 'path_normalization_failed'",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "path: no slash, backslash or NUL may hide behind a percent sign",
    ),
    EdgeError(
        "response.code_details.contains('unexpected_underscore')",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "header: no underscore may stand in the name of a header",
    ),
    EdgeError(
        "response.code == 431",
        code_pb2.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
        "the headers are too large or too many",
    ),
    EdgeError(
        "response.code_details.startsWith('http') || response.code_details == 'missing_host_header'",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request: not well-formed HTTP",
        # Envoy says 501 to a transfer coding that nobody has.
        status=400,
    ),
    EdgeError("response.code == 400", code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", ENVOY_SAYS),
    EdgeError(
        "response.code == 404",
        code_pb2.NOT_FOUND,
        "UNKNOWN_PATH",
        "there is nothing at this path",
        native_code=code_pb2.UNIMPLEMENTED,
    ),
    EdgeError(
        "response.code == 405",
        code_pb2.UNIMPLEMENTED,
        "METHOD_NOT_ALLOWED",
        "this path does not take this method",
    ),
    EdgeError(
        "response.code == 413",
        code_pb2.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
        "the body is larger than 64 KiB, or 512 KiB for a manifest",
    ),
    EdgeError(
        "response.code == 503",
        code_pb2.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the service did not answer; a repeat with the same request_id has its effect only once",
        retry_after_seconds=1,
    ),
    # 408: the caller took too long to send. 504: the service took too long to answer.
    EdgeError(
        "response.code in [408, 504]",
        code_pb2.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the call ran out of time",
    ),
    EdgeError("response.code >= 500", code_pb2.INTERNAL, "INTERNAL", "internal error"),
    EdgeError(
        "response.code >= 400",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request: not acceptable",
    ),
)
