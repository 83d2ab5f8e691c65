"""Converts messages to JSON Schema, as the transcoder reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from google.api import field_behavior_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway.openapi import rules
from gateway.openapi.api import Api, short_name
from gateway.openapi.examples import EXAMPLES
from gateway.openapi.rules import Schema

# In JSON a 64-bit number is a string, because JavaScript would round it. Every number of 18 digits fits into 64 bits.
_INT64: Final[Schema] = {"type": "string", "pattern": "^-?[0-9]{1,18}$", "format": "int64"}
_NOT_NEGATIVE_INT64: Final[Schema] = {"type": "string", "pattern": "^[0-9]{1,18}$", "format": "int64"}
_SCALARS: Final[Mapping[int, Schema]] = {
    FieldDescriptor.TYPE_BOOL: {"type": "boolean"},
    FieldDescriptor.TYPE_STRING: {"type": "string"},
    FieldDescriptor.TYPE_INT32: {"type": "integer", "format": "int32"},
    FieldDescriptor.TYPE_INT64: _INT64,
}
_INT32_RANGE: Final[Schema] = {"minimum": -(2**31), "maximum": 2**31 - 1}
# Messages that JSON writes as one string, not as an object with their fields.
_WELL_KNOWN: Final[Mapping[str, Schema]] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,9}(\.[0-9]{1,9})?s$", "examples": ["3600s"]},
}


class Schemas:
    """The schemas of all messages in requests and responses.

    Each is a component; the methods return references to them.
    """

    def __init__(self, api: Api, *, answers: Iterable[Descriptor]) -> None:
        self._api = api
        self._answered = {message.full_name for answer in answers for message in _reachable(answer)}
        self.components: dict[str, Schema] = {}

    def answer(self, message: Descriptor) -> Schema:
        """Returns a reference to a message in responses.

        Fields without presence are required, because the edge always writes them.
        """
        name = short_name(message.full_name)
        if name not in self.components:
            self.components[name] = schema = self._described(message)
            # Input-only fields are never in a response.
            fields = [field for field in message.fields if not _has_behaviour(field, "INPUT_ONLY")]
            schema["properties"] = {field.json_name: self._answer_field(field) for field in fields}
            if always := [field.json_name for field in fields if not field.has_presence]:
                schema["required"] = always
        return _reference(name)

    def request(self, message: Descriptor, *, without: Iterable[str] = ()) -> Schema:
        """Returns a reference to a message in requests.

        The schema leaves out the fields in `without`, which are in the path.
        """
        name = short_name(message.full_name) + ("Input" if message.full_name in self._answered else "")
        if name not in self.components:
            self.components[name] = schema = self._described(message)
            fields = [field for field in message.fields if field.name not in without]
            schema["properties"] = {field.json_name: self.request_field(field) for field in fields}
            needed = self.required(message)
            if required := [field.json_name for field in fields if field.json_name in needed]:
                schema["required"] = required
            _append(schema, rules.message_sentences(message))
        return _reference(name)

    def example(self, message: Descriptor, *, without: Iterable[str] = ()) -> dict[str, Any]:
        """Returns a realistic request.

        It has the required fields, and all fields that have an example.
        """
        needed = self.required(message)
        found: dict[str, Any] = {}
        for field in message.fields:
            if field.name in without:
                continue
            value = _example(field)
            if value is None and field.json_name in needed:
                value = self._made_up(field)
            if value is not None:
                found[field.json_name] = value
        return found

    def _made_up(self, field: FieldDescriptor) -> object:
        if field.message_type is not None:
            example = self.example(field.message_type)
            return [example] if field.is_repeated else example
        if field.type == FieldDescriptor.TYPE_ENUM:
            return rules.enum_names(field, rules.rules_of(field))[0]
        raise KeyError(f"{field.full_name} has no example")

    @staticmethod
    def required(message: Descriptor) -> set[str]:
        """Returns the JSON names of the fields that a request cannot leave out."""
        return {message.fields_by_name[name].json_name for name in rules.required_fields(message)}

    def request_field(self, field: FieldDescriptor) -> Schema:
        """Returns the schema of a field of a request, with all its rules.

        Raises UnknownRuleError.
        """
        rule = rules.rules_of(field)
        if field.type == FieldDescriptor.TYPE_ENUM:
            value: Schema = {"type": "string", "enum": rules.enum_names(field, rule)}
        elif field.message_type is not None and field.message_type.full_name not in _WELL_KNOWN:
            value = self.request(field.message_type)
        else:
            value = self._scalar(field)
        found = rules.keywords(rule)
        if field.is_repeated:
            value = {"type": "array", **found, "items": value | found.get("items", {})}
        elif field.type == FieldDescriptor.TYPE_INT64:
            value = _int64(found)
        else:
            value |= (_INT32_RANGE if field.type == FieldDescriptor.TYPE_INT32 else {}) | found
        if (example := _example(field)) is not None:
            value["examples"] = [example]
        return self._about(field, value, rules.sentences(rule))

    def _answer_field(self, field: FieldDescriptor) -> Schema:
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value: Schema = {
                "type": "object",
                "additionalProperties": self._answer_value(field.message_type.fields_by_name["value"]),
            }
        else:
            value = self._answer_value(field)
            if field.is_repeated:
                value = {"type": "array", "items": value}
        return self._about(field, value)

    def _answer_value(self, field: FieldDescriptor) -> Schema:
        if field.type == FieldDescriptor.TYPE_ENUM:
            return self._enum(field.enum_type)
        if field.message_type is not None and field.message_type.full_name not in _WELL_KNOWN:
            return self.answer(field.message_type)
        return self._scalar(field)

    def _scalar(self, field: FieldDescriptor) -> Schema:
        return dict(_SCALARS[field.type] if field.message_type is None else _WELL_KNOWN[field.message_type.full_name])

    def _enum(self, enum: EnumDescriptor | None) -> Schema:
        assert enum is not None
        name = short_name(enum.full_name)
        if name not in self.components:
            schema: Schema = {"type": "string", "enum": [value.name for value in enum.values]}
            comments = {value.name: self._api.comment(f"{enum.full_name}.{value.name}") for value in enum.values}
            _append(schema, [self._api.comment(enum.full_name)])
            _append(schema, [f"{value}: {comment}" for value, comment in comments.items() if comment])
            self.components[name] = schema
        return _reference(name)

    def _described(self, message: Descriptor) -> Schema:
        schema: Schema = {"type": "object"}
        _append(schema, [self._api.comment(message.full_name)])
        return schema

    def _about(self, field: FieldDescriptor, schema: Schema, sentences: Iterable[str] = ()) -> Schema:
        _append(schema, [self._api.comment(field.full_name)])
        _append(schema, sentences)
        if field.GetOptions().deprecated:
            schema["deprecated"] = True
        if _has_behaviour(field, "OUTPUT_ONLY"):
            schema["readOnly"] = True
        return schema


def _example(field: FieldDescriptor) -> object:
    assert field.containing_type is not None
    return EXAMPLES.get(f"{field.containing_type.name}.{field.name}", EXAMPLES.get(field.name))


def _int64(keywords: Schema) -> Schema:
    """Returns the schema of a 64-bit number, which is a string in JSON.

    A pattern has its limits. Raises UnknownRuleError.
    """
    match keywords:
        case {"minimum": 0, **others} if not others:
            return dict(_NOT_NEGATIVE_INT64)
        case {**others} if not others:
            return dict(_INT64)
    raise rules.UnknownRuleError(f"int64: {keywords}")


def _reachable(message: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[Descriptor]:
    if message.full_name in seen:
        return
    yield message
    for field in message.fields:
        if field.message_type is not None and not _has_behaviour(field, "INPUT_ONLY"):
            yield from _reachable(field.message_type, seen | {message.full_name})


def _has_behaviour(field: FieldDescriptor, name: str) -> bool:
    behaviours = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.FieldBehavior.Value(name) in behaviours


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _append(schema: dict[str, Any], sentences: Iterable[str]) -> None:
    """Appends each sentence to the description as a paragraph."""
    paragraphs = [paragraph for paragraph in (schema.get("description", ""), *sentences) if paragraph]
    if paragraphs:
        schema["description"] = "\n\n".join(paragraphs)
