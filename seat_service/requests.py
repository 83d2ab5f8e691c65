"""The requests of the transitions, and the effects to publish after the commit."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat

from seat_service.layouts.cabin_layouts import LayoutSeat
from services.idempotency import RequestKey

Place = tuple[str, str]
"""A seat's identity: flight id and seat number."""
FlightPassenger = tuple[str, str]
"""A passenger's identity: flight id and passenger id."""


@dataclass(frozen=True, slots=True)
class Person:
    """A passenger, as far as the rules need it; CABIN_UNSPECIFIED permits every cabin."""

    type: PassengerProfile.Type.ValueType
    special_services: frozenset[str]
    cabin: Seat.Cabin.ValueType


ANY_ADULT: Final = Person(PassengerProfile.ADULT, frozenset(), Seat.CABIN_UNSPECIFIED)


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of SEAT-16.

    Each further lapse doubles the `cool_down`, up to the window.
    """

    held_seats: int
    lapses_allowed: int
    lapses_window: timedelta
    cool_down: timedelta


@dataclass(frozen=True, slots=True)
class AskedSeat:
    """A seat for a passenger.

    `person` is the passenger as the caller describes it. It counts only if the manifest does not list the passenger.
    """

    flight_id: str
    seat_number: str
    passenger_id: str
    person: Person = ANY_ADULT
    described: LayoutSeat | None = None
    """The seat as its layout describes it; with None the rules of the layout are not checked."""

    @property
    def place(self) -> Place:
        """The identity of the seat."""
        return self.flight_id, self.seat_number

    @property
    def passenger(self) -> FlightPassenger:
        """The identity of the passenger."""
        return self.flight_id, self.passenger_id


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """A request to hold seats for `owner`; `actor` is the principal that sends it.

    `limits` is None if SEAT-16 does not apply to the owner. `address` is the client's network address if the owner is a
    guest and the address is known, otherwise empty. With `takes_offers`, a right of the waitlist, OFFERED seats may be
    taken. With `confirm` the seats are confirmed in the same transaction. Only services may change, extend, confirm or
    cancel a `managed` hold.
    """

    seats: tuple[AskedSeat, ...]
    owner: str
    actor: str
    purpose: pb.Hold.Purpose.ValueType
    ttl: timedelta
    extensions: int
    limits: Limits | None
    address: str = ""
    address_limits: Limits | None = None
    takes_offers: bool = False
    confirm: bool = False
    managed: bool = False
    request_key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class OnHold:
    """A request about one hold.

    If `owner` is set, only a hold of that owner is found; it is None for callers that act for others. `manages` is the
    right of services, this one included, to move managed holds and to cancel confirmed seats that bookings include.
    `after_departure` permits releasing confirmed seats of departed flights.
    """

    hold_id: UUID
    owner: str | None
    actor: str
    reason: str = ""
    manages: bool = False
    after_departure: bool = False
    request_key: RequestKey | None = None
    unless_confirmed: bool = False
    """True if a cancel request must leave a confirmed hold as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPassenger(OnHold):
    """A request about one passenger's seat in a hold."""

    flight_id: str
    passenger_id: str


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A request to replace the seats of a hold."""

    on: OnHold
    seats: tuple[AskedSeat, ...]
    limits: Limits
    address_limits: Limits

    @property
    def request_key(self) -> RequestKey | None:
        """The idempotency key of the request."""
        return self.on.request_key


@dataclass(frozen=True, slots=True)
class OnSeat:
    """A request about one seat, independent of its holds."""

    flight_id: str
    seat_number: str
    actor: str
    reason: str
    request_key: RequestKey | None = None


@dataclass(slots=True)
class Effects:
    """What a transaction changed; the caller publishes it after the commit.

    `flights` are the flights with changed seats, `events` counts the rows written to the outbox.
    """

    flights: set[str] = field(default_factory=set)
    events: int = 0

    def add(self, other: Effects) -> None:
        """Adds the effects of a savepoint."""
        self.flights |= other.flights
        self.events += other.events


def request_id(key: RequestKey | None) -> UUID | None:
    """Returns the request id for the ledger; None without an idempotency key."""
    return key.key if key is not None else None
