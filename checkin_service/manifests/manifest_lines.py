"""The lines of a manifest import, each accepted or rejected on its own (CHK-1)."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Final

from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.error_reason_pb2 import ErrorReason

from checkin_service import refusals
from services.errors import FieldViolation, InvalidArgument
from services.validation import violations_of

INVALID_FIELD: Final = ErrorReason.Name(ErrorReason.INVALID_FIELD)
PASSENGER_CHECKED_IN: Final = ErrorReason.Name(ErrorReason.PASSENGER_CHECKED_IN)
LONGEST_VALUE: Final = 100
_STEP: Final = re.compile(r"(\w+)(?:\[(\d+)\])?")


class Lines:
    """The passengers of one request, and why some of them are rejected.

    A violation names a field of its line by the path in ManifestPassenger, such as `special_services[1]`.
    """

    def __init__(self, sent: Sequence[pb.ManifestPassenger]) -> None:
        self._sent = sent
        self._violations: defaultdict[int, list[FieldViolation]] = defaultdict(list)
        self._reasons: dict[int, str] = {}
        first: dict[str, int] = {}
        for n, each in enumerate(sent):
            if violations := violations_of(each):
                self.reject(n, *violations)
            elif first.setdefault(each.passenger_id, n) != n:
                above = first[each.passenger_id]
                self.reject(
                    n, FieldViolation("passenger_id", f"must be sent only once; passengers[{above}] has it too")
                )

    def reject(self, index: int, *violations: FieldViolation, reason: str = INVALID_FIELD) -> None:
        """Rejects a line, or adds violations to a rejected line; its first reason stays."""
        self._reasons.setdefault(index, reason)
        self._violations[index].extend(violations)

    def accepts(self, index: int) -> bool:
        """Returns whether the line has not been rejected so far."""
        return index not in self._reasons

    def accepted(self) -> Iterator[tuple[int, pb.ManifestPassenger]]:
        """Yields each line that is not rejected so far, with its index in the request."""
        return ((n, each) for n, each in enumerate(self._sent) if self.accepts(n))

    def rejected(self) -> list[pb.RejectedPassenger]:
        """Returns the rejected lines as callers see them."""
        return [self._rejected(n) for n in sorted(self._reasons)]

    def refuse_if_none_is_left(self) -> None:
        """Raises an error if every line is rejected; a request without lines is accepted.

        The error is PASSENGER_CHECKED_IN if that is the reason of all lines, else INVALID_FIELD.
        """
        if not self._sent or len(self._reasons) < len(self._sent):
            return
        fields = [
            FieldViolation(f"passengers[{n}].{each.field}", each.description, each.rule)
            for n in sorted(self._reasons)
            for each in self._violations[n]
        ]
        if set(self._reasons.values()) == {PASSENGER_CHECKED_IN}:
            raise refusals.passengers_checked_in(self._sent[min(self._reasons)].passenger_id, fields)
        raise InvalidArgument.of(*fields)

    def _rejected(self, index: int) -> pb.RejectedPassenger:
        sent = self._sent[index]
        rejected = pb.RejectedPassenger(
            index=index, passenger_id=sent.passenger_id[:LONGEST_VALUE], reason=self._reasons[index]
        )
        for each in self._violations[index]:
            rejected.wrong_fields.add(
                field=_json_path(sent.DESCRIPTOR, each.field),
                value=_value(sent, each.field)[:LONGEST_VALUE],
                description=each.description,
            )
        return rejected


def _json_path(kind: Descriptor, path: str) -> str:
    """Returns a field's path with JSON names."""
    return _STEP.sub(
        lambda step: (
            step[0].replace(step[1], kind.fields_by_name[step[1]].json_name)
            if step[1] in kind.fields_by_name
            else step[0]
        ),
        path,
    )


def _value(sent: Message, path: str) -> str:
    """Returns the value that the caller sent in a field; empty if it was omitted."""
    step = _STEP.fullmatch(path)
    field = sent.DESCRIPTOR.fields_by_name.get(step[1]) if step else None
    if step is None or field is None:
        return ""
    value: Any = getattr(sent, field.name)
    if field.is_repeated:
        return str(value[int(step[2])]) if step[2] else ", ".join(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return (named.name if named else str(value)) if value else ""
    return str(value)
