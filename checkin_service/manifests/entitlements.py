"""Sends the passengers' entitlements to seats to the seat service (SEAT-17).

An entitlement says that a passenger may have a seat on a flight, and until when. Triggers of the schema count each
change of a manifest in the transaction of the change, and set a timer (migration 0005). The timer sends a change until
the seat service acknowledges it, so a lost message or an outage of the seat service only delays it. Calls that depend
on a passenger's seat send that passenger's changes first.
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

from checkin_service import notices, records
from checkin_service.check_ins import cancel_reasons, cancellation, seat_changes, timer_names
from checkin_service.manifests import flights
from checkin_service.peers import Peers, Place, Seat
from checkin_service.records import INFANT_SEAT
from services import db, telemetry, timers
from services.db import Conn, Pool
from services.errors import Unavailable
from services.proto import timestamp
from services.time_limits import FACTOR
from services.timers import Handler

SEND_ENTITLEMENTS: Final = "send-entitlements"
# Passengers per message: a few milliseconds of work for the seat service, which accepts 500.
AT_ONCE: Final = 200
# An import or a login waits at most this long for the seat service; the timer sends what is left.
PATIENCE_SECONDS: Final = 1.0 * FACTOR
# The limit of the contract. The codes that `needs_of` adds are sent first, because INFT and CHLD exclude every seat
# that any other code excludes.
MOST_NEEDS: Final = 8
ADDED_NEEDS: Final = ("INFT", "CHLD")

_log = telemetry.log("entitlements")


@dataclass(frozen=True, slots=True)
class Entitlement:
    """A passenger's right to a seat on a flight, as the seat service must know it.

    `ended` is true if the passenger has no right to a seat any more. `seat_included` is true while a confirmed booking
    includes a seat for the passenger: then no passenger or agent can release it.
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
        """The flight and the passenger."""
        return (self.flight_id, self.passenger_id)

    def message(self) -> seat.SyncPassengersRequest.ManifestPassenger:
        """Returns the entitlement as a message of the seat service."""
        return seat.SyncPassengersRequest.ManifestPassenger(
            flight_id=self.flight_id,
            passenger_id=self.passenger_id,
            pnr=self.pnr,
            profile=seat.PassengerProfile(
                type=seat.PassengerProfile.Type.Value(self.type),
                special_services=sorted(self.needs, key=lambda code: code not in ADDED_NEEDS)[:MOST_NEEDS],
                cabin=seat.Seat.Cabin.Value(self.cabin),
            ),
            ended=self.ended,
            seat_included=self.seat_included,
            revision=self.revision,
        )


@dataclass(frozen=True, slots=True)
class FlightTimes:
    """The departure time of a flight, as the seat service must know it."""

    flight_id: str
    departure_time: datetime
    revision: int

    def message(self) -> seat.SyncPassengersRequest.FlightTimes:
        """Returns the times as a message of the seat service."""
        return seat.SyncPassengersRequest.FlightTimes(
            flight_id=self.flight_id, departure_time=timestamp(self.departure_time), revision=self.revision
        )


class Entitlements:
    """Sends changes of the manifests to the seat service."""

    def __init__(self, pool: Pool, peers: Peers) -> None:
        self._pool = pool
        self._peers = peers
        # One lock per flight: an import and its timer would otherwise send the same rows twice.
        self._sending: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def handlers(self) -> Mapping[str, Handler]:
        """Returns each handler by the name of its timer."""
        return {SEND_ENTITLEMENTS: Handler(self.send)}

    async def send(self, flight_id: str) -> None:
        """Sends all unacknowledged changes of a flight, in batches. Raises Unavailable."""
        async with self._alone(flight_id):
            while await self._send_some(flight_id) == AT_ONCE:
                pass

    async def send_of(self, flight_id: str, passenger_id: str) -> None:
        """Sends the unacknowledged changes of a passenger, if there are any.

        Raises Unavailable; then the seat may not fit the passenger any more.
        """
        async with self._alone(flight_id):
            await self._send_some(flight_id, passenger_id=passenger_id)

    async def try_to_send(self, flight_ids: Collection[str], *, pnr: str | None = None) -> None:
        """Sends changes of flights for at most PATIENCE_SECONDS, and only logs a failure.

        With `pnr`, sends only the changes of that locator's passengers. The timer sends what is left.
        """
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                for flight_id in flight_ids:
                    async with self._alone(flight_id):
                        while await self._send_some(flight_id, pnr=pnr) == AT_ONCE:
                            pass
        except Exception as error:
            # The change is committed, so a failure here must not fail the call; the timer sends the change.
            _log.warning("manifest changes not sent to the seat service yet; retrying later", error=repr(error))

    @asynccontextmanager
    async def _alone(self, flight_id: str) -> AsyncIterator[None]:
        lock = self._sending.get(flight_id)
        if lock is None:
            lock = self._sending[flight_id] = asyncio.Lock()
        async with lock:
            yield

    async def _send_some(self, flight_id: str, *, pnr: str | None = None, passenger_id: str | None = None) -> int:
        """Sends one batch; returns the number of passengers in it.

        Raises Unavailable if the seat service can't decide about some of them now; the others are acknowledged.
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
            # The flight first, in the same order as the writers of the manifest, so that no deadlock is possible.
            await flights.lock(conn, [flight_id])
            await _acknowledge(conn, decided, times)
            await _follow(conn, decided, freed)
        if undecided:
            raise Unavailable("the seat service can't use the cabin layout of the flight; retry")
        return len(passengers)


async def unknown_flights(conn: Conn, pnr: str) -> list[str]:
    """Returns the flights on which passengers of the locator have unsent changes.

    A change is unsent until the seat service has acknowledged it.
    """
    rows = await conn.fetch(
        """
        SELECT DISTINCT flight_id FROM passengers JOIN entitlements USING (flight_id, passenger_id)
        WHERE passengers.pnr = $1 AND known_revision < revision
        """,
        pnr,
    )
    return [row["flight_id"] for row in rows]


async def _unknown(conn: Conn, flight_id: str, *, pnr: str | None, passenger_id: str | None) -> list[Entitlement]:
    """Reads a batch of unacknowledged passengers, as the manifest has them now."""
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
    """Applies the seat service's releases to check-ins, with the acknowledgement.

    A released seat no longer fits its passenger: a completed check-in is cancelled and the passenger notified, another
    check-in loses its seat. The seat service names a released seat only once, and that response may have been lost. So
    a timer also re-checks the seat of each live check-in of a changed passenger.
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
        await timers.set_timer(conn, timer_names.CHECK_SEAT, str(checkin_id), after=timer_names.FIRST_CHECK)
        check_in = await records.find(conn, checkin_id)
        lost = freed.get(place)
        # The cause that ended the passenger's right also cancels the check-in, with its own reason.
        if place in ended or lost is None or lost.hold_id != check_in.hold_id:
            continue
        if check_in.state != "COMPLETED":
            await seat_changes.remove_seat(conn, check_in)
        elif await cancellation.cancel_without_seat(conn, check_in, reason=cancel_reasons.SEAT_NO_LONGER_FITS):
            await notices.seat_no_longer_fits(conn, check_in)
