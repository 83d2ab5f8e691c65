"""Free seats of each flight and cabin, as the seat service announced them last.

The count with the highest version of the seat map is the current one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from skyhigh.flight.v1 import flight_service_pb2 as pb

from flight_service.records import Flight, FreeSeats
from services.db import Conn


@dataclass(frozen=True, slots=True)
class Count:
    """The free seats of one cabin at one version of its flight's seat map."""

    flight_id: str
    cabin: str
    available_seats: int
    version: int


async def keep(conn: Conn, counts: Sequence[Count]) -> None:
    """Stores the counts that are newer than the stored ones.

    Of two counts of the same cabin the newer one is stored.
    """
    newest = {(count.flight_id, count.cabin): count for count in sorted(counts, key=lambda count: count.version)}
    # All transactions that store counts lock the rows in the same order.
    ordered = [newest[key] for key in sorted(newest)]
    await conn.execute(
        """
        INSERT INTO seat_counts (flight_id, cabin, available_seats, version)
        SELECT flight_id, cabin, available_seats, version
        FROM unnest($1::text[], $2::cabin[], $3::integer[], $4::bigint[]) WITH ORDINALITY
            AS new (flight_id, cabin, available_seats, version, n)
        ORDER BY n
        ON CONFLICT (flight_id, cabin) DO UPDATE
        SET available_seats = excluded.available_seats, version = excluded.version
        WHERE seat_counts.version < excluded.version
        """,
        [count.flight_id for count in ordered],
        [count.cabin for count in ordered],
        [count.available_seats for count in ordered],
        [count.version for count in ordered],
    )


async def free_seats(conn: Conn, flight_ids: Sequence[str]) -> Mapping[str, FreeSeats]:
    """Returns the free seats of each flight by cabin; omits cabins without a count."""
    rows = await conn.fetch(
        "SELECT flight_id, cabin::text, available_seats FROM seat_counts WHERE flight_id = ANY($1::text[])", flight_ids
    )
    counted: dict[str, dict[str, int]] = {flight_id: {} for flight_id in flight_ids}
    for flight_id, cabin, available_seats in rows:
        counted[flight_id][cabin] = available_seats
    return counted


async def shown(conn: Conn, flights: Sequence[Flight]) -> list[pb.Flight]:
    """Returns the contract's messages of flights with their present free seats."""
    free = await free_seats(conn, [flight.flight_id for flight in flights])
    return [flight.message(free[flight.flight_id]) for flight in flights]
