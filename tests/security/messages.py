"""Requests made from their descriptors and rules.

One is valid, the others are the same with one invalid field.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from uuid import uuid4

from buf.validate import validate_pb2
from google.api import field_behavior_pb2
from google.protobuf import duration_pb2, timestamp_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.type import money_pb2

from services.errors import InvalidArgument
from services.validation import validate
from tests.dates import DAY, flight_id

DAY_SECONDS: Final = 86_400
# No test creates this flight. A flight without an id would get one from `flight_number` below, which is another number.
NO_FLIGHT: Final = flight_id("SH404")
# An example of each format that no rule describes, by the field's name.
EXAMPLES: Final[Mapping[str, Any]] = {
    "flight_id": NO_FLIGHT,
    "itinerary_id": f"CF_LHR_ATH_{NO_FLIGHT}",
    "seat_number": "12A",
    "excluded_seats": "12A",
    "seat_numbers": "12A",
    "passenger_id": "P0",
    "accompanying_passenger_id": "P0",
    "layout_id": "A320-180Y",
    "owner": "customer:nobody",
    "pnr": "QQQQQQ",
    "given_name": "Nobody",
    "last_name": "Nobody",
    "reason": "TEST",
    "special_services": "WCHR",
    "flight_number": "SH000",
    "origin": "LHR",
    "source": "LHR",
    "destination": "ATH",
    "date": DAY,
    "departure_date": DAY,
    "gate": "A1",
    "fare": "BASIC",
    "contact_email": "nobody@example.org",
    "aircraft_type": "AT72",
    "reference": "booking/nobody",
    "payment_code": "99999",
    "page_token": "",
    "limit_id": "nothing-per-nobody",
}
# For a request that needs one of two fields, without a rule that says which: the one to fill.
CHOSEN: Final = {"skyhigh.booking.v1.CreateBookingRequest": "flight_id"}
Path = tuple[FieldDescriptor, ...]


def valid(message: Message, values: Mapping[str, Any] | None = None) -> Message:
    """Fills the required fields.

    `values`, by field name at any depth, take precedence over the examples. Raises AssertionError or InvalidArgument if
    the result violates the contract's rules; then EXAMPLES lacks an entry.
    """
    _fill(message, values or {})
    for _ in message.DESCRIPTOR.fields:
        try:
            validate(message)
        except InvalidArgument as error:
            # A rule that no value fulfils has no description.
            for wrong in error.fields:
                field: Any = message.DESCRIPTOR.fields_by_name.get(wrong.field)
                if field is None:
                    raise AssertionError(f"{message.DESCRIPTOR.full_name}: {error.message}; see EXAMPLES") from error
                _set(message, field, values or {})
    validate(message)
    return message


def _fill(message: Message, values: Mapping[str, Any]) -> Message:
    field: Any
    for field in message.DESCRIPTOR.fields:
        if _is_needed(field) or field.name == CHOSEN.get(message.DESCRIPTOR.full_name):
            _set(message, field, values)
    return message


def _is_needed(field: FieldDescriptor) -> bool:
    options = field.GetOptions()
    rules = options.Extensions[validate_pb2.field]
    said = field_behavior_pb2.REQUIRED in options.Extensions[field_behavior_pb2.field_behavior]
    return said or bool(rules.required or rules.repeated.min_items)


def _set(message: Message, field: FieldDescriptor, values: Mapping[str, Any]) -> None:
    if field.message_type is not None:
        target = getattr(message, field.name)
        _fill_known(target.add() if field.is_repeated else target, field, values)
    elif field.is_repeated:
        getattr(message, field.name).append(_example(field, values))
    else:
        setattr(message, field.name, _example(field, values))


def _fill_known(message: Message, field: FieldDescriptor, values: Mapping[str, Any]) -> None:
    message.SetInParent()
    match message:
        case timestamp_pb2.Timestamp():
            message.FromSeconds(
                int(time.time()) + DAY_SECONDS + (DAY_SECONDS // 12 if field.name.startswith("arrival") else 0)
            )
        case duration_pb2.Duration():
            message.FromSeconds(3600)
        case money_pb2.Money():
            message.CopyFrom(money_pb2.Money(currency_code="USD", units=10))
        case _:
            _fill(message, values)


def _example(field: FieldDescriptor, values: Mapping[str, Any]) -> Any:
    if field.name in values:
        return values[field.name]
    if field.enum_type is not None:
        return field.enum_type.values[1].number
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING if field.type == FieldDescriptor.TYPE_BYTES:
            return b"{}"
        case FieldDescriptor.CPPTYPE_STRING:
            is_uuid = field.GetOptions().Extensions[validate_pb2.field].string.uuid
            return str(uuid4()) if is_uuid else EXAMPLES[field.name]
        case FieldDescriptor.CPPTYPE_BOOL:
            return True
        case _:
            return 1


def fields_of(descriptor: Descriptor, *types: int, above: Path = ()) -> Iterator[Path]:
    """Yields the path to each field of one of these types, at any depth.

    `types` are TYPE_… numbers of FieldDescriptor.
    """
    for field in descriptor.fields:
        if field.type in types:
            yield (*above, field)
        elif field.message_type is not None and field.message_type.file.package != "google.protobuf":
            yield from fields_of(field.message_type, *types, above=(*above, field))


def name_of(path: Path) -> str:
    """Returns the path with dots between the field names."""
    return ".".join(field.name for field in path)


def spoilt(message: Message, path: Path, value: Any) -> Message:
    """Returns the message with this value at the end of the path, and valid messages on the way."""
    copy = type(message)()
    copy.CopyFrom(message)
    part = copy
    for field in path[:-1]:
        part = _entered(part, field)
    if path[-1].is_repeated:
        del getattr(part, path[-1].name)[:]
        getattr(part, path[-1].name).append(value)
    else:
        setattr(part, path[-1].name, value)
    return copy


def _entered(message: Message, field: FieldDescriptor) -> Message:
    inner = getattr(message, field.name)
    if field.is_repeated:
        if not inner:
            _fill_known(inner.add(), field, {})
        first: Message = inner[0]
        return first
    if not message.HasField(field.name):
        _fill_known(inner, field, {})
    entered: Message = inner
    return entered


def spoilt_json(fields: Mapping[str, Any], path: Sequence[FieldDescriptor], value: Any) -> dict[str, Any]:
    """Returns the JSON of a message with any JSON value at the end of the path."""
    copy = dict(fields)
    field, *rest = path
    name = field.json_name
    if rest:
        inside: Any = copy.get(name) or ([{}] if field.is_repeated else {})
        copy[name] = (
            [spoilt_json(inside[0], rest, value), *inside[1:]]
            if field.is_repeated
            else spoilt_json(inside, rest, value)
        )
    else:
        copy[name] = [value] if field.is_repeated else value
    return copy
