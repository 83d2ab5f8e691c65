"""The RPCs as operations of OpenAPI."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from gateway.openapi import rules
from gateway.openapi.api import Api, Binding
from gateway.openapi.callers import in_words
from gateway.openapi.refusals import Refusals
from gateway.openapi.rules import Schema
from gateway.openapi.schemas import Schemas
from gateway.upstreams import Upstream
from services import rpcs
from services.rpcs import Effect, Rpc

HTTP_BODY: Final = "google.api.HttpBody"
# The edge accepts only ASCII in paths and queries.
ASCII: Final = r"^[\u0000-\u007f]*$"


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """The response of an RPC that returns bytes."""

    content_type: str
    message: str | None = None
    """Full name of the message whose JSON the bytes are; None if they are not JSON."""


RAW_ANSWERS: Final[Mapping[str, RawAnswer]] = {
    "GetSeatMapJson": RawAnswer("application/json", "skyhigh.seat.v1.SeatMap"),
    "GetBoardingPassSvg": RawAnswer("image/svg+xml"),
    "GetBoardingPassPng": RawAnswer("image/png"),
}
# The headers that an RPC with a raw body reads, each with its description.
RAW_REQUEST_HEADERS: Final[Mapping[str, Mapping[str, str]]] = {
    "ReceiveWebhook": {
        "webhook-id": "The delivery's id, the same in each repeat.",
        "webhook-timestamp": "When it was sent, in seconds since 1970.",
        "webhook-signature": "`v1,` and the signature in base64; several are separated by blanks.",
    }
}
IDEMPOTENCY_KEY: Final = "IdempotencyKey"
IDEMPOTENCY_KEY_PARAMETER: Final[Schema] = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "A UUID4 that makes a repeat safe. The same as `requestId` in the body, where both are sent.",
    "schema": {"type": "string", "format": "uuid"},
}


class Operations:
    """Builds the operations, and the components that they refer to."""

    def __init__(self, api: Api, upstreams: tuple[Upstream, ...]) -> None:
        self._api = api
        self._upstreams = upstreams
        self.schemas = Schemas(api, answers=[_answered(api, method) for _, method, _ in self._exposed()])
        self.refusals = Refusals(api)

    def paths(self) -> Schema:
        """Returns all operations, by path and HTTP method."""
        paths: Schema = {}
        for upstream, method, rpc in self._exposed():
            for number, binding in enumerate(self._api.bindings(method)):
                operation = self._operation(upstream, method, rpc, binding)
                if number:
                    operation["operationId"] += str(number + 1)
                paths.setdefault(binding.path, {})[binding.verb.lower()] = operation
        return paths

    def tags(self) -> list[Schema]:
        """Returns one tag for each service."""
        return [{"name": tag_of(each), "description": self._api.comment(each.name)} for each in self._upstreams]

    def _exposed(self) -> Iterator[tuple[Upstream, MethodDescriptor, Rpc]]:
        for upstream in self._upstreams:
            for method in self._api.service(upstream.name).methods:
                rpc = rpcs.of_method(method)
                if rpc.exposed:
                    yield upstream, method, rpc

    def _operation(self, upstream: Upstream, method: MethodDescriptor, rpc: Rpc, binding: Binding) -> Schema:
        summary, description = _first_sentence(self._api.comment(method.full_name))
        # With a body, the schema of the request already has these sentences.
        between_fields = () if binding.body else rules.message_sentences(method.input_type)
        operation: Schema = {
            "operationId": method.name,
            "tags": [tag_of(upstream)],
            "summary": summary,
            "description": "\n\n".join(filter(None, (description, *between_fields, in_words(rpc)))),
            "security": [] if rpc.public else [{"bearer": []}],
        }
        if parameters := list(self._parameters(method, rpc, binding)):
            operation["parameters"] = parameters
        if body := self._body(method, binding):
            operation["requestBody"] = body
        refusals = self.refusals.answers(method, rpc, body=binding.body)
        operation["responses"] = {"200": self._answer(method, rpc), **refusals}
        if method.GetOptions().deprecated:
            operation["deprecated"] = True
        return operation

    def _parameters(self, method: MethodDescriptor, rpc: Rpc, binding: Binding) -> Iterator[Schema]:
        fields = method.input_type.fields_by_name
        for name in binding.path_fields:
            yield self._parameter(fields[name], "path", name)
        for name, text in RAW_REQUEST_HEADERS.get(method.name, {}).items():
            yield {"name": name, "in": "header", "required": True, "description": text, "schema": {"type": "string"}}
        if rpc.effect is Effect.MUTATION:
            yield {"$ref": f"#/components/parameters/{IDEMPOTENCY_KEY}"}
        for field in method.input_type.fields:
            if not binding.body and field.name not in binding.path_fields:
                yield self._parameter(field, "query", field.json_name)

    def _parameter(self, field: FieldDescriptor, place: str, name: str) -> Schema:
        schema = self.schemas.request_field(field)
        if "$ref" in schema:
            raise ValueError(f"{field.full_name}: a message is no parameter here")
        assert field.containing_type is not None
        if schema.get("type") == "string" and not {"format", "enum"} & set(schema):
            # A pattern that lists allowed characters allows only ASCII; one that excludes characters needs ASCII, too.
            pattern = schema.setdefault("pattern", ASCII)
            if "[^" in pattern:
                schema["allOf"] = [{"pattern": ASCII}]
        required = place == "path" or field.json_name in self.schemas.required(field.containing_type)
        about: Schema = {key: schema.pop(key) for key in ("description", "deprecated") if key in schema}
        if required and "examples" in schema:
            # Swagger UI fills the form with `example`.
            about["example"] = schema.pop("examples")[0]
        parameter: Schema = {"name": name, "in": place, **about, "schema": schema}
        return parameter | ({"required": True} if required else {})

    def _body(self, method: MethodDescriptor, binding: Binding) -> Schema | None:
        if not binding.body:
            return None
        if method.input_type.full_name == HTTP_BODY:
            schema: Schema = {"type": "object", "description": "Taken byte for byte, as it was signed."}
            return {"required": True, "content": {"application/json": {"schema": schema}}}
        request, elsewhere = method.input_type, binding.path_fields
        needed = self.schemas.required(request) - {request.fields_by_name[name].json_name for name in elsewhere}
        content = {
            "schema": self.schemas.request(request, without=elsewhere),
            "example": self.schemas.example(request, without=elsewhere),
        }
        return {"required": bool(needed), "content": {"application/json": content}}

    def _answer(self, method: MethodDescriptor, rpc: Rpc) -> Schema:
        if method.output_type.full_name == HTTP_BODY:
            raw = RAW_ANSWERS[method.name]
            # A picture needs no schema: the content type describes it.
            content: Schema = {"schema": self.schemas.answer(self._api.message(raw.message))} if raw.message else {}
            return {"description": "OK", "content": {raw.content_type: content}}
        schema = self.schemas.answer(method.output_type)
        if rpc.effect is Effect.STREAM:
            data = {"type": "string", "contentMediaType": "application/json", "contentSchema": schema}
            event = {"type": "object", "properties": {"data": data}, "required": ["data"]}
            text = "Server-sent events without end. The schema is that of each event."
            return {"description": text, "content": {"text/event-stream": {"schema": event}}}
        return {"description": "OK", "content": {"application/json": {"schema": schema}}}


def tag_of(upstream: Upstream) -> str:
    """Returns the tag under which the operations of a service are listed."""
    return upstream.name.rpartition(".")[2]


def _answered(api: Api, method: MethodDescriptor) -> Descriptor:
    raw = RAW_ANSWERS.get(method.name)
    return api.message(raw.message) if raw and raw.message else method.output_type


def _first_sentence(comment: str) -> tuple[str, str]:
    """Returns the first sentence without its full stop, and the rest."""
    first, *rest = re.split(r"(?<=\.)\s+", comment, maxsplit=1)
    return first.removesuffix("."), "".join(rest)
