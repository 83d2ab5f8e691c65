"""The true state of a stack at rest, for comparison with the clients.

It consists of the histories and final states in the databases. `read` takes one snapshot of all schemas in one
transaction, one statement for each table, streamed. Rows have the names of their columns. Ids are text, as in
responses; times are seconds since 1970; enums are their names. A table or column that the schema does not have yet is
read as empty or None, so that an older stack can be checked as far as possible.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import types
import typing
import urllib.request
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, Final, TypeVar

import asyncpg

SERVICES: Final = ("seat", "checkin", "waitlist", "payment", "flight", "booking", "gateway")
ROWS_PER_FETCH: Final = 5_000
STATEMENT_TIMEOUT_SECONDS: Final = 300

Place = tuple[str, str]
"""A seat: flight id and seat number."""
Traveller = tuple[str, str]
"""A passenger of a flight: flight id and passenger id."""
Row = TypeVar("Row")


@dataclasses.dataclass(frozen=True, slots=True)
class SeatEvent:
    """One transition of a seat."""

    flight_id: str
    seat_number: str
    version: int
    from_state: str
    to_state: str
    hold_id: str | None = None
    actor: str = ""
    reason: str = ""
    request_id: str | None = None
    transaction: str | None = None
    event_time: float | None = None

    @property
    def place(self) -> Place:
        """The seat's flight and number."""
        return self.flight_id, self.seat_number


@dataclasses.dataclass(frozen=True, slots=True)
class SeatRow:
    """The final state of a seat."""

    flight_id: str
    seat_number: str
    ordinal: int
    state: str
    version: int
    hold_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class HoldRow:
    """The final state of a hold."""

    hold_id: str
    owner: str
    state: str
    managed: bool | None = False
    create_time: float | None = None
    expire_time: float | None = None
    confirm_time: float | None = None
    end_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class HoldSeatRow:
    """A seat of a hold."""

    hold_id: str
    flight_id: str
    seat_number: str
    passenger_id: str
    state: str


@dataclasses.dataclass(frozen=True, slots=True)
class DepartureRow:
    """A flight's departure time in the seat service."""

    flight_id: str
    departure_time: float


@dataclasses.dataclass(frozen=True, slots=True)
class Transition:
    """One transition of a booking, a check-in, a waitlist entry or a payment intent."""

    subject: str
    version: int
    from_state: str | None
    to_state: str
    actor: str = ""
    reason: str = ""
    event_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BookingRow:
    """The final state of a booking."""

    booking_id: str
    owner: str
    state: str
    currency: str = "USD"
    total_minor_units: int = 0
    hold_id: str | None = None
    payment_intent_id: str | None = None
    pnr: str | None = None
    request_key: str | None = None
    refund_minor_units: int | None = None
    refund_time: float | None = None
    contact_email: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BookingFlightRow:
    """A flight of a booking."""

    booking_id: str
    leg: int
    flight_id: str
    price_minor_units: int = 0
    departure_time: float | None = None
    cancel_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BookingPassengerRow:
    """A passenger of a booking."""

    booking_id: str
    number: int
    passenger_id: str
    given_name: str
    last_name: str
    type: str = "ADULT"


@dataclasses.dataclass(frozen=True, slots=True)
class CheckInRow:
    """The final state of a check-in."""

    checkin_id: str
    flight_id: str
    passenger_id: str
    pnr: str
    state: str
    seat_number: str | None = None
    hold_id: str | None = None
    fee_cents: int | None = 0
    payment_intent_id: str | None = None
    fee_pay_time: float | None = None
    sequence_number: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class PassengerRow:
    """A passenger of a manifest."""

    flight_id: str
    passenger_id: str
    pnr: str
    given_name: str = ""
    last_name: str = ""
    type: str = "ADULT"
    cabin: str = "ECONOMY"
    contact_email: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class EntryRow:
    """The final state of a waitlist entry."""

    entry_id: str
    flight_id: str
    number: int
    passenger_id: str
    owner: str
    state: str
    cabin: str = "ECONOMY"
    positions: list[str] = dataclasses.field(default_factory=list)
    seat_numbers: list[str] = dataclasses.field(default_factory=list)
    seat_number: str | None = None
    hold_id: str | None = None
    create_time: float | None = None
    match_time: float | None = None
    end_time: float | None = None
    fact_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class SkipRow:
    """A seat for which an entry was skipped."""

    entry_id: str
    seat_number: str
    reason: str
    skip_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class WaitlistSeatRow:
    """The waitlist's facts about a seat."""

    flight_id: str
    seat_number: str
    cabin: str
    position: str


@dataclasses.dataclass(frozen=True, slots=True)
class IntentRow:
    """The final state of a payment intent."""

    intent_id: str
    reference: str
    owner: str
    state: str
    currency: str = "USD"
    minor_units: int = 0
    refund_minor_units: int | None = None
    refunded_minor_units: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class ChargeRow:
    """A charge of an intent."""

    key: str
    intent_id: str
    number: int
    state: str
    provider_charge_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RefundRow:
    """A refund of a charge."""

    refund_key: str
    charge_key: str
    intent_id: str
    state: str
    minor_units: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class FlightRow:
    """A flight of the schedule."""

    flight_id: str
    state: str
    departure_time: float | None = None
    cancel_time: float | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class AnswerRow:
    """A request whose response a service stores for repeats."""

    service: str
    principal: str
    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Provider:
    """The charges and refunds that the payment provider reports, in minor units."""

    charges: Mapping[str, tuple[str, int]]
    """By our key: the status and the amount."""
    refunds: Mapping[str, tuple[str, int]]
    """By our refund key: the provider's charge id and the amount."""
    charge_ids: Mapping[str, str]
    """The provider's id of each charge, by our key."""


@dataclasses.dataclass
class Truth:
    """A snapshot of all schemas."""

    seat_events: list[SeatEvent] = dataclasses.field(default_factory=list)
    """Sorted by flight, seat and version."""
    seats: list[SeatRow] = dataclasses.field(default_factory=list)
    holds: list[HoldRow] = dataclasses.field(default_factory=list)
    hold_seats: list[HoldSeatRow] = dataclasses.field(default_factory=list)
    departures: list[DepartureRow] = dataclasses.field(default_factory=list)
    bookings: list[BookingRow] = dataclasses.field(default_factory=list)
    booking_flights: list[BookingFlightRow] = dataclasses.field(default_factory=list)
    booking_passengers: list[BookingPassengerRow] = dataclasses.field(default_factory=list)
    booking_events: list[Transition] = dataclasses.field(default_factory=list)
    check_ins: list[CheckInRow] = dataclasses.field(default_factory=list)
    check_in_events: list[Transition] = dataclasses.field(default_factory=list)
    passengers: list[PassengerRow] = dataclasses.field(default_factory=list)
    entries: list[EntryRow] = dataclasses.field(default_factory=list)
    entry_events: list[Transition] = dataclasses.field(default_factory=list)
    skips: list[SkipRow] = dataclasses.field(default_factory=list)
    waitlist_seats: list[WaitlistSeatRow] = dataclasses.field(default_factory=list)
    intents: list[IntentRow] = dataclasses.field(default_factory=list)
    intent_events: list[Transition] = dataclasses.field(default_factory=list)
    charges: list[ChargeRow] = dataclasses.field(default_factory=list)
    refunds: list[RefundRow] = dataclasses.field(default_factory=list)
    flights: list[FlightRow] = dataclasses.field(default_factory=list)
    answers: list[AnswerRow] = dataclasses.field(default_factory=list)
    provider: Provider | None = None
    """None if the provider was not asked, or lost charges by a restart."""

    @cached_property
    def ledger(self) -> dict[Place, list[SeatEvent]]:
        """The transitions of each seat that has any, oldest first."""
        return _groups(self.seat_events, lambda event: event.place)

    @cached_property
    def seat(self) -> dict[Place, SeatRow]:
        """The seats by flight and number."""
        return {(row.flight_id, row.seat_number): row for row in self.seats}

    @cached_property
    def seats_of_flight(self) -> dict[str, list[SeatRow]]:
        """The seats of each flight in the order of its map."""
        found = _groups(self.seats, lambda row: row.flight_id)
        return {flight_id: sorted(rows, key=lambda row: row.ordinal) for flight_id, rows in found.items()}

    @cached_property
    def events_of_hold(self) -> dict[str, list[SeatEvent]]:
        """The transitions into, of and out of each hold."""
        return _groups((event for event in self.seat_events if event.hold_id), lambda event: event.hold_id or "")

    @cached_property
    def events_of_request(self) -> dict[tuple[str, str], list[SeatEvent]]:
        """The transitions of each request with a key, by actor and key."""
        return _groups(
            (event for event in self.seat_events if event.request_id),
            lambda event: (event.actor, event.request_id or ""),
        )

    @cached_property
    def hold(self) -> dict[str, HoldRow]:
        """The holds by id."""
        return {row.hold_id: row for row in self.holds}

    @cached_property
    def seats_of_hold(self) -> dict[str, list[HoldSeatRow]]:
        """The seats of each hold, including released ones."""
        return _groups(self.hold_seats, lambda row: row.hold_id)

    @cached_property
    def passenger_of(self) -> dict[tuple[str, str, str], str]:
        """The passenger of each seat of a hold, by hold, flight and seat number."""
        return {(row.hold_id, row.flight_id, row.seat_number): row.passenger_id for row in self.hold_seats}

    @cached_property
    def seated(self) -> dict[Traveller, str]:
        """The seat of each passenger: the confirmed one, else the held one."""
        live = sorted(
            (row for row in self.hold_seats if row.state != "RELEASED"), key=lambda row: row.state == "CONFIRMED"
        )
        return {(row.flight_id, row.passenger_id): row.seat_number for row in live}

    @cached_property
    def booked_passengers(self) -> set[str]:
        """The passengers of all bookings in any state."""
        return {row.passenger_id for row in self.booking_passengers}

    @cached_property
    def departure(self) -> dict[str, float]:
        """The departure time of each flight."""
        return {row.flight_id: row.departure_time for row in self.departures}

    @cached_property
    def booking(self) -> dict[str, BookingRow]:
        """The bookings by id."""
        return {row.booking_id: row for row in self.bookings}

    @cached_property
    def legs(self) -> dict[str, list[BookingFlightRow]]:
        """The flights of each booking."""
        return _groups(self.booking_flights, lambda row: row.booking_id)

    @cached_property
    def party(self) -> dict[str, list[BookingPassengerRow]]:
        """The passengers of each booking."""
        return _groups(self.booking_passengers, lambda row: row.booking_id)

    @cached_property
    def check_in(self) -> dict[str, CheckInRow]:
        """The check-ins by id."""
        return {row.checkin_id: row for row in self.check_ins}

    @cached_property
    def manifest(self) -> dict[Traveller, PassengerRow]:
        """The passengers of all manifests by flight and passenger id."""
        return {(row.flight_id, row.passenger_id): row for row in self.passengers}

    @cached_property
    def entry(self) -> dict[str, EntryRow]:
        """The waitlist entries by id."""
        return {row.entry_id: row for row in self.entries}

    @cached_property
    def intent(self) -> dict[str, IntentRow]:
        """The payment intents by id."""
        return {row.intent_id: row for row in self.intents}

    @cached_property
    def charges_of_intent(self) -> dict[str, list[ChargeRow]]:
        """The charges of each payment intent."""
        return _groups(self.charges, lambda row: row.intent_id)

    @cached_property
    def flight(self) -> dict[str, FlightRow]:
        """The flights of the schedule by id."""
        return {row.flight_id: row for row in self.flights}

    @cached_property
    def steps(self) -> dict[str, list[Transition]]:
        """The transitions of each booking, check-in, entry and intent, oldest first."""
        every = (*self.booking_events, *self.check_in_events, *self.entry_events, *self.intent_events)
        return {
            subject: sorted(steps, key=lambda step: step.version)
            for subject, steps in _groups(every, lambda step: step.subject).items()
        }

    @cached_property
    def kept_answers(self) -> set[tuple[str, str, str]]:
        """The requests with a stored response: service, principal and key."""
        return {(row.service, row.principal, row.key) for row in self.answers}

    def version_of_map(self, flight_id: str) -> int:
        """Returns the version of the flight's map at rest."""
        return 1 + sum(row.version for row in self.seats_of_flight.get(flight_id, ()))


Key = TypeVar("Key")


def _groups(rows: Iterable[Row], key: typing.Callable[[Row], Key]) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


async def read(database_url: str, *, keys: Collection[str] | None = None, provider_url: str = "") -> Truth:
    """Reads all schemas as their owner, in one snapshot.

    `keys` limits the stored responses to these idempotency keys; None means all. `provider_url` is where the mock of
    the payment provider lists its charges and refunds, if it ran from the beginning to the end.
    """
    conn = await asyncpg.connect(database_url, command_timeout=STATEMENT_TIMEOUT_SECONDS)
    try:
        async with conn.transaction(isolation="repeatable_read", readonly=True):
            reader = _Reader(conn, await _columns(conn))
            truth = await reader.truth(keys)
    finally:
        await conn.close()
    if provider_url:
        truth.provider = _provider(provider_url)
    return truth


class _Reader:
    def __init__(self, conn: asyncpg.Connection, columns: Mapping[str, Collection[str]]) -> None:
        self._conn = conn
        self._columns = columns
        # One object per text, however often it is read: a history repeats its flights, seats, states and actors.
        self._texts: dict[str, str] = {}

    async def truth(self, keys: Collection[str] | None) -> Truth:
        return Truth(
            seat_events=await self.rows(SeatEvent, "seat.seat_events", order="flight_id, seat_number, version"),
            seats=await self.rows(SeatRow, "seat.seats"),
            holds=await self.rows(HoldRow, "seat.holds"),
            hold_seats=await self.rows(HoldSeatRow, "seat.hold_seats"),
            departures=await self.rows(DepartureRow, "seat.departures"),
            bookings=await self.rows(BookingRow, "booking.bookings"),
            booking_flights=await self.rows(BookingFlightRow, "booking.booking_flights", order="booking_id, leg"),
            booking_passengers=await self.rows(
                BookingPassengerRow, "booking.booking_passengers", order="booking_id, number"
            ),
            booking_events=await self.rows(Transition, "booking.booking_events", subject="booking_id"),
            check_ins=await self.rows(CheckInRow, "checkin.check_ins"),
            check_in_events=await self.rows(Transition, "checkin.check_in_events", subject="checkin_id"),
            passengers=await self.rows(PassengerRow, "checkin.passengers"),
            entries=await self.rows(EntryRow, "waitlist.entries", order="flight_id, number"),
            entry_events=await self.rows(Transition, "waitlist.entry_events", subject="entry_id"),
            skips=await self.rows(SkipRow, "waitlist.skips"),
            waitlist_seats=await self.rows(WaitlistSeatRow, "waitlist.seats"),
            intents=await self.rows(IntentRow, "payment.intents"),
            intent_events=await self.rows(Transition, "payment.intent_events", subject="intent_id"),
            charges=await self.rows(ChargeRow, "payment.charges"),
            refunds=await self.rows(RefundRow, "payment.refunds"),
            flights=await self.rows(FlightRow, "flight.flights"),
            answers=[
                answer
                for service in SERVICES
                for answer in await self.rows(AnswerRow, f"{service}.idempotency", service=f"'{service}'")
                if keys is None or answer.key in keys
            ],
        )

    async def rows(self, kind: type[Row], table: str, *, order: str = "", **renamed: str) -> list[Row]:
        """Returns the rows of a table as objects.

        `renamed` has the expression of a field that is not a column.
        """
        present = self._columns.get(table)
        if not present:
            return []
        names, columns = [], []
        for field, hint in typing.get_type_hints(kind).items():
            source = renamed.get(field, field)
            if source in present or source.startswith("'"):
                names.append(field)
                columns.append(_cast(source, hint))
        query = f"SELECT {', '.join(columns)} FROM {table}" + (f" ORDER BY {order}" if order else "")
        absent = {
            field.name: None
            for field in dataclasses.fields(kind)  # type: ignore[arg-type]
            if field.name not in names and field.default is dataclasses.MISSING
            and field.default_factory is dataclasses.MISSING
        }  # fmt: skip
        found: list[Row] = []
        async for record in self._conn.cursor(query, prefetch=ROWS_PER_FETCH):
            values = {name: self._shared(value) for name, value in zip(names, record, strict=True)}
            found.append(kind(**absent, **values))
        return found

    def _shared(self, value: Any) -> Any:
        return self._texts.setdefault(value, value) if isinstance(value, str) else value


def _cast(source: str, hint: Any) -> str:
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if float in kinds:
        return f"extract(epoch FROM {source})::float8"
    if int in kinds:
        return f"{source}::bigint"
    if str in kinds:
        return f"{source}::text"
    if bool in kinds:
        return source
    return f"{source}::text[]"


async def _columns(conn: asyncpg.Connection) -> dict[str, set[str]]:
    """Returns the columns of each table of our schemas."""
    found: dict[str, set[str]] = defaultdict(set)
    for row in await conn.fetch(
        """
        SELECT table_schema || '.' || table_name AS name, column_name FROM information_schema.columns
        WHERE table_schema = ANY($1::text[])
        """,
        list(SERVICES),
    ):
        found[row["name"]].add(row["column_name"])
    return found


def _provider(url: str) -> Provider:
    with contextlib.closing(urllib.request.urlopen(f"{url}/charges", timeout=30)) as answer:
        told = json.load(answer)
    return Provider(
        charges={each["key"]: (each["status"], each["amount"].get("minor_units", 0)) for each in told["charges"]},
        refunds={each["key"]: (each["charge_id"], each["amount"]["minor_units"]) for each in told["refunds"]},
        charge_ids={each["key"]: each["charge_id"] for each in told["charges"]},
    )
