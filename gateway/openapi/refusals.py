"""The refusals of each operation: HTTP statuses and reasons.

They are read from the protos' comments.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.rpc import code_pb2

from gateway.openapi.api import Api, short_name
from gateway.openapi.callers import ROLES
from gateway.openapi.rules import Schema
from services.rpcs import Effect, Rpc

GATEWAY: Final = "skyhigh.gateway.v1.GatewayAdmin"
# The HTTP status that the transcoder returns for a gRPC code.
_STATUSES: Final = {
    "INVALID_ARGUMENT": "400",
    "FAILED_PRECONDITION": "400",
    "UNAUTHENTICATED": "401",
    "PERMISSION_DENIED": "403",
    "NOT_FOUND": "404",
    "UNIMPLEMENTED": "405",
    "ABORTED": "409",
    "ALREADY_EXISTS": "409",
    "RESOURCE_EXHAUSTED": "429",
    "INTERNAL": "500",
    "UNAVAILABLE": "503",
    "DEADLINE_EXCEEDED": "504",
}
# Reasons for which any operation may refuse: those of its service, and those of the edge.
_SERVICE: Final = ("INVALID_FIELD", "INTERNAL", "DEPENDENCY_UNAVAILABLE", "DEADLINE_EXCEEDED")
_EDGE: Final = ("RATE_LIMITED", "BLOCKED")
_WAITED_FOR: Final = frozenset({"429", "503"})


@dataclass(frozen=True, slots=True)
class Reason:
    """A value of a package's ErrorReason."""

    name: str
    component: str
    """Name of its example among the components."""
    code: str
    """The name of a google.rpc.Code."""
    status: str
    """The HTTP status."""
    text: str
    metadata: dict[str, str] = field(default_factory=dict)
    """The example metadata in its comment."""

    @classmethod
    def read(cls, package: str, name: str, comment: str) -> Reason:
        """Reads `NOT_FOUND. There is no such hold. {"hold_id": "…"}`.

        Raises KeyError if the gRPC code is missing or unknown.
        """
        head, _, text = comment.partition(".")
        code, *http = re.split(r", HTTP | or ", head.strip())
        metadata = re.search(r"\{.*\}\s*$", text, re.DOTALL)
        return cls(
            name=name,
            component=f"{short_name(f'{package}.{name}')}",
            code=code,
            status=http[0] if http else _STATUSES[code],
            text=text[: metadata.start() if metadata else None].strip(),
            metadata=json.loads(metadata[0]) if metadata else {},
        )

    @property
    def example(self) -> dict[str, Any]:
        """Returns an example response with this reason."""
        info = {"@type": _type("ErrorInfo"), "reason": self.name, "domain": "skyhigh", "metadata": self.metadata}
        details: list[dict[str, Any]] = [info]
        if self.name == "INVALID_FIELD":
            violation = {"field": "seat_number", "description": "does not match the pattern"}
            details.append({"@type": _type("BadRequest"), "fieldViolations": [violation]})
        if self.status in _WAITED_FOR:
            details.append({"@type": _type("RetryInfo"), "retryDelay": "1s"})
        status = {"code": code_pb2.Code.Value(self.code), "message": self.text or self.name, "details": details}
        return {"value": status}


class Refusals:
    """Builds the refusal responses of operations, and their components."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._edge = self._reasons(api.service(GATEWAY))
        self.examples: dict[str, Any] = {}
        """The examples of all reasons used so far, by name."""
        self.responses: dict[str, Schema] = {}
        """The responses that many operations share, by name."""

    def answers(self, method: MethodDescriptor, rpc: Rpc, *, body: bool) -> Schema:
        """Returns the refusal responses of an operation, by HTTP status.

        `body` says that it has a body.
        """
        own = self._reasons(method.containing_service)
        common = list(self._common(method, rpc, body=body))
        named = [own[name] for name in self._named(method) if name not in _SERVICE]
        answers: Schema = {}
        for status in sorted({reason.status for reason in (*common, *named)}):
            reasons = [reason for reason in (*common, *named) if reason.status == status]
            answers[status] = self._answer(reasons)
            if not any(reason in named for reason in reasons):
                name = short_name(f"{method.containing_service.file.package}.{status}")
                self.responses[name] = answers[status]
                answers[status] = {"$ref": f"#/components/responses/{name}"}
        return answers

    def _common(self, method: MethodDescriptor, rpc: Rpc, *, body: bool) -> Iterator[Reason]:
        own = self._reasons(method.containing_service)
        yield from (own[name] for name in _SERVICE)
        yield from (self._edge[name] for name in _EDGE)
        if not rpc.public:
            yield own["UNAUTHENTICATED"]
        if not (rpc.public or rpc.roles.issuperset(ROLES)):
            yield own["PERMISSION_DENIED"]
        if rpc.effect is Effect.MUTATION:
            yield own["IDEMPOTENCY_KEY_REUSED"]
        if body:
            yield self._edge["REQUEST_TOO_LARGE"]

    def _named(self, method: MethodDescriptor) -> Iterator[str]:
        """Yields the reasons after `Refusals:` in the RPC's comment.

        Also yields the reasons of RPCs that are named there by `as OtherRpc`.
        """
        own = self._reasons(method.containing_service)
        siblings = method.containing_service.methods_by_name
        _, _, named = self._api.comment(method.full_name).partition("Refusals:")
        names = dict.fromkeys(word for word in re.findall(r"[A-Z_]+", named) if word in own)
        for others in re.findall(r"\bas ([A-Z]\w+(?: and [A-Z]\w+)*)", named):
            for other in others.split(" and "):
                names |= dict.fromkeys(self._named(siblings[other]))
        yield from names

    def _reasons(self, service: ServiceDescriptor) -> dict[str, Reason]:
        package = service.file.package
        return {name: Reason.read(package, name, comment) for name, comment in self._api.reasons(service).items()}

    def _answer(self, reasons: list[Reason]) -> Schema:
        self.examples |= {reason.component: reason.example for reason in reasons}
        status = reasons[0].status
        content: Schema = {
            "schema": {"$ref": "#/components/schemas/Status"},
            "examples": {reason.name: {"$ref": f"#/components/examples/{reason.component}"} for reason in reasons},
        }
        answer: Schema = {
            "description": "\n".join(f"- `{reason.name}`: {reason.text}".removesuffix(": ") for reason in reasons),
            "content": {"application/json": content},
        }
        if status in _WAITED_FOR:
            answer["headers"] = {"Retry-After": {"$ref": "#/components/headers/RetryAfter"}}
        return answer


RETRY_AFTER: Final[Schema] = {
    "description": "How many seconds to wait, where waiting helps; RetryInfo says the same.",
    "schema": {"type": "integer", "minimum": 1},
}


def _type(name: str) -> str:
    return f"type.googleapis.com/google.rpc.{name}"


def _detail(name: str, description: str, properties: Schema, required: list[str]) -> Schema:
    return {
        "type": "object",
        "title": name,
        "description": description,
        "properties": {"@type": {"const": _type(name)}, **properties},
        "required": ["@type", *required],
    }


STATUS: Final[Schema] = {
    "type": "object",
    "description": "google.rpc.Status: why a call was refused. Switch on the reason, never on the message.",
    "properties": {
        "code": {"type": "integer", "minimum": 1, "maximum": 16, "description": "google.rpc.Code."},
        "message": {"type": "string", "description": "For people."},
        "details": {
            "type": "array",
            "minItems": 1,
            "items": {
                "oneOf": [
                    _detail(
                        "ErrorInfo",
                        "Exactly one of each refusal.",
                        {
                            "reason": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]+$"},
                            "domain": {"const": "skyhigh"},
                            "metadata": {"type": "object", "additionalProperties": {"type": "string"}},
                        },
                        ["reason", "domain", "metadata"],
                    ),
                    _detail(
                        "BadRequest",
                        "The wrong fields, by their names in the proto.",
                        {
                            "fieldViolations": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "object",
                                    "properties": {
                                        "field": {"type": "string"},
                                        "description": {"type": "string"},
                                        "reason": {
                                            "type": "string",
                                            "description": "The rule's id.",
                                        },
                                    },
                                    "required": ["field", "description"],
                                },
                            }
                        },
                        ["fieldViolations"],
                    ),
                    _detail(
                        "RetryInfo",
                        "How long to wait before the call is repeated.",
                        {"retryDelay": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?s$"}},
                        ["retryDelay"],
                    ),
                ]
            },
        },
    },
    "required": ["code", "message", "details"],
}
