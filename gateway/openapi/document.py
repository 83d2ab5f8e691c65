"""Builds the OpenAPI document of the API from the compiled protos."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway.openapi.api import Api
from gateway.openapi.operations import IDEMPOTENCY_KEY, IDEMPOTENCY_KEY_PARAMETER, Operations
from gateway.openapi.refusals import RETRY_AFTER, STATUS
from gateway.openapi.rules import Schema
from gateway.upstreams import UPSTREAMS

_TITLE: Final = "SkyHigh"
_VERSION: Final = "v1"
_DESCRIPTION: Final = """\
Flights, seats, bookings, check-in, waitlists and payments of an airline. Every operation is an RPC too: the same \
address speaks gRPC and gRPC-Web.

**Tokens.** Most operations need a bearer token. `POST /v1/sessions` gives one to a passenger for a record locator and \
a last name, `POST /v1/sessions/guest` one to a customer who wants to book.

**Repeats.** Every change takes an idempotency key, a UUID4, as `requestId` or as the header `Idempotency-Key`: a \
repeat with the same key gets the first answer again for at least 24 hours, and changes nothing.

**Refusals** are a google.rpc.Status with exactly one ErrorInfo, whose `reason` says why. Reasons may be added. Before \
any operation is reached the edge may answer 404 `UNKNOWN_PATH`, 405 `METHOD_NOT_ALLOWED`, 408 `DEADLINE_EXCEEDED` \
and 431 `REQUEST_TOO_LARGE`.

**JSON** is that of Protocol Buffers: a field that is `null` is as if it were missing, 64-bit numbers are strings, and \
unknown fields of a body are ignored. Unknown query parameters are refused.

**Watches** are server-sent events. They begin with what is now, and end when the reader goes.
"""


def build(api: FileDescriptorSet) -> Schema:
    """Returns the document; `api` must include the comments of the protos.

    Raises ValueError if a proto has a rule, a body or a parameter that the document cannot describe, or an RPC without
    a declaration. Raises KeyError if RAW_ANSWERS does not describe the bytes of a response, or if a required field has
    no example.
    """
    operations = Operations(Api(api), UPSTREAMS)
    paths = operations.paths()
    return {
        "openapi": "3.1.0",
        "info": {"title": _TITLE, "version": _VERSION, "description": _DESCRIPTION},
        "servers": [{"url": "/"}],
        "tags": operations.tags(),
        "paths": paths,
        "components": {
            "schemas": {**dict(sorted(operations.schemas.components.items())), "Status": STATUS},
            "parameters": {IDEMPOTENCY_KEY: IDEMPOTENCY_KEY_PARAMETER},
            "responses": dict(sorted(operations.refusals.responses.items())),
            "headers": {"RetryAfter": RETRY_AFTER},
            "examples": dict(sorted(operations.refusals.examples.items())),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def write(api: FileDescriptorSet, path: Path) -> None:
    """Writes the document as JSON."""
    path.write_text(json.dumps(build(api), ensure_ascii=False, indent=1) + "\n")
