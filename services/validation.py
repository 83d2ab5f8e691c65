"""Validates requests against the rules of their protos.

A servicer does not check these rules again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Final, cast

import protovalidate
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from services.errors import FieldViolation, InvalidArgument

_VALIDATOR: Final = protovalidate.Validator()
_AS_IN_THE_PROTO: Final[Mapping[str, str]] = MappingProxyType({})


def validate(request: Message, *, sent_as: Mapping[str, str] = _AS_IN_THE_PROTO) -> None:
    """Raises InvalidArgument with each wrong field.

    `sent_as` maps a field to the name under which the caller sent it.
    """
    if violations := violations_of(request):
        raise InvalidArgument.of(*(replace(each, field=sent_as.get(each.field, each.field)) for each in violations))


def violations_of(message: Message) -> list[FieldViolation]:
    """Returns each wrong field of a message; an empty list if all its rules hold.

    It is also called for list items that are accepted or rejected one by one; such a list has `items: {ignore:
    IGNORE_ALWAYS}`.
    """
    try:
        violations = _VALIDATOR.collect_violations(message)
    except protovalidate.EvaluationError:
        # The rule could not be evaluated, for example for times a million years apart. No caller needs such a value.
        return [FieldViolation("request", "has a time or a number that is far out of range; correct it")]
    return [_field_violation(message, violation) for violation in violations]


def _field_violation(request: Message, violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    message = cast("Descriptor | None", request.DESCRIPTOR)
    for element in proto.field.elements if proto.field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        message = message and message.fields_by_name[element.field_name].message_type
        if element.subscript is not None and element.subscript.field == "index":
            path += f"[{element.subscript.value}]"
    description = proto.message or "is malformed"
    named, separator, rest = description.partition(": ")
    # A rule of a whole message names no field; its text begins with the field to report.
    if separator and message is not None and named in message.fields_by_name:
        path, description = f"{path}.{named}" if path else named, rest
    return FieldViolation(field=path or "request", description=description, rule=proto.rule_id)
