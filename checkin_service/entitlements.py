"""What the seat service must know of the manifests: who may have a seat on a flight, and until when (SEAT-17).

Triggers of the schema count each change of a manifest in its own transaction and set a timer (migration 0005). The
timer sends what the seat service has not acknowledged, until it has. A lost message or a seat service that is down
only costs time. Calls that depend on a passenger's seat send that passenger's changes first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from weakref import WeakValueDictionary

from skyhigh.seat.v1 import seat_service_pb2 as seat

from checkin_service import checkins, flights, notices, records
from checkin_service.peers import Peers, Place, Seat
from checkin_service.records import INFANT_SEAT
from services import db, telemetry, timers
from services.db import Conn, Pool
from services.errors import Unavailable
from services.proto import timestamp
from services.time_limits import FACTOR
from services.timers import Handler

SEND_ENTITLEMENTS: Final = "send-entitlements"
# A few milliseconds of the seat service's work; its limit is 500.
AT_ONCE: Final = 200
# An import and a login do not wait longer for the seat service; the timer goes on.
PATIENCE_SECONDS: Final = 1.0 * FACTOR
# The limit of the contract. With INFT among them the others change nothing: it rules out what any of them rules out.
MOST_NEEDS: Final = 8

_log = telemetry.log("entitlements")


@dataclass(frozen=True, slots=True)
class Entitlement:
    """A passenger of a flight as the seat service must know it; `ended` if there is no right to a seat any more.

    `seat_included` while a confirmed booking includes a seat for the passenger: then no passenger or agent frees it.
    """

    flight_id: str
    passenger_id: str
    pnr: str
    type: str
    cabin: str
    needs: Sequence[str]
    ended: bool
    seat_included: bool
    revision: int

    @property
    def place(self) -> Place:
        """Which passenger of which flight."""
        return (self.flight_id, self.passenger_id)

    def message(self) -> seat.SyncPassengersRequest.ManifestPassenger:
        """Returns it as the seat service takes it."""
        return seat.SyncPassengersRequest.ManifestPassenger(
            flight_id=self.flight_id,
            passenger_id=self.passenger_id,
            pnr=self.pnr,
            profile=seat.PassengerProfile(
                type=seat.PassengerProfile.Type.Value(self.type),
                special_services=sorted(self.needs, key=lambda code: code != "INFT")[:MOST_NEEDS],
                cabin=seat.Seat.Cabin.Value(self.cabin),
            ),
            ended=self.ended,
            seat_included=self.seat_included,
            revision=self.revision,
        )


@dataclass(frozen=True, slots=True)
class FlightTimes:
    """When a flight leaves, as the seat service must know it."""

    flight_id: str
    departure_time: datetime
    revision: int

    def message(self) -> seat.SyncPassengersRequest.FlightTimes:
        """Returns it as the seat service takes it."""
        return seat.SyncPassengersRequest.FlightTimes(
            flight_id=self.flight_id, departure_time=timestamp(self.departure_time), revision=self.revision
        )


class Entitlements:
    """Sends changes of the manifests to the seat service."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers
        # An import and its timer would otherwise send the same rows twice.
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers by the names of their timers."""
        return {SEND_ENTITLEMENTS: Handler(self.send)}

    async def send(self, flight_id: str) -> None:
        """Sends all that the seat service has not acknowledged of a flight, in batches. Raises Unavailable."""
        async with self._alone(flight_id):
            while await self._send_some(flight_id) == AT_ONCE:
                pass

    async def send_of(self, flight_id: str, passenger_id: str) -> None:
        """Sends a passenger's changes, if there are any. Raises Unavailable; then a seat may not fit any more."""
        async with self._alone(flight_id):
            await self._send_some(flight_id, passenger_id=passenger_id)

    async def try_to_send(self, flight_ids: Collection[str], *, pnr: str | None = None) -> None:
        """Sends changes of flights, of one locator only if it is given; leaves to the timer what takes too long."""
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for flight_id in flight_ids:
                    async with self._alone(flight_id):
                        while await self._send_some(flight_id, pnr=pnr) == AT_ONCE:
                            pass
        except Exception as error:
            # The change is committed: no failure of this may refuse the call, and the timer repeats it.
            _log.warning("the seat service learns changes of a manifest later", error=repr(error))

    @asynccontextmanager
    async def _alone(self, flight_id: str) -> AsyncIterator[None]:
        lock = self._sending.get(flight_id)
        if lock is None:
            lock = self._sending[flight_id] = asyncio.Lock()
        async with lock:
            yield

    async def _send_some(self, flight_id: str, *, pnr: str | None = None, passenger_id: str | None = None) -> int:
        """Sends a batch; returns how many passengers it had.

        Raises Unavailable if the seat service can't judge some of them now; the others are acknowledged.
        """
        async with db.transaction(self._pool) as conn:
            passengers = await _unknown(conn, flight_id, pnr=pnr, passenger_id=passenger_id)
            times = await _unknown_times(conn, flight_id)
        if not passengers and times is None:
            return 0
        request = seat.SyncPassengersRequest(
            passengers=[each.message() for each in passengers], flights=[] if times is None else [times.message()]
        )
        freed, undecided = await self._peers.sync_passengers(request)
        decided = [each for each in passengers if each.place not in undecided]
        async with db.transaction(self._pool) as conn:
            # Writers of the manifest lock the flight first as well.
            await flights.lock(conn, [flight_id])
            await _acknowledge(conn, decided, times)
            await _follow(conn, decided, freed)
        if undecided:
            raise Unavailable("the seat service can't use the cabin layout of the flight, try again")
        return len(passengers)


async def unknown_flights(conn: Conn, pnr: str) -> list[str]:
    """Returns the flights on which the seat service does not know the locator's passengers as they are."""
    rows = await conn.fetch(
        """
        SELECT DISTINCT flight_id FROM passengers JOIN entitlements USING (flight_id, passenger_id)
        WHERE passengers.pnr = $1 AND known_revision < revision
        """,
        pnr,
    )
    return [row["flight_id"] for row in rows]


async def _unknown(conn: Conn, flight_id: str, *, pnr: str | None, passenger_id: str | None) -> list[Entitlement]:
    """Reads a batch of what the seat service has not acknowledged, as the manifest is now."""
    rows = await conn.fetch(
        """
        SELECT flight_id, passenger_id, entitlements.pnr, coalesce(passengers.type::text, 'ADULT') AS type,
               coalesce(passengers.cabin::text, 'CABIN_UNSPECIFIED') AS cabin,
               CASE WHEN passengers.pnr IS NULL THEN '{}' ELSE needs_of(passengers) END AS needs,
               passengers.pnr IS NULL OR flights.cancel_time IS NOT NULL AS ended,
               passengers.booking IS NOT NULL AND passengers.type <> 'INFANT' AS seat_included, revision
        FROM entitlements
        LEFT JOIN passengers USING (flight_id, passenger_id) LEFT JOIN flights USING (flight_id)
        WHERE flight_id = $1 AND known_revision < revision
          AND ($2::text IS NULL OR entitlements.pnr = $2) AND ($3::text IS NULL OR passenger_id = $3)
        ORDER BY passenger_id LIMIT $4
        """,
        flight_id,
        pnr,
        passenger_id,
        AT_ONCE,
    )
    return [Entitlement(**row) for row in rows]


async def _unknown_times(conn: Conn, flight_id: str) -> FlightTimes | None:
    row = await conn.fetchrow(
        """
        SELECT flight_id, departure_time, times_revision AS revision FROM flights
        WHERE flight_id = $1 AND known_times_revision < times_revision
        """,
        flight_id,
    )
    return None if row is None else FlightTimes(**row)


async def _acknowledge(conn: Conn, passengers: Sequence[Entitlement], times: FlightTimes | None) -> None:
    await conn.execute(
        """
        UPDATE entitlements SET known_revision = greatest(known_revision, sent.revision)
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS sent (flight_id, passenger_id, revision)
        WHERE entitlements.flight_id = sent.flight_id AND entitlements.passenger_id = sent.passenger_id
        """,
        [each.flight_id for each in passengers],
        [each.passenger_id for each in passengers],
        [each.revision for each in passengers],
    )
    if times is not None:
        await conn.execute(
            """
            UPDATE flights SET known_times_revision = greatest(known_times_revision, $2) WHERE flight_id = $1
            """,
            times.flight_id,
            times.revision,
        )


async def _follow(conn: Conn, passengers: Sequence[Entitlement], freed: Mapping[Place, Seat]) -> None:
    """Takes seats that do not fit any more from check-ins, in the transaction that acknowledges the change.

    A repeat of the call names no freed seat: so each live check-in of a changed passenger has its seat looked at, too.
    """
    rows = await conn.fetch(
        """
        SELECT checkin_id, flight_id, passenger_id FROM check_ins
        JOIN unnest($1::text[], $2::text[]) AS sent (flight_id, passenger_id) USING (flight_id, passenger_id)
        WHERE state <> 'CANCELLED' AND seat_number IS DISTINCT FROM $3
        ORDER BY checkin_id FOR NO KEY UPDATE OF check_ins
        """,
        [each.flight_id for each in passengers],
        [each.passenger_id for each in passengers],
        INFANT_SEAT,
    )
    ended = {each.place for each in passengers if each.ended}
    for row in rows:
        checkin_id, place = row["checkin_id"], (row["flight_id"], row["passenger_id"])
        await timers.set_timer(conn, checkins.LOOK_AT_SEAT, str(checkin_id), after=checkins.FIRST_LOOK)
        check_in = await records.find(conn, checkin_id)
        lost = freed.get(place)
        # What ended a passenger's right cancels the check-in too, with its own reason.
        if place in ended or lost is None or lost.hold_id != check_in.hold_id:
            continue
        if check_in.state != "COMPLETED":
            await checkins.stand_up(conn, check_in)
        elif await checkins.lose_seat(conn, check_in, reason=checkins.SEAT_NO_LONGER_FITS):
            await notices.seat_no_longer_fits(conn, check_in)
