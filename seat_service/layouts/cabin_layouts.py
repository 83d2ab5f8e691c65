"""Cabin layouts (LOPA): the immutable geometry of aircraft types (SEAT-1).

Each layout is a file `layouts/*.json`. A file lists the cabins from nose to tail. `rows` are runs such as `1-12 14-33`.
`letters` are the columns from left to right with a blank for each aisle, such as `ABC DEF`. `missing` and
`characteristics` select seats by row, run of rows and letters: `12`, `16-17`, `11A`, `15-17AF`, `AF`. `facilities`
lists galleys, lavatories and the like, each with the rows beside it. If the rows of one class have different letters,
as in a tapering tail, the file has two cabins of that class, one after the other.

Characteristics are PADIS 9825 codes. `W`, `A` and `9` are computed from the geometry. All others are data, and the
service passes them on unchanged, unknown ones too.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from skyhigh.seat.v1 import seat_service_pb2
from skyhigh.seat.v1.seat_service_pb2 import Seat, SeatMap

WINDOW_SEAT, AISLE_SEAT, CENTRE_SEAT = "W", "A", "9"
EXIT_ROW = "E"
NOT_FOR_INFANTS = "1A"
COMPUTED_CODES = frozenset({WINDOW_SEAT, AISLE_SEAT, CENTRE_SEAT})

_LAYOUT_ID = re.compile(r"[A-Za-z0-9-]{3,40}")
# With the pattern of runs, it permits exactly the seat numbers of the contract, `^[1-9][0-9]{0,2}[A-HJ-NP-Z]$`.
_LETTERS = re.compile(r"[A-HJ-NP-Z]+(?: [A-HJ-NP-Z]+)*")
_RUN = re.compile(r"([1-9][0-9]{0,2})(?:-([1-9][0-9]{0,2}))?")
_SELECTOR = re.compile(r"([1-9][0-9]{0,2}(?:-[1-9][0-9]{0,2})?)?([A-Z]*)")
_CODE = re.compile(r"[!-~]{1,64}")

_LAYOUT_KEYS = ({"layout_id", "aircraft", "total_seats", "cabins"}, set[str]())
_CABIN_KEYS = ({"cabin", "rows", "letters"}, {"missing", "characteristics", "facilities"})


class LayoutError(ValueError):
    """A layout file is wrong; the message says where.

    It contradicts itself, or breaks the grammar of rows, letters or codes.
    """


@dataclass(frozen=True, slots=True)
class LayoutSeat:
    """One seat of a layout. `characteristics` is a sorted set of PADIS 9825 codes."""

    seat_number: str
    ordinal: int
    """Index of the seat in the layout, row by row from 0; also its index in a string of states (seat_map.py)."""
    row: int
    letter: str
    cabin: seat_service_pb2.Seat.Cabin.ValueType
    position: seat_service_pb2.Seat.Position.ValueType
    """Position in the row; a seat at the wall is WINDOW, even if an aisle is at its other side."""
    characteristics: tuple[str, ...]

    @property
    def exit_row(self) -> bool:
        """True if only adults who can help in an evacuation are eligible (14 CFR 121.585)."""
        return EXIT_ROW in self.characteristics

    @property
    def infant_allowed(self) -> bool:
        """True if an infant on the lap has an oxygen mask there and blocks no exit."""
        return NOT_FOR_INFANTS not in self.characteristics


@dataclass(frozen=True, slots=True)
class Facility:
    """A galley, lavatory or other facility, beside the rows `first_row` to `last_row`."""

    kind: seat_service_pb2.SeatMap.Cabin.Facility.Kind.ValueType
    first_row: int
    last_row: int


@dataclass(frozen=True, slots=True)
class Cabin:
    """Consecutive rows of one class, all with the same letters."""

    cabin: seat_service_pb2.Seat.Cabin.ValueType
    rows: tuple[int, ...]
    letters: tuple[str, ...]
    aisles: tuple[str, ...]
    """The letters with an aisle at their right."""
    facilities: tuple[Facility, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Layout:
    """The cabins of an aircraft type from nose to tail, and all seats by ordinal.

    Layouts are compared by identity.
    """

    layout_id: str
    aircraft: str
    cabins: tuple[Cabin, ...]
    seats: tuple[LayoutSeat, ...]
    by_number: Mapping[str, LayoutSeat]
    digest: str
    """SHA-256 of the content, in hex; it does not depend on line breaks or on the order of keys in the file."""

    def cabins_message(self) -> list[seat_service_pb2.SeatMap.Cabin]:
        """Returns the geometry as the `cabins` of a SeatMap message."""
        return [
            SeatMap.Cabin(
                cabin=cabin.cabin,
                rows=cabin.rows,
                letters=cabin.letters,
                aisles=cabin.aisles,
                facilities=[
                    SeatMap.Cabin.Facility(kind=each.kind, first_row=each.first_row, last_row=each.last_row)
                    for each in cabin.facilities
                ],
            )
            for cabin in self.cabins
        ]


@cache
def load_layouts() -> Mapping[str, Layout]:
    """Returns all layouts by id; the process reads the files once.

    A file that is edited later has no effect on the process. Raises `LayoutError` if a file is wrong: the service must
    not start with a cabin that does not exist.
    """
    return read_layouts()


def read_layouts() -> Mapping[str, Layout]:
    """Reads all layout files; returns the layouts by id. Raises `LayoutError`."""
    layouts = {}
    for file in sorted(files("seat_service").joinpath("layouts").iterdir(), key=lambda file: file.name):
        if file.name.endswith(".json"):
            layout = parse_layout(file.read_text(encoding="utf-8"))
            if file.name != f"{layout.layout_id}.json":
                raise LayoutError(f"{file.name}: holds layout {layout.layout_id}")
            layouts[layout.layout_id] = layout
    return MappingProxyType(layouts)


def parse_layout(text: str) -> Layout:
    """Reads one layout from JSON. Raises `LayoutError`."""
    try:
        data = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        raise LayoutError(f"not JSON: {error}") from error
    _check_keys(data, _LAYOUT_KEYS, "layout")
    layout_id = _text(data, "layout_id", "layout")
    if not _LAYOUT_ID.fullmatch(layout_id):
        raise LayoutError(f"layout_id {layout_id!r} is malformed")
    if not isinstance(data["cabins"], list):
        raise LayoutError(f"{layout_id}: cabins must be a list")

    cabins: list[Cabin] = []
    seats: list[LayoutSeat] = []
    last_row = 0
    for index, cabin_data in enumerate(data["cabins"]):
        where = f"{layout_id}: cabins[{index}]"
        cabin = _cabin(cabin_data, where)
        if cabin.rows[0] <= last_row:
            raise LayoutError(f"{where}: row {cabin.rows[0]} does not come after row {last_row}")
        last_row = cabin.rows[-1]
        cabins.append(cabin)
        seats.extend(_seats(cabin, cabin_data, where, first_ordinal=len(seats)))
    if len(seats) != data["total_seats"]:
        raise LayoutError(f"{layout_id}: total_seats is {data['total_seats']}, the cabins have {len(seats)}")

    by_number = {seat.seat_number: seat for seat in seats}
    return Layout(
        layout_id=layout_id,
        aircraft=_text(data, "aircraft", layout_id),
        cabins=tuple(cabins),
        seats=tuple(seats),
        by_number=MappingProxyType(by_number),
        digest=hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest(),
    )


def _cabin(data: Any, where: str) -> Cabin:
    _check_keys(data, _CABIN_KEYS, where)
    name = _text(data, "cabin", where)
    if name not in Seat.Cabin.keys()[1:]:
        raise LayoutError(f"{where}: cabin {name!r} is unknown")

    rows: list[int] = []
    for run in _text(data, "rows", where).split():
        first, last = _run(run, f"{where}.rows")
        if rows and first <= rows[-1]:
            raise LayoutError(f"{where}.rows: row {first} does not come after row {rows[-1]}")
        rows.extend(range(first, last + 1))
    if not rows:
        raise LayoutError(f"{where}.rows: names no row")

    letters = _text(data, "letters", where)
    flat = letters.replace(" ", "")
    if not _LETTERS.fullmatch(letters):
        raise LayoutError(f"{where}.letters: {letters!r} must be blocks of letters but I and O, one blank for an aisle")
    if sorted(set(flat)) != list(flat):
        raise LayoutError(f"{where}.letters: {letters!r} must ascend, no letter twice")

    facilities = []
    for kind, text in _mapping(data, "facilities", where).items():
        if kind not in SeatMap.Cabin.Facility.Kind.keys()[1:]:
            raise LayoutError(f"{where}.facilities: kind {kind!r} is unknown")
        for run in text.split():
            first, last = _run(run, f"{where}.facilities.{kind}", known=rows)
            facilities.append(Facility(SeatMap.Cabin.Facility.Kind.Value(kind), first, last))
    return Cabin(
        cabin=Seat.Cabin.Value(name),
        rows=tuple(rows),
        letters=tuple(flat),
        aisles=tuple(block[-1] for block in letters.split()[:-1]),
        facilities=tuple(facilities),
    )


def _seats(cabin: Cabin, data: Any, where: str, *, first_ordinal: int) -> Iterator[LayoutSeat]:
    every = {(row, letter) for row in cabin.rows for letter in cabin.letters}
    missing_text = _text(data, "missing", where) if "missing" in data else ""
    present = every - _selected(missing_text, cabin, every, f"{where}.missing")
    codes: dict[tuple[int, str], set[str]] = {place: set() for place in present}
    for code, text in _mapping(data, "characteristics", where).items():
        if not _CODE.fullmatch(code):
            raise LayoutError(f"{where}.characteristics: {code!r} is no code")
        if code in COMPUTED_CODES:
            raise LayoutError(f"{where}.characteristics: {code} is computed from the letters")
        for place in _selected(text, cabin, present, f"{where}.characteristics.{code}"):
            codes[place].add(code)

    ordinal = first_ordinal
    for row in cabin.rows:
        if not any((row, letter) in present for letter in cabin.letters):
            raise LayoutError(f"{where}: row {row} has no seat")
        for index, letter in enumerate(cabin.letters):
            if (row, letter) not in present:
                continue
            seat_number = f"{row}{letter}"
            seat_codes = codes[row, letter]
            if EXIT_ROW in seat_codes and NOT_FOR_INFANTS not in seat_codes:
                raise LayoutError(f"{where}: {seat_number} is in an exit row and lacks {NOT_FOR_INFANTS}")
            position, computed = _position(cabin, index)
            yield LayoutSeat(
                seat_number=seat_number,
                ordinal=ordinal,
                row=row,
                letter=letter,
                cabin=cabin.cabin,
                position=position,
                characteristics=tuple(sorted(seat_codes | computed)),
            )
            ordinal += 1


def _position(cabin: Cabin, index: int) -> tuple[seat_service_pb2.Seat.Position.ValueType, set[str]]:
    codes = set()
    if index in (0, len(cabin.letters) - 1):
        codes.add(WINDOW_SEAT)
    if cabin.letters[index] in cabin.aisles or (index > 0 and cabin.letters[index - 1] in cabin.aisles):
        codes.add(AISLE_SEAT)
    if WINDOW_SEAT in codes:
        return Seat.WINDOW, codes
    return (Seat.AISLE, codes) if codes else (Seat.MIDDLE, {CENTRE_SEAT})


def _selected(text: str, cabin: Cabin, among: set[tuple[int, str]], where: str) -> set[tuple[int, str]]:
    """Returns the selected seats.

    Raises `LayoutError` for a selector that selects no seat.
    """
    selected = set()
    for selector in text.split():
        match = _SELECTOR.fullmatch(selector)
        if match is None:
            raise LayoutError(f"{where}: {selector!r} is no selector")
        first, last = _run(match[1], where, known=cabin.rows) if match[1] else (cabin.rows[0], cabin.rows[-1])
        if strange := set(match[2]) - set(cabin.letters):
            raise LayoutError(f"{where}: {selector!r} names letter {min(strange)}, which the cabin lacks")
        letters = match[2] or cabin.letters
        found = {(row, letter) for row, letter in among if first <= row <= last and letter in letters}
        if not found:
            raise LayoutError(f"{where}: {selector!r} names no seat")
        selected |= found
    return selected


def _run(text: str, where: str, *, known: list[int] | tuple[int, ...] | None = None) -> tuple[int, int]:
    match = _RUN.fullmatch(text)
    if match is None:
        raise LayoutError(f"{where}: {text!r} is no run of rows")
    first, last = int(match[1]), int(match[2] or match[1])
    if last < first:
        raise LayoutError(f"{where}: run {text!r} ends before it begins")
    for row in (first, last):
        if known is not None and row not in known:
            raise LayoutError(f"{where}: {text!r} names row {row}, which the cabin lacks")
    return first, last


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Builds a JSON object; raises `LayoutError` for a duplicate key.

    Without this hook `json.loads` keeps the last of two equal keys.
    """
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise LayoutError(f"key {key!r} comes twice")
        result[key] = value
    return result


def _check_keys(data: Any, keys: tuple[set[str], set[str]], where: str) -> None:
    required, optional = keys
    if not isinstance(data, dict):
        raise LayoutError(f"{where} must be an object")
    if missing := required - set(data):
        raise LayoutError(f"{where}: {min(missing)!r} is missing")
    if unknown := set(data) - required - optional:
        raise LayoutError(f"{where}: {min(unknown)!r} is no key of a layout")


def _text(data: Mapping[str, Any], key: str, where: str) -> str:
    value = data[key]
    if not isinstance(value, str):
        raise LayoutError(f"{where}.{key} must be a string")
    return value


def _mapping(data: Mapping[str, Any], key: str, where: str) -> dict[str, str]:
    value = data.get(key, {})
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise LayoutError(f"{where}.{key} must map names to strings")
    return value
