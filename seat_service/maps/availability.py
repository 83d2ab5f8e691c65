"""Publishes the seat counts of flights: `seat.availability.v1` (decision 11).

The transaction that changes a seat does not write this event, because all holds of a flight would queue at one row.
About one second later the counts of the flight are read once, for all changes up to then, and published with the
version of its map. The table `availability` has the version that was published last. So the reconciler finds flights
whose event is missing because a process was killed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Final
from uuid import uuid4

from skyhigh.seat.v1 import events_pb2

from seat_service.layouts.cabin_layouts import Layout
from seat_service.maps import seat_map
from seat_service.maps.seat_map import Snapshot
from services import db, outbox
from services.db import Conn, Pool
from services.outbox import Event, Relay

ROUTING_KEY: Final = "seat.availability.v1"
BEAT_SECONDS: Final = 1.0
# Counting reads every seat of a flight. With more changed flights in a beat, the counts are late and not the holds.
FLIGHTS_PER_BEAT: Final = 100


class Availability:
    """Collects changed flights, and publishes their seat counts."""

    def __init__(self, pool: Pool, layouts: Mapping[str, Layout], relay: Relay) -> None:
        self._pool = pool
        self._layouts = layouts
        self._relay = relay
        # A dict keeps the order of arrival, so that busy flights cannot keep a quiet one waiting for ever.
        self._changed: dict[str, None] = {}

    def changed(self, flight_ids: set[str]) -> None:
        """Notes that a committed transaction changed seats of these flights."""
        self._changed.update(dict.fromkeys(flight_ids))

    async def run(self) -> None:
        """Publishes the counts of changed flights every BEAT_SECONDS, until cancelled."""
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            due = list(self._changed)[:FLIGHTS_PER_BEAT]
            for flight_id in due:
                del self._changed[flight_id]
            if not due:
                continue
            try:
                async with db.transaction(self._pool) as conn:
                    await announce(conn, due, layouts=self._layouts)
            except Exception:
                self.changed(set(due))
                raise
            self._relay.wake()


async def announce(conn: Conn, flight_ids: Sequence[str], *, layouts: Mapping[str, Layout]) -> int:
    """Writes one event with the counts of changed flights; returns how many flights.

    A flight has changed if its map's version is above that of its last event. A flight whose layout this process cannot
    use is left out.
    """
    snapshots = {
        snapshot.flight_id: snapshot
        for snapshot in await seat_map.load(conn, flight_ids)
        # The counts of a cabin need the layout. Another process, which can use the layout, publishes them.
        if snapshot.layout_id in layouts
    }
    rows = await conn.fetch(
        """
        INSERT INTO availability (flight_id, version)
        SELECT flight_id, version FROM unnest($1::text[], $2::bigint[]) AS new (flight_id, version) ORDER BY flight_id
        ON CONFLICT (flight_id) DO UPDATE SET version = excluded.version
            WHERE availability.version < excluded.version
        RETURNING flight_id
        """,
        list(snapshots),
        [snapshot.version for snapshot in snapshots.values()],
    )
    moved = [snapshots[row["flight_id"]] for row in rows]
    if moved:
        # One message for all flights, because each message costs the broker a confirm.
        counts = [_counts(snapshot, layouts[snapshot.layout_id]) for snapshot in moved]
        await outbox.enqueue(conn, [Event(uuid4(), ROUTING_KEY, events_pb2.SeatAvailability(flights=counts))])
    return len(moved)


def _counts(snapshot: Snapshot, layout: Layout) -> events_pb2.SeatAvailability.FlightCounts:
    message = events_pb2.SeatAvailability.FlightCounts(
        flight_id=snapshot.flight_id,
        version=snapshot.version,
        available=snapshot.states.count("A"),
        total=len(snapshot.states),
    )
    for cabin in dict.fromkeys(seat.cabin for seat in layout.seats):
        states = [state for seat, state in zip(layout.seats, snapshot.states, strict=True) if seat.cabin == cabin]
        available = states.count("A")
        message.cabins.add(cabin=cabin, available=available, unavailable=len(states) - available)
    return message
