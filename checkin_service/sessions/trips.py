"""Trips: the passengers of a locator with their flights, seats and check-ins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from checkin_service.peers import Peers, Place
from checkin_service.records import INFANT_SEAT
from services import db, telemetry
from services.db import Conn, Pool
from services.errors import Unavailable
from services.proto import timestamp

# Long enough for a healthy seat service. If it takes longer, the passenger still sees the trip.
SEATS_TIMEOUT_SECONDS: Final = 0.5

_log = telemetry.log("trips")


@dataclass(frozen=True, slots=True)
class Traveller:
    """A passenger on one flight of a trip, with the live check-in if there is one."""

    flight_id: str
    passenger_id: str
    given_name: str
    last_name: str
    type: str
    cabin: str
    flight_number: str
    origin: str
    destination: str
    departure_time: datetime
    open_time: datetime
    close_time: datetime
    checkin_id: UUID | None
    checkin_state: str
    checkin_seat: str

    @property
    def place(self) -> Place:
        """The flight and the passenger."""
        return (self.flight_id, self.passenger_id)

    def segment(self, seat_number: str) -> pb.Trip.Segment:
        """Returns the flight as callers see it."""
        return pb.Trip.Segment(
            flight_id=self.flight_id,
            cabin=pb.Cabin.Value(self.cabin),
            seat_number=seat_number,
            checkin_id=str(self.checkin_id or ""),
            checkin_state=pb.CheckIn.State.Value(self.checkin_state),
            flight_number=self.flight_number,
            origin=self.origin,
            destination=self.destination,
            departure_time=timestamp(self.departure_time),
            check_in_open_time=timestamp(self.open_time),
            check_in_close_time=timestamp(self.close_time),
        )


async def travellers(conn: Conn, pnr: str) -> list[Traveller]:
    """Returns the passengers of a locator, one for each of their flights.

    Omits flights that left more than a day ago. Adults come first; the flights of a passenger are in order of
    departure.
    """
    rows = await conn.fetch(
        """
        SELECT flight_id, passenger_id, given_name, last_name, type::text, cabin::text, flight_number, origin,
               destination, departure_time, departure_time - opens_before AS open_time,
               departure_time - closes_before AS close_time, live.checkin_id,
               coalesce(live.state::text, 'STATE_UNSPECIFIED') AS checkin_state,
               coalesce(live.seat_number, '') AS checkin_seat
        FROM passengers JOIN flights USING (flight_id)
        LEFT JOIN LATERAL (
            SELECT checkin_id, state, seat_number FROM check_ins
            WHERE check_ins.flight_id = passengers.flight_id AND check_ins.passenger_id = passengers.passenger_id
              AND check_ins.state <> 'CANCELLED' LIMIT 1
        ) AS live ON true
        WHERE passengers.pnr = $1 AND departure_time > statement_timestamp() - interval '1 day'
        ORDER BY passengers.type, passenger_id, departure_time
        """,
        pnr,
    )
    return [Traveller(**row) for row in rows]


class Trips:
    """Reads trips."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers

    async def get(self, pnr: str) -> pb.Trip:
        """Returns a trip. Raises TRIP_NOT_FOUND."""
        async with db.transaction(self._pool) as conn:
            found = await travellers(conn, pnr)
        if not found:
            raise refusals.trip_not_found()
        return await self.described(pnr, found)

    async def described(self, pnr: str, found: Sequence[Traveller]) -> pb.Trip:
        """Returns the trip of these travellers, with their seats."""
        seats = await self._seats([each for each in found if each.type != "INFANT"])
        passengers: dict[str, pb.Trip.Passenger] = {}
        for each in found:
            passenger = passengers.setdefault(
                each.passenger_id,
                pb.Trip.Passenger(
                    passenger_id=each.passenger_id,
                    given_name=each.given_name,
                    last_name=each.last_name,
                    type=pb.PassengerType.Value(each.type),
                ),
            )
            passenger.segments.append(each.segment(INFANT_SEAT if each.type == "INFANT" else seats[each.place]))
        return pb.Trip(pnr=pnr, passengers=passengers.values())

    async def _seats(self, seated: Sequence[Traveller]) -> Mapping[Place, str]:
        """Returns the confirmed seats of travellers.

        If the seat service is down, returns the seats of their check-ins instead.
        """
        try:
            found = await self._peers.seats_of([each.place for each in seated], timeout_seconds=SEATS_TIMEOUT_SECONDS)
        except Unavailable as error:
            _log.warning(
                "seat service unavailable; trip shows only the seats of its check-ins", error=repr(error.__cause__)
            )
            return {each.place: each.checkin_seat for each in seated}
        return {
            place: next((seat.seat_number for seat in seats if seat.confirm_time is not None), "")
            for place, seats in found.items()
        }
