"""Locks, and the rows that are read under them.

Every transaction locks in the same order, so that no two deadlock: holds by id, then owners, then manifests, then seats
by flight and number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from seat_service.requests import FlightPassenger, Place
from services.db import Conn


@dataclass(frozen=True, slots=True)
class StandingHold:
    """A locked hold; `lapsed` is true if its end had passed when the row was read."""

    hold_id: UUID
    owner: str
    purpose: str
    managed: bool
    state: str
    lapsed: bool
    extensions_left: int
    create_time: datetime
    expire_time: datetime

    @property
    def present_state(self) -> str:
        """The state that callers see.

        A lapsed hold is EXPIRED, even before the sweeper has written that.
        """
        return "EXPIRED" if self.state == "HELD" and self.lapsed else self.state


@dataclass(frozen=True, slots=True)
class HeldSeat:
    """A seat of a hold; `state` is HELD, CONFIRMED or RELEASED."""

    hold_id: UUID
    flight_id: str
    seat_number: str
    passenger_id: str
    state: str

    @property
    def place(self) -> Place:
        """The identity of the seat."""
        return self.flight_id, self.seat_number

    @property
    def passenger(self) -> FlightPassenger:
        """The identity of the passenger."""
        return self.flight_id, self.passenger_id


async def lock_holds(conn: Conn, hold_ids: Iterable[UUID]) -> dict[UUID, StandingHold]:
    """Locks holds in the order of their ids; returns them by id, as they are now."""
    rows = await conn.fetch(
        """
        SELECT hold_id, owner, purpose::text, managed, state::text, extensions_left, create_time, expire_time,
               expire_time <= clock_timestamp() AS lapsed
        FROM holds WHERE hold_id = ANY($1::uuid[]) ORDER BY hold_id FOR NO KEY UPDATE
        """,
        list(set(hold_ids)),
    )
    return {
        row["hold_id"]: StandingHold(
            hold_id=row["hold_id"],
            owner=row["owner"],
            purpose=row["purpose"],
            managed=row["managed"],
            state=row["state"],
            lapsed=row["lapsed"],
            extensions_left=row["extensions_left"],
            create_time=row["create_time"],
            expire_time=row["expire_time"],
        )
        for row in rows
    }


async def lock_manifests(conn: Conn, flight_ids: Iterable[str]) -> None:
    """Locks the manifests of flights exclusively, until the transaction ends.

    Waits for transactions that hold or change seats of these flights, and keeps new ones waiting: they lock the
    manifest in shared mode (`lock_seats`).
    """
    await conn.execute(
        """
        SELECT count(*)
        FROM (SELECT DISTINCT hashtextextended(flight_id, 1) AS key
              FROM unnest($1::text[]) AS locked (flight_id) ORDER BY key) AS keys
        CROSS JOIN LATERAL pg_advisory_xact_lock(keys.key)
        """,
        list(flight_ids),
    )


async def lock_seats(
    conn: Conn,
    places: Iterable[Place],
    *,
    owners: Iterable[tuple[str, str]] = (),
    with_manifests: bool = False,
) -> datetime:
    """Locks seats; returns the database time after the last lock.

    The order is flight and seat number. Before the seats it locks `owners`, each with a flight: until the transaction
    ends, no other transaction counts what they hold on the flight (SEAT-16). `with_manifests` also locks the manifests
    of the flights, in shared mode: until the transaction ends, no row of `passengers` of these flights changes.
    """
    ordered = sorted(places)
    judged = list(owners)
    manifests = sorted({flight_id for flight_id, _ in ordered}) if with_manifests else []
    now: datetime = await conn.fetchval(
        """
        SELECT clock_timestamp()
        FROM (
            SELECT count(*) AS owners
            FROM (SELECT DISTINCT hashtextextended(owner || ' ' || flight_id, 0) AS key
                  FROM unnest($3::text[], $4::text[]) AS judged (owner, flight_id) ORDER BY key) AS keys
            CROSS JOIN LATERAL pg_advisory_xact_lock(keys.key)
        ) AS owners_locked
        CROSS JOIN LATERAL (
            SELECT count(*) AS manifests
            FROM (SELECT DISTINCT hashtextextended(flight_id, 1) AS key
                  FROM unnest($5::text[]) AS manifest (flight_id)
                  WHERE owners_locked.owners >= 0 ORDER BY key) AS keys
            CROSS JOIN LATERAL pg_advisory_xact_lock_shared(keys.key)
        ) AS manifests_locked
        CROSS JOIN LATERAL (
            SELECT count(*) FROM (
                SELECT FROM seats
                JOIN unnest($1::text[], $2::text[]) AS asked (flight_id, seat_number) USING (flight_id, seat_number)
                WHERE manifests_locked.manifests >= 0
                ORDER BY seats.flight_id, seats.seat_number FOR NO KEY UPDATE OF seats
            ) AS locked
        ) AS seats_locked
        """,
        [flight_id for flight_id, _ in ordered],
        [seat_number for _, seat_number in ordered],
        [owner for owner, _ in judged],
        [flight_id for _, flight_id in judged],
        manifests,
    )
    return now


async def lock_flight(conn: Conn, flight_id: str) -> None:
    """Locks all seats of a flight, in the same order as `lock_seats`."""
    await conn.execute(
        """
        SELECT count(*) FROM (
            SELECT FROM seats WHERE flight_id = $1 ORDER BY flight_id, seat_number FOR NO KEY UPDATE
        ) AS locked
        """,
        flight_id,
    )


async def seats_of(conn: Conn, hold_ids: Iterable[UUID]) -> dict[UUID, list[HeldSeat]]:
    """Returns the seats of each hold. They do not change while the holds are locked."""
    seats: dict[UUID, list[HeldSeat]] = {hold_id: [] for hold_id in hold_ids}
    if seats:
        rows = await conn.fetch(
            """
            SELECT hold_id, flight_id, seat_number, passenger_id, state FROM hold_seats
            WHERE hold_id = ANY($1::uuid[]) ORDER BY flight_id, seat_number
            """,
            list(seats),
        )
        for row in rows:
            seats[row["hold_id"]].append(
                HeldSeat(row["hold_id"], row["flight_id"], row["seat_number"], row["passenger_id"], row["state"])
            )
    return seats
