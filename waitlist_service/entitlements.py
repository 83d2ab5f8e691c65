"""Compares entries with the manifest, and ends or updates those that differ (WL-7).

An entry depends on two facts of the check-in service: its passenger is on the manifest, and check-in is open. The
waitlist service asks for them when a passenger joins, when a match is claimed, when an offer is accepted, with each
sweep of a flight, and when check-in closes. It does not depend on events, which may be lost (docs/decisions/0032).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from services import db, telemetry, timers
from services.db import Conn, Pool
from services.errors import Unavailable
from services.reconciler import Comparison, waiting
from waitlist_service import cancellations, eligibility, entries, released_seats
from waitlist_service.entries import Entry, Facts
from waitlist_service.peers import FlightTimes, Manifest, Peers

ENTITLEMENT_ENDED: Final = "ENTITLEMENT_ENDED"
CHECK_IN_CLOSED: Final = "CHECK_IN_CLOSED"
SEAT_NO_LONGER_FITS: Final = "SEAT_NO_LONGER_FITS"
ACTOR: Final = "checkin"
# The passengers in one request; the check-in service accepts at most 500.
PAGE: Final = 200
# The pause until the entries of a closed flight that still had a claim or an acceptance in progress are tried again.
CLOSE_AGAIN: Final = timedelta(seconds=1)
# Sweeps compare a flight every few seconds. The reconciler takes flights that were not compared for this time.
OVERDUE_SECONDS: Final = 10

_log = telemetry.log("entitlements")


@dataclass(frozen=True, slots=True)
class _Changes:
    """The differences between live entries and the manifest.

    `gone` are entries whose passenger is no longer on the manifest; `changed` are entries with new facts.
    """

    gone: Sequence[Entry]
    changed: Sequence[tuple[Entry, Facts]]

    @classmethod
    def of(cls, page: Sequence[Entry], manifest: Manifest) -> _Changes:
        gone: list[Entry] = []
        changed: list[tuple[Entry, Facts]] = []
        for entry in page:
            facts = manifest.passengers.get((entry.flight_id, entry.passenger_id))
            # A lap infant gets no seat, so that its entry ends, too.
            if facts is None or facts.type == "INFANT":
                gone.append(entry)
            elif facts != entry.facts:
                changed.append((entry, facts))
        return cls(gone, changed)


class Entitlements:
    """Compares entries with the manifest.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(self, pool: Pool, peers: Peers, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._tell = tell

    def comparison(self) -> Comparison:
        """Returns the comparison that repairs flights whose sweep was lost.

        These are flights with an open waitlist. Such a flight has no timer SWEEP, and was not compared for
        OVERDUE_SECONDS.
        """
        lost = f"""
            SELECT flight_id FROM flights
            WHERE open AND flight_id > $1 AND compare_time < statement_timestamp() - interval '{OVERDUE_SECONDS} s'
              AND NOT EXISTS (SELECT FROM timers
                              WHERE name = '{entries.SWEEP}' AND subject = flight_id
                                AND coalesce(fire_time, 'infinity') = 'infinity')
            ORDER BY flight_id LIMIT $2
        """  # noqa: S608
        return Comparison("entitlements", waiting(self._pool, lost), self.repair)

    async def repair(self, flight_id: str) -> bool:
        """Sets the timer of a flight's sweep again, and compares its live entries."""
        async with db.transaction(self._pool) as conn:
            await timers.set_timer(conn, entries.SWEEP, flight_id)
        await self.compare(flight_id)
        return True

    async def try_to_compare(self, flight_id: str) -> None:
        """Compares a flight's live entries, if the check-in service is up.

        Otherwise it logs a warning. The next sweep of the flight tries again.
        """
        try:
            await self.compare(flight_id)
        except Unavailable as error:
            _log.warning(
                "entitlements not compared with the check-in service; retrying later",
                flight_id=flight_id,
                error=repr(error),
            )

    async def compare(self, flight_id: str) -> None:
        """Compares all live entries of a flight, one page at a time. Raises Unavailable."""
        after = 0
        while True:
            async with db.session(self._pool) as conn:
                page = await entries.live(conn, flight_id, after_number=after, limit=PAGE)
            if page and not await self.compare_entries(flight_id, page):
                return
            if len(page) < PAGE:
                break
            after = page[-1].number
        async with db.session(self._pool) as conn:
            await conn.execute(
                "UPDATE flights SET compare_time = statement_timestamp() WHERE flight_id = $1", flight_id
            )

    async def compare_entries(self, flight_id: str, page: Sequence[Entry]) -> bool:
        """Compares live entries of a flight, and writes the differences.

        Returns False if check-in has closed or the flight is cancelled: then all entries of the flight are ended.
        Raises Unavailable if the check-in service does not respond; then nothing has changed.
        """
        manifest = await self._peers.manifest([(flight_id, entry.passenger_id) for entry in page], [flight_id])
        if await self._has_closed(flight_id, manifest):
            return False
        changes = _Changes.of(page, manifest)
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, flight_id)
            times = manifest.flights.get(flight_id)
            if times is not None:
                await follow_times(conn, flight_id, times)
            await _apply(conn, flight_id, changes)
        self._tell()
        return True

    async def close(self, flight_id: str) -> None:
        """Ends all entries of a flight if its check-in has closed.

        If the close time has moved, the timer is set to the new one.
        """
        manifest = await self._peers.manifest([], [flight_id])
        if await self._has_closed(flight_id, manifest):
            return
        times = manifest.flights.get(flight_id)
        if times is None:
            # The check-in service does not know the flight, so that no passenger of it is on a manifest.
            return await self.compare(flight_id)
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, flight_id)
            await follow_times(conn, flight_id, times, set_again=True)
        self._tell()

    async def _has_closed(self, flight_id: str, manifest: Manifest) -> bool:
        """Ends all entries of a closed flight; returns True if it is closed.

        A flight is closed if its check-in has closed, or if it is cancelled.
        """
        times = manifest.flights.get(flight_id)
        if times is None:
            return False
        if times.cancel_time is not None:
            async with db.transaction(self._pool) as conn:
                await cancellations.cancel_flight(
                    conn, flight_id, reason=times.cancel_reason, cancel_time=times.cancel_time
                )
            self._tell()
            return True
        if not times.closed:
            return False
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, flight_id)
            await conn.execute(
                """
                UPDATE flights SET close_time = $2
                WHERE flight_id = $1 AND close_time IS DISTINCT FROM $2
                """,
                flight_id,
                times.close_time,
            )
        await self._end_all(flight_id)
        return True

    async def _end_all(self, flight_id: str) -> None:
        """Ends all live entries of a flight, PAGE in each transaction.

        Entries with a claim, an acceptance or a withdrawal in progress stay; the timer CLOSE tries them again.
        """
        ended = PAGE
        while ended == PAGE:
            async with db.transaction(self._pool) as conn:
                await released_seats.lock(conn, flight_id)
                idle = await entries.endable(conn, flight_id, limit=PAGE)
                freed = await entries.end(conn, idle, actor=ACTOR, reason=CHECK_IN_CLOSED)
                await released_seats.return_seats_later(conn, flight_id, freed)
                ended = len(idle)
                if ended < PAGE:
                    if await entries.has_live_entries(conn, flight_id):
                        await timers.set_timer(conn, entries.CLOSE, flight_id, after=CLOSE_AGAIN)
                    else:
                        # The flight's last sweep closes the waitlist at the seat service.
                        await timers.set_timer(conn, entries.SWEEP, flight_id)
            self._tell()


async def follow_times(conn: Conn, flight_id: str, times: FlightTimes, *, set_again: bool = False) -> None:
    """Writes a flight's origin and the time when its check-in closes.

    If one of them changed, or with `set_again`, it sets the timer that ends the entries at that time.
    """
    left = await conn.fetchval(
        """
        UPDATE flights SET close_time = $2, origin = $4
        WHERE flight_id = $1 AND ($3 OR close_time IS DISTINCT FROM $2 OR origin <> $4)
        RETURNING greatest($2::timestamptz - statement_timestamp(), interval '0.2 s')
        """,
        flight_id,
        times.close_time,
        set_again,
        times.origin,
    )
    if left is not None:
        await timers.set_timer(conn, entries.CLOSE, flight_id, after=left)


async def _apply(conn: Conn, flight_id: str, changes: _Changes) -> None:
    """Ends and updates entries of a locked flight.

    Matches their former seats with other entries.
    """
    freed = await entries.end(conn, changes.gone, actor=ACTOR, reason=ENTITLEMENT_ENDED)
    for entry, facts in changes.changed:
        now = await entries.update_facts(conn, entry, facts)
        if now is None or now.seat_number is None:
            continue
        fits = await _fits(conn, now)
        if now.state == "OFFERED":
            if not fits:
                await entries.withdraw(
                    conn, [now.entry_id], to="DECLINED", actor=ACTOR, reason=SEAT_NO_LONGER_FITS, owner=None
                )
        elif not fits and await entries.remove_match(conn, now):
            freed.add(now.seat_number)
    if freed:
        unwanted = await released_seats.match_with_entries(conn, flight_id, dict.fromkeys(freed))
        await released_seats.return_seats_later(conn, flight_id, unwanted)


async def _fits(conn: Conn, entry: Entry) -> bool:
    """Returns True if the passenger is eligible for the entry's seat.

    The seat must also be in the passenger's cabin.
    """
    row = await conn.fetchrow(
        "SELECT cabin::text, exit_row, infant_allowed FROM seats WHERE flight_id = $1 AND seat_number = $2",
        entry.flight_id,
        entry.seat_number,
    )
    if row is None or row["cabin"] != entry.cabin:
        return False
    return (
        eligibility.forbidden(
            entry.type, entry.special_services, exit_row=row["exit_row"], infant_allowed=row["infant_allowed"]
        )
        is None
    )
