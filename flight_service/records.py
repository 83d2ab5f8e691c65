"""A flight as its rows store it, and as the contract shows it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from functools import cached_property
from typing import Final

import asyncpg
from google.protobuf.duration_pb2 import Duration
from google.type.money_pb2 import Money
from skyhigh.flight.v1 import flight_service_pb2 as pb

from services import airports
from services.money import Amount, money_of
from services.proto import timestamp

CURRENCY: Final = "USD"

# The free seats of one flight by cabin; cabins without a count are omitted.
FreeSeats = Mapping[str, int]

SELECT: Final = """
    SELECT flights.flight_id, flights.flight_number, flights.origin, flights.destination, flights.departure_time,
        flights.arrival_time, flights.departure_date, flights.aircraft_type, flights.layout_id,
        flights.check_in_opens_before, flights.check_in_closes_before, flights.boarding_before, flights.gate,
        flights.state::text, flights.cancel_reason, flights.cancel_time, cabins.names, cabins.fares, cabins.seats
    FROM flights CROSS JOIN LATERAL (
        SELECT array_agg(flight_cabins.cabin::text ORDER BY flight_cabins.cabin) AS names,
               array_agg(flight_cabins.fare_cents ORDER BY flight_cabins.cabin) AS fares,
               array_agg(flight_cabins.total_seats ORDER BY flight_cabins.cabin) AS seats
        FROM flight_cabins WHERE flight_cabins.flight_id = flights.flight_id
    ) AS cabins
"""


# Without slots, which would exclude cached properties.
@dataclass(frozen=True)
class Flight:
    """A flight of the schedule, without its counts of free seats.

    Only its state and its counts ever change, and the counts are stored apart.
    """

    flight_id: str
    flight_number: str
    origin: str
    destination: str
    departure_time: datetime
    arrival_time: datetime
    departure_date: date
    aircraft_type: str
    layout_id: str
    fares: Mapping[str, int]
    """The fare of one adult in cents, by cabin from nose to tail."""
    seats: Mapping[str, int]
    """The number of seats, by cabin."""
    gate: str
    check_in_opens_before: timedelta
    check_in_closes_before: timedelta
    boarding_before: timedelta
    state: str
    cancel_reason: str
    cancel_time: datetime | None

    @cached_property
    def sale_end(self) -> datetime:
        """When check-in, and with it the sale, closes."""
        return self.departure_time - self.check_in_closes_before

    def free(self, cabin: str, counted: FreeSeats) -> int:
        """Returns the number of free seats in a cabin.

        All seats are free if there is no count yet; a cancelled flight has none.
        """
        return 0 if self.state == "CANCELLED" else counted.get(cabin, self.seats.get(cabin, 0))

    @cached_property
    def facts(self) -> pb.Flight:
        """The contract's message without the free seats. Do not modify it."""
        origin_zone, destination_zone = airports.zone(self.origin), airports.zone(self.destination)
        return pb.Flight(
            flight_id=self.flight_id,
            flight_number=self.flight_number,
            origin=self.origin,
            destination=self.destination,
            departure_time=timestamp(self.departure_time),
            arrival_time=timestamp(self.arrival_time),
            status=pb.Flight.Status.Value(self.state),
            aircraft_type=self.aircraft_type,
            price=usd([*self.fares.values()][-1]),
            total_seats=sum(self.seats.values()),
            cabins=[
                pb.Flight.CabinFare(cabin=pb.Cabin.Value(cabin), price=usd(cents), total_seats=self.seats[cabin])
                for cabin, cents in self.fares.items()
            ],
            departure_date=self.departure_date.isoformat(),
            origin_time_zone=origin_zone.key if origin_zone else "",
            destination_time_zone=destination_zone.key if destination_zone else "",
            layout_id=self.layout_id,
            check_in_opens_before=_duration(self.check_in_opens_before),
            check_in_closes_before=_duration(self.check_in_closes_before),
            boarding_before=_duration(self.boarding_before),
            gate=self.gate,
            cancel_reason=self.cancel_reason,
            cancel_time=timestamp(self.cancel_time) if self.cancel_time else None,
        )

    def message(self, counted: FreeSeats) -> pb.Flight:
        """Returns the contract's message with these counts of free seats."""
        message = pb.Flight()
        message.CopyFrom(self.facts)
        for cabin, fare in zip(self.fares, message.cabins, strict=True):
            fare.available_seats = self.free(cabin, counted)
            message.available_seats += fare.available_seats
        return message


def flight_of(row: asyncpg.Record) -> Flight:
    """Returns the flight of a row of SELECT."""
    return Flight(
        flight_id=row["flight_id"],
        flight_number=row["flight_number"],
        origin=row["origin"],
        destination=row["destination"],
        departure_time=row["departure_time"],
        arrival_time=row["arrival_time"],
        departure_date=row["departure_date"],
        aircraft_type=row["aircraft_type"],
        layout_id=row["layout_id"],
        fares=dict(zip(row["names"], row["fares"], strict=True)),
        seats=dict(zip(row["names"], row["seats"], strict=True)),
        gate=row["gate"],
        check_in_opens_before=row["check_in_opens_before"],
        check_in_closes_before=row["check_in_closes_before"],
        boarding_before=row["boarding_before"],
        state=row["state"],
        cancel_reason=row["cancel_reason"] or "",
        cancel_time=row["cancel_time"],
    )


def usd(cents: int) -> Money:
    """Returns an amount in US dollars, the only currency of fares."""
    return money_of(Amount(CURRENCY, cents))


def _duration(length: timedelta) -> Duration:
    duration = Duration()
    duration.FromTimedelta(length)
    return duration
