"""What transitions are asked for, and what they leave to be told."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat

from seat_service import hoarding
from seat_service.cabin_layouts import LayoutSeat
from seat_service.eligibility import Person
from services.idempotency import RequestKey

Place = tuple[str, str]
"""A seat's identity: flight id and seat number."""
FlightPassenger = tuple[str, str]
"""A passenger's identity: flight id and passenger id."""
ANY_ADULT: Final = Person(PassengerProfile.ADULT, frozenset(), Seat.CABIN_UNSPECIFIED)


@dataclass(frozen=True, slots=True)
class AskedSeat:
    """A seat for a passenger. `person` is what the caller says, which counts for passengers of no manifest."""

    flight_id: str
    seat_number: str
    passenger_id: str
    person: Person = ANY_ADULT
    described: LayoutSeat | None = None
    """The seat as its layout describes it; None skips the layout's rules."""

    @property
    def place(self) -> Place:
        """Which seat it is."""
        return self.flight_id, self.seat_number

    @property
    def passenger(self) -> FlightPassenger:
        """Who shall sit there."""
        return self.flight_id, self.passenger_id


@dataclass(frozen=True, slots=True)
class HoldRequest:
    """Asks to hold seats for `owner`; `actor` is who asks.

    `limits` is None for owners whom SEAT-16 does not bind; `address` is empty unless the owner is a guest whose address
    outside is known. `takes_offers` is the waitlist's right to OFFERED seats;
    `confirm` has them confirmed in the same transaction. A `managed` hold is for services alone to go on with.
    """

    seats: tuple[AskedSeat, ...]
    owner: str
    actor: str
    purpose: pb.Hold.Purpose.ValueType
    ttl: timedelta
    extensions: int
    limits: hoarding.Limits | None
    address: str = ""
    address_limits: hoarding.Limits | None = None
    takes_offers: bool = False
    confirm: bool = False
    managed: bool = False
    request_key: RequestKey | None = None


@dataclass(frozen=True, slots=True)
class OnHold:
    """Asks something of one hold. `owner` is None for who acts for others, else only the owner's hold is meant.

    `manages` is the right of services, and of this one itself, to managed holds and to free seats that bookings
    include; `after_departure` also to confirmed seats of a flight that has left.
    """

    hold_id: UUID
    owner: str | None
    actor: str
    reason: str = ""
    manages: bool = False
    after_departure: bool = False
    request_key: RequestKey | None = None
    unless_confirmed: bool = False
    """Whether cancelling leaves a confirmed hold as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnPassenger(OnHold):
    """Asks something of one passenger's seat in a hold."""

    flight_id: str
    passenger_id: str


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """Asks for other seats in a hold."""

    on: OnHold
    seats: tuple[AskedSeat, ...]
    limits: hoarding.Limits
    address_limits: hoarding.Limits

    @property
    def request_key(self) -> RequestKey | None:
        """The key of the request."""
        return self.on.request_key


@dataclass(frozen=True, slots=True)
class OnSeat:
    """Asks something of one seat, whoever has it."""

    flight_id: str
    seat_number: str
    actor: str
    reason: str
    request_key: RequestKey | None = None


@dataclass(slots=True)
class Effects:
    """What a transaction changed, to be told when it has committed."""

    flights: set[str] = field(default_factory=set)
    events: int = 0

    def add(self, other: Effects) -> None:
        """Takes over what a savepoint changed."""
        self.flights |= other.flights
        self.events += other.events


def request_id(key: RequestKey | None) -> UUID | None:
    """Returns what the ledger shows of a request."""
    return key.key if key is not None else None
