"""The errors that the edge returns itself, in the format of all errors.

The edge returns them before it calls a service, or instead of a service's response.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.rpc import code_pb2

from services.errors import DEADLINE_PASSED, NOT_AUTHENTICATED

ENVOY_SAYS = "%LOCAL_REPLY_BODY%"
# Envoy's reasons for a reset of a request that the service has not received.
_NOT_SENT = "connection_failure|connection_timeout|refused_stream|overflow"


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
        "your token or network address is blocked for abuse of the API; retry after the given delay",
    ),
    EdgeError(
        "response.code == 429",
        code_pb2.RESOURCE_EXHAUSTED,
        "RATE_LIMITED",
        "too many calls; retry after the given delay",
    ),
    EdgeError(
        "request.url_path == '/healthz'",
        code_pb2.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "a service behind the gateway is unhealthy; retry",
        retry_after_seconds=1,
    ),
    EdgeError(
        "response.code_details == 'path_normalization_failed'",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "path: must not contain a percent-encoded slash, backslash or NUL",
    ),
    EdgeError(
        "response.code_details.contains('unexpected_underscore')",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "header: must not have an underscore in its name",
    ),
    EdgeError(
        "response.code == 431",
        code_pb2.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
        "the headers are too large or too many; send at most 64 headers and 12 KiB",
    ),
    EdgeError(
        "response.code_details.startsWith('http') || response.code_details == 'missing_host_header'",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request: must be well-formed HTTP",
        # Envoy answers 501 to a transfer coding that it does not support.
        status=400,
    ),
    EdgeError("response.code == 400", code_pb2.INVALID_ARGUMENT, "INVALID_FIELD", ENVOY_SAYS),
    EdgeError(
        "response.code == 404",
        code_pb2.NOT_FOUND,
        "UNKNOWN_PATH",
        "no such path; the OpenAPI document lists the paths",
        native_code=code_pb2.UNIMPLEMENTED,
    ),
    EdgeError(
        "response.code == 405",
        code_pb2.UNIMPLEMENTED,
        "METHOD_NOT_ALLOWED",
        "this path does not support this HTTP method; the header Allow lists the supported ones",
    ),
    EdgeError(
        "response.code == 413",
        code_pb2.INVALID_ARGUMENT,
        "REQUEST_TOO_LARGE",
        "the body is too large; send at most 64 KiB, or 512 KiB for a manifest",
    ),
    # The connection broke after the request was sent, so the call may have had its effect (rule 11.15).
    EdgeError(
        "response.code == 503 && response.code_details.startsWith('upstream_reset')"
        f" && !response.code_details.matches('{_NOT_SENT}')",
        code_pb2.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        "the connection to the service broke and the outcome is unknown; retry with the same idempotency key",
        status=504,
        retry_after_seconds=1,
    ),
    EdgeError(
        "response.code == 503",
        code_pb2.UNAVAILABLE,
        "DEPENDENCY_UNAVAILABLE",
        "the service is down; nothing was changed; retry",
        retry_after_seconds=1,
    ),
    # 408: the caller took too long to send the request. 504: the service took too long to respond.
    EdgeError(
        "response.code in [408, 504]",
        code_pb2.DEADLINE_EXCEEDED,
        "DEADLINE_EXCEEDED",
        DEADLINE_PASSED,
    ),
    EdgeError("response.code >= 500", code_pb2.INTERNAL, "INTERNAL", "internal error"),
    EdgeError(
        "response.code >= 400",
        code_pb2.INVALID_ARGUMENT,
        "INVALID_FIELD",
        "request: can't be processed; check its method, path, headers and body",
    ),
)
