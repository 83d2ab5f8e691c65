"""Requests against the rules that stand in their protos; a servicer never checks them again."""

from __future__ import annotations

from typing import Final

import protovalidate
from google.protobuf.message import Message

from services.errors import FieldViolation, InvalidArgument

_VALIDATOR: Final = protovalidate.Validator()


def validate(request: Message) -> None:
    """Raises InvalidArgument naming each wrong field."""
    try:
        violations = _VALIDATOR.collect_violations(request)
    except protovalidate.EvaluationError as error:
        # A rule could not be reckoned out, as with times a million years apart; no such value is meant.
        raise InvalidArgument.of(FieldViolation("request", "has values that are far out of range")) from error
    if violations:
        raise InvalidArgument.of(*(_field_violation(request, violation) for violation in violations))


def _field_violation(request: Message, violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None and element.subscript.field == "index":
            path += f"[{element.subscript.value}]"
    description = proto.message or "is malformed"
    named, separator, rest = description.partition(": ")
    # A rule about several fields belongs to none; its message begins with the one that the caller shall look at.
    if not path and separator and named in request.DESCRIPTOR.fields_by_name:
        path, description = named, rest
    return FieldViolation(field=path or "request", description=description, rule=proto.rule_id)
