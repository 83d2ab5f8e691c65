"""The errors that the edge returns itself, in the format of all errors.

The edge returns them before it calls a service, or instead of a service's response.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.rpc import code_pb2

ENVOY_SAYS = "%LOCAL_REPLY_BODY%"
# The message of the services: it does not say what is wrong with the token.
NOT_AUTHENTICATED = "a valid bearer token is needed"


@dataclass(frozen=True, slots=True)
class EdgeError:
    """One kind of error response, as google.rpc.Status."""

    when: str
    """A CEL expression over Envoy's own response; the error applies if it is true."""
    code: int
    """google.rpc.Code."""
    reason: str
    """A value of `skyhigh.gateway.v1.ErrorReason`."""
    message: str
    """Text for people; ENVOY_SAYS if Envoy's own text helps the caller and does not reveal what is behind the edge."""
    native_code: int | None = None
    """The google.rpc.Code for native gRPC, if the meaning of the HTTP status differs there."""
    status: int | None = None
    """The HTTP status, if Envoy's own status would mislead the caller."""
    retry_after_seconds: int | None = None
    """Seconds after which the caller should retry, if a retry can help."""


# The first match counts, so specific errors come before general ones.
EDGE_ERRORS = (
    # Envoy answers 403 to a token for another audience; for its bearer it is an invalid token like any other, so 401.
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
        "this caller is blocked for abuse; retry after the time in Retry-After",
    ),
    EdgeError(
        "response.code == 429",
        code_pb2.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        "too many calls; retry later",
    ),
    EdgeError(
        "request.url_path == '/healthz'",
        code_pb2.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "a service behind the gateway is unhealthy",
        retry_after_seconds=1,
    ),
    EdgeError(
        "response.code_details == 'path_normalization_failed'",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "path: a percent-encoded slash, backslash or NUL is not allowed",
    ),
    EdgeError(
        "response.code_details.contains('unexpected_underscore')",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "header: an underscore in the name of a header is not allowed",
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
        # Envoy answers 501 to a transfer coding that it does not support.
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
        "this path does not support this method",
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
        "the service did not respond; a retry with the same request_id takes effect only once",
        retry_after_seconds=1,
    ),
    # 408: the caller took too long to send the request. 504: the service took too long to respond.
    EdgeError(
        "response.code in [408, 504]",
        code_pb2.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the call exceeded its deadline",
    ),
    EdgeError("response.code >= 500", code_pb2.INTERNAL, "INTERNAL", "internal error"),
    EdgeError(
        "response.code >= 400",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request: not acceptable",
    ),
)
