"""Converts the buf.validate rules of fields and messages to JSON Schema."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any, Final

import protovalidate
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message_factory import GetMessageClass

Schema = dict[str, Any]

# The JSON Schema keyword of each rule that has one.
_WORDS: Final = {
    "min_len": "minLength",
    "max_len": "maxLength",
    "pattern": "pattern",
    "gte": "minimum",
    "gt": "exclusiveMinimum",
    "lte": "maximum",
    "lt": "exclusiveMaximum",
    "min_items": "minItems",
    "max_items": "maxItems",
    "unique": "uniqueItems",
}
_FORMATS: Final = {"uuid": "uuid", "email": "email"}
_DATE_PATTERN: Final = "^[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])$"
# A part of a pattern with a Unicode class: a bracket expression, or the class alone.
_UNICODE_CLASS: Final = re.compile(r"\[[^\]]*\]|\\p\{\w\}")
# Python's `re` and many tools that read the document do not support Unicode classes. These ranges replace them; they
# allow slightly more.
_UNICODE_RANGES: Final = {r"\p{L}": r"A-Za-z\u00aa-\uffff", r"\p{M}": r"\u0300-\uffff", r"\p{C}": r"\u0000-\u001f"}
_WORD: Final = re.compile(r"\w+")
_COMPARED: Final = {"gt": "More than", "gte": "At least", "lt": "Less than", "lte": "At most"}


class UnknownRuleError(ValueError):
    """A proto has a rule that the document cannot express."""


def rules_of(field: FieldDescriptor) -> validate_pb2.FieldRules:
    """Returns the rules of a field; empty if it has none."""
    return field.GetOptions().Extensions[validate_pb2.field]


def keywords(rules: validate_pb2.FieldRules) -> Schema:
    """Returns the rules of one value as keywords. Raises UnknownRuleError."""
    kind = rules.WhichOneof("type")
    # `enum_names` handles the values of enums, because JSON has their names and the rules have their numbers;
    # `sentences` handles the limits of durations.
    if kind is None or kind == "duration" or (kind == "enum" and _names_only(rules.enum)):
        return {}
    found: Schema = {}
    for rule, value in getattr(rules, kind).ListFields():
        match rule.name:
            case "items":
                found["items"] = keywords(value)
            case "in":
                found["enum"] = list(value)
            case _ if rule.name in _FORMATS:
                found["format"] = _FORMATS[rule.name]
            case _ if rule.name in _WORDS:
                found[_WORDS[rule.name]] = value
            case _:
                raise UnknownRuleError(f"{kind}.{rule.name}")
    if "pattern" in found:
        if found["pattern"] == _DATE_PATTERN:
            found["format"] = "date"
        found["pattern"] = _UNICODE_CLASS.sub(lambda part: _without_unicode_classes(part[0]), found["pattern"])
    return found


def enum_names(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> list[str]:
    """Returns the names that the rules allow for an enum field, or for its items."""
    assert field.enum_type is not None
    excluded = set(rules.repeated.items.enum.not_in if field.is_repeated else rules.enum.not_in)
    return [value.name for value in field.enum_type.values if value.number not in excluded]


def sentences(rules: validate_pb2.FieldRules) -> Iterator[str]:
    """Yields a sentence for each rule that has no keyword. Raises UnknownRuleError."""
    for rule, value in rules.duration.ListFields():
        if rule.name not in _COMPARED:
            raise UnknownRuleError(f"duration.{rule.name}")
        yield f"{_COMPARED[rule.name]} {value.seconds} s."
    yield from _refusals(rules.cel)


def message_sentences(message: Descriptor) -> Iterator[str]:
    """Yields a sentence for each rule between the fields of a message.

    The sentences name the fields as JSON does.
    """
    inner = [field.message_type.fields for field in message.fields if field.message_type is not None]
    names = {field.name: field.json_name for fields in (message.fields, *inner) for field in fields}
    for sentence in _refusals(message.GetOptions().Extensions[validate_pb2.message].cel):
        yield _WORD.sub(lambda word: names.get(word[0], word[0]), sentence)


def required_fields(message: Descriptor) -> set[str]:
    """Returns the fields that a request cannot leave out.

    Their rules refuse the default value, which a missing field has.
    """
    empty = GetMessageClass(message)()
    violations = _validator().collect_violations(empty)
    return {violation.proto.field.elements[0].field_name for violation in violations if violation.proto.field}


def _names_only(rules: validate_pb2.EnumRules) -> bool:
    return {rule.name for rule, _ in rules.ListFields()} <= {"defined_only", "not_in"}


@cache
def _validator() -> protovalidate.Validator:
    return protovalidate.Validator()


def _refusals(expressions: Iterable[validate_pb2.Rule]) -> Iterator[str]:
    for expression in expressions:
        yield f'A request may be refused with "{expression.message}".'


def _without_unicode_classes(part: str) -> str:
    for name, ranges in _UNICODE_RANGES.items():
        part = part.replace(name, ranges if part.startswith("[") else f"[{ranges}]")
    return part
