"""Requests against the rules that stand in their protos; a servicer never checks them again."""

from __future__ import annotations

from typing import Final

import protovalidate
from google.protobuf.message import Message

from services.errors import FieldViolation, InvalidArgument

_VALIDATOR: Final = protovalidate.Validator()


def validate(request: Message) -> None:
    """Raises InvalidArgument naming each wrong field."""
    violations = _VALIDATOR.collect_violations(request)
    if violations:
        raise InvalidArgument.of(*(_field_violation(violation) for violation in violations))


def _field_violation(violation: protovalidate.Violation) -> FieldViolation:
    proto = violation.proto
    path = ""
    for element in proto.field.elements if proto.field is not None else ():
        path += f".{element.field_name}" if path else element.field_name
        if element.subscript is not None and element.subscript.field == "index":
            path += f"[{element.subscript.value}]"
    return FieldViolation(field=path or "request", description=proto.message or "is malformed", rule=proto.rule_id)
