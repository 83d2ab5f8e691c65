"""Reads manifests from a CSV or JSON file (docs/manifest.md describes its columns)."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from google.protobuf import timestamp_pb2

if TYPE_CHECKING:
    from skyhigh.checkin.v1 import checkin_service_pb2 as pb

FLIGHT_ID: Final = "flight_id"
FLIGHT_TEXTS: Final = ("flight_number", "origin", "destination", "departure_date", "gate")
FLIGHT_TIMES: Final = ("departure_time", "arrival_time")
# Each is the name of a Duration field of the request, followed by the unit of the column.
FLIGHT_MINUTES: Final = ("check_in_opens_before_minutes", "check_in_closes_before_minutes", "boarding_before_minutes")
FLIGHT_FACTS: Final = (*FLIGHT_TEXTS, *FLIGHT_TIMES, *FLIGHT_MINUTES)
PASSENGER_TEXTS: Final = (
    "passenger_id",
    "pnr",
    "given_name",
    "last_name",
    "fare",
    "accompanying_passenger_id",
    "contact_email",
)
SPECIAL_SERVICES: Final = "special_services"
CLEARED_FIELDS: Final = "cleared_fields"
LISTS: Final = (SPECIAL_SERVICES, CLEARED_FIELDS)
COLUMNS: Final = frozenset({FLIGHT_ID, *FLIGHT_FACTS, *PASSENGER_TEXTS, "type", "cabin", *LISTS})
_MINUTES: Final = re.compile(r"\d{1,6}")

Row: TypeAlias = Mapping[str, str]


class FileError(Exception):
    """The file is not CSV or JSON with rows of a manifest; nothing of it is imported."""


@dataclass(frozen=True, slots=True)
class Fault:
    """An error in a line of the file."""

    line: int
    column: str
    description: str

    def __str__(self) -> str:
        return f"{self.column}: {self.description}" if self.column else self.description


@dataclass(slots=True)
class Flight:
    """The rows of a file about one flight: request, lines and faults."""

    request: pb.ImportManifestRequest
    first_line: int
    lines: list[int] = field(default_factory=list)
    line_of: dict[str, int] = field(default_factory=dict)
    """The first line of each passenger id."""
    facts: dict[str, str] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)


def read(file: Path, flight_id: str | None = None) -> list[Flight]:
    """Returns the flights of a file in the order of their first rows.

    If `flight_id` is given, returns only that flight; rows without a flight id belong to it. The errors of a row are in
    its flight's `faults`. Raises FileError if the file cannot be read as rows.
    """
    readers = {".csv": _csv_rows, ".json": _json_rows}
    if file.suffix.lower() not in readers:
        raise FileError("is neither .csv nor .json")
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise FileError(f"is not UTF-8, from byte {error.start} on") from error
    flights: dict[str, Flight] = {}
    for line, row in readers[file.suffix.lower()](content):
        of_flight = row.get(FLIGHT_ID, "") or flight_id or ""
        if flight_id in (None, of_flight):
            flights.setdefault(of_flight, _flight(of_flight, line))
            _add(flights[of_flight], line, row)
    return list(flights.values())


def _csv_rows(content: str) -> Iterator[tuple[int, Row]]:
    """Yields each row with the number of the line in which it begins."""
    reader = csv.reader(io.StringIO(content, newline=""), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_columns(header, 1)
        begins = reader.line_num + 1
        for cells in reader:
            if cells:
                if len(cells) != len(header):
                    raise FileError(f"line {begins}: {len(cells)} cells instead of {len(header)}")
                yield begins, {name: cell.strip() for name, cell in zip(header, cells, strict=True)}
            begins = reader.line_num + 1
    except csv.Error as error:
        raise FileError(f"line {reader.line_num}: {error}") from error


def _json_rows(content: str) -> Iterator[tuple[int, Row]]:
    """Yields each object of the array with the number of the line in which it begins."""
    decoder = json.JSONDecoder(object_pairs_hook=_object)
    place = _skip(content, 0)
    if content[place : place + 1] != "[":
        raise FileError("is not a JSON array")
    place, line, counted = _skip(content, place + 1), 1, 0
    while content[place : place + 1] != "]":
        line, counted = line + content.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(content, place)
        # Not only JSONDecodeError: deep nesting raises RecursionError, and a very long number a plain ValueError.
        except (ValueError, RecursionError) as error:
            raise FileError(f"line {line}, in the object that begins there: {error}") from error
        if not isinstance(value, dict):
            raise FileError(f"line {line}: is not an object")
        _check_columns(list(value), line)
        yield line, {name: _text(name, each, line) for name, each in value.items()}
        place = _skip(content, place)
        if content[place : place + 1] == ",":
            place = _skip(content, place + 1)
        elif content[place : place + 1] != "]":
            raise FileError(
                f"line {line}: neither a comma nor the end of the array follows the object that begins there"
            )
    if _skip(content, place + 1) != len(content):
        raise FileError("has text after the array")


def _skip(content: str, place: int) -> int:
    """Returns the next position that is not white space."""
    while place < len(content) and content[place] in " \t\r\n":
        place += 1
    return place


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds an object. Raises ValueError for a repeated key, because `json` would keep only the last value."""
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a column occurs twice")
    return dict(pairs)


def _text(name: str, value: Any, line: int) -> str:
    """Returns a value of a JSON row as the text of a CSV cell. Raises FileError for other types."""
    if value is None:
        return ""
    if name in LISTS and isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "+".join(value)
    if name in FLIGHT_MINUTES and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    # A JSON string may have half of a surrogate pair, which UTF-8 cannot encode.
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise FileError(f"line {line}: {name} must be text")
    return value.strip()


def _check_columns(names: list[str], line: int) -> None:
    unknown = [name for name in names if name not in COLUMNS]
    if unknown:
        raise FileError(f"line {line}: {unknown[0]!r} is not a column of a manifest")
    if len(set(names)) != len(names):
        raise FileError(f"line {line}: a column occurs twice")


def _flight(flight_id: str, line: int) -> Flight:
    from skyhigh.checkin.v1 import checkin_service_pb2 as pb

    return Flight(pb.ImportManifestRequest(flight_id=flight_id), first_line=line)


def _add(flight: Flight, line: int, row: Row) -> None:
    """Adds a row to its flight: the facts, and the passenger or the faults."""
    faults = [*_set_facts(flight, line, row)]
    passenger, wrong = _passenger(row, line)
    faults += wrong
    first = flight.line_of.setdefault(passenger.passenger_id, line)
    if first != line and passenger.passenger_id:
        faults.append(Fault(line, "passenger_id", f"is already the passenger of line {first}"))
    if faults:
        flight.faults += faults
        return
    flight.request.passengers.append(passenger)
    flight.lines.append(line)


def _set_facts(flight: Flight, line: int, row: Row) -> Iterator[Fault]:
    for name in FLIGHT_FACTS:
        value = row.get(name, "")
        if not value:
            continue
        if flight.facts.get(name, value) != value:
            yield Fault(line, name, f"{value!r} contradicts {flight.facts[name]!r} of an earlier row")
        elif fault := _set_fact(flight, line, name, value):
            yield fault
        else:
            flight.facts[name] = value


def _set_fact(flight: Flight, line: int, name: str, value: str) -> Fault | None:
    facts = flight.request.flight
    if name in FLIGHT_TEXTS:
        setattr(facts, name, value)
    elif name in FLIGHT_TIMES:
        time = timestamp_pb2.Timestamp()
        try:
            time.FromJsonString(value)
        except ValueError:
            return Fault(line, name, f"{value!r} is not a time such as 2026-12-01T09:30:00Z")
        getattr(facts, name).CopyFrom(time)
    elif _MINUTES.fullmatch(value):
        getattr(facts, name.removesuffix("_minutes")).FromSeconds(60 * int(value))
    else:
        return Fault(line, name, f"{value!r} is not a number of minutes")
    return None


def _passenger(row: Row, line: int) -> tuple[pb.ManifestPassenger, list[Fault]]:
    """Returns the passenger of a row, and a fault for an unknown type or cabin."""
    from skyhigh.checkin.v1 import checkin_service_pb2 as pb

    faults: list[Fault] = []
    passenger = pb.ManifestPassenger()
    for name in PASSENGER_TEXTS:
        setattr(passenger, name, row.get(name, ""))
    for name, values in (("type", pb.PassengerType), ("cabin", pb.Cabin)):
        value = row.get(name, "").upper()
        if value in values.keys()[1:]:
            setattr(passenger, name, values.Value(value))
        elif value:
            faults.append(Fault(line, name, f"{row[name]!r} is not one of {', '.join(values.keys()[1:])}"))
    passenger.special_services.extend(_items(row.get(SPECIAL_SERVICES, "")))
    fields = pb.ManifestPassenger.DESCRIPTOR.fields_by_name
    passenger.cleared_fields.extend(
        fields[name].json_name if name in fields else name for name in _items(row.get(CLEARED_FIELDS, ""))
    )
    return passenger, faults


def _items(cell: str) -> list[str]:
    return [each.strip() for each in cell.split("+") if each.strip()]
