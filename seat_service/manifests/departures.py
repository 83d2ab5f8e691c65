"""Departure times: their copy, and the holds that follow a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds.departure_limit import end_holds_at_departure
from seat_service.holds.locks import lock_flight
from seat_service.layouts.cabin_layouts import Layout
from seat_service.requests import Effects
from services import db, timers
from services.db import Conn, Pool
from services.errors import Refusal
from services.idempotency import RequestKey

if TYPE_CHECKING:
    from seat_service.inventory import Inventory
from seat_service.manifests.manifest_copy import review

# The timer that adapts the holds of a flight to a new departure time.
FOLLOW_DEPARTURE: Final = "follow-departure"
# A hold lasts one day at most (ClaimSeatRequest.ttl): no present hold reaches a departure after this time.
LONGEST_HOLD: Final = timedelta(days=1, hours=1)
HOLDS_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Departure:
    """The departure time of a flight, and its revision."""

    flight_id: str
    departure_time: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Departures:
    """A request to write the departure times of flights."""

    departures: tuple[Departure, ...]
    request_key: RequestKey | None = None


async def set_departures(
    conn: Conn, requests: Sequence[Departures], *, effects: Effects
) -> list[pb.SyncPassengersResponse | Refusal]:
    """Writes newer departure times; sets the timers that adapt the holds.

    A departure time is newer if its revision is higher. From its departure on, no seat of a flight can be held,
    changed, claimed or confirmed. Seats of flights with a timer are locked before the write: a concurrent hold either
    reads the new time, or has locked its seats first, and then the timer finds the hold. Refuses no request.
    """
    for request in requests:
        newest: dict[str, Departure] = {}
        for each in request.departures:
            if each.flight_id not in newest or newest[each.flight_id].revision < each.revision:
                newest[each.flight_id] = each
        rows = await conn.fetch(
            """
            SELECT asked.flight_id,
                   -- A flight that had left, as far as was known, may have passengers who ended since, however long the
                   -- delay is.
                   asked.departure_time < statement_timestamp() + $4
                   OR coalesce(departures.departure_time <= statement_timestamp(), false) AS to_follow
            FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS asked (flight_id, departure_time, revision)
            LEFT JOIN departures USING (flight_id)
            WHERE coalesce(departures.revision, -1) < asked.revision
            """,
            *_columns(newest),
            LONGEST_HOLD,
        )
        to_follow = sorted(row["flight_id"] for row in rows if row["to_follow"])
        for flight_id in to_follow:
            await lock_flight(conn, flight_id)
        await conn.execute(
            """
            INSERT INTO departures (flight_id, departure_time, revision)
            SELECT flight_id, departure_time, revision
            FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS new (flight_id, departure_time, revision)
            ON CONFLICT (flight_id) DO UPDATE
            SET departure_time = excluded.departure_time, revision = excluded.revision,
                update_time = statement_timestamp()
            WHERE departures.revision < excluded.revision
            """,
            *_columns({row["flight_id"]: newest[row["flight_id"]] for row in rows}),
        )
        if to_follow:
            await timers.set_timers(conn, FOLLOW_DEPARTURE, to_follow)
    return [pb.SyncPassengersResponse() for _ in requests]


def _columns(departures: Mapping[str, Departure]) -> tuple[list[str], list[datetime], list[int]]:
    ordered = [departures[flight_id] for flight_id in sorted(departures)]
    return (
        [each.flight_id for each in ordered],
        [each.departure_time for each in ordered],
        [each.revision for each in ordered],
    )


class Departing:
    """Adapts the holds and confirmed seats of a flight to a new departure time."""

    def __init__(self, pool: Pool, inventory: Inventory, layouts: Mapping[str, Layout]) -> None:
        self._pool = pool
        self._inventory = inventory
        self._layouts = layouts

    async def follow(self, flight_id: str) -> None:
        """Moves the end of HELD holds to the departure at the latest; then calls `review`.

        A confirmed seat of a departed flight stays. Raises LayoutUnusable if `review` left a passenger undecided: the
        timer is then retried.
        """
        while await self._end_some(flight_id):
            pass
        effects = Effects()
        async with db.transaction(self._pool) as conn:
            verdict = await review(conn, flight_id, layouts=self._layouts, effects=effects)
        self._inventory.tell(effects)
        for refusal in verdict.undecided.values():
            raise refusal

    async def _end_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            return await end_holds_at_departure(conn, flight_id, limit=HOLDS_AT_ONCE)
