"""SEAT-16: how many seats one principal may hold, and the cool-down of one whose holds keep lapsing.

It binds passenger sessions and customers. Agents and services act for many people, and answer for what they do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from seat_service import refusals
from services.db import Conn
from services.errors import Refusal


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of SEAT-16; times in seconds."""

    held_seats: int
    lapses_allowed: int
    lapses_window_seconds: float
    cool_down_seconds: float


@dataclass(frozen=True, slots=True)
class Demand:
    """Seats that an owner wants on one flight, beside those it holds by other holds than `except_hold`."""

    owner: str
    flight_id: str
    seats: int
    except_hold: UUID | None = None


async def lock(conn: Conn, demands: Sequence[Demand]) -> None:
    """Keeps other transactions from judging the same owners on the same flights until this one ends.

    Without that, two calls would each see room for the last seat. To be called before any row is locked.
    """
    await conn.fetch(
        """
        SELECT pg_advisory_xact_lock(key)
        FROM (SELECT DISTINCT hashtextextended(owner || ' ' || flight_id, 0) AS key
              FROM unnest($1::text[], $2::text[]) AS demand (owner, flight_id) ORDER BY key) AS keys
        """,
        [demand.owner for demand in demands],
        [demand.flight_id for demand in demands],
    )


async def judge(conn: Conn, demands: Sequence[Demand], limits: Limits) -> list[Refusal | None]:
    """Returns a refusal for each demand that goes too far; to be called under `lock`, one demand of an owner each."""
    rows = await conn.fetch(
        """
        SELECT coalesce(held.seats, 0)::int AS seats,
               extract(epoch FROM held.first_end - now())::float8 AS held_for_seconds,
               lapsed.holds AS lapses, extract(epoch FROM now() - lapsed.last_end)::float8 AS lapsed_since_seconds
        FROM unnest($1::text[], $2::text[], $3::uuid[]) WITH ORDINALITY AS demand (owner, flight_id, except_hold, n)
        CROSS JOIN LATERAL (
            -- The end is compared last: in a WHERE it would tempt the planner to the index of all holds that still run.
            SELECT sum(on_flight.seats) FILTER (WHERE holds.expire_time > now()) AS seats,
                   min(holds.expire_time) FILTER (WHERE holds.expire_time > now()) AS first_end
            FROM holds
            CROSS JOIN LATERAL (
                SELECT count(*) AS seats FROM hold_seats
                WHERE hold_seats.hold_id = holds.hold_id AND hold_seats.flight_id = demand.flight_id
            ) AS on_flight
            WHERE holds.owner = demand.owner AND holds.state = 'HELD'
              AND holds.hold_id IS DISTINCT FROM demand.except_hold AND on_flight.seats > 0
        ) AS held
        CROSS JOIN LATERAL (
            SELECT count(*) AS holds, max(holds.expire_time) AS last_end FROM holds
            WHERE holds.owner = demand.owner AND holds.state = 'EXPIRED'
              AND holds.expire_time > now() - make_interval(secs => $4)
        ) AS lapsed
        ORDER BY demand.n
        """,
        [demand.owner for demand in demands],
        [demand.flight_id for demand in demands],
        [demand.except_hold for demand in demands],
        limits.lapses_window_seconds,
    )
    return [
        _judge_one(
            demand,
            limits,
            held=row["seats"],
            held_for_seconds=row["held_for_seconds"],
            lapses=row["lapses"],
            lapsed_since_seconds=row["lapsed_since_seconds"],
        )
        for demand, row in zip(demands, rows, strict=True)
    ]


def _judge_one(
    demand: Demand,
    limits: Limits,
    *,
    held: int,
    held_for_seconds: float | None,
    lapses: int,
    lapsed_since_seconds: float | None,
) -> Refusal | None:
    too_many = lapses - limits.lapses_allowed
    if too_many >= 0 and lapsed_since_seconds is not None:
        cool_down_seconds = min(limits.cool_down_seconds * 2.0**too_many, limits.lapses_window_seconds)
        if lapsed_since_seconds < cool_down_seconds:
            return refusals.cooling_down(cool_down_seconds - lapsed_since_seconds)
    if held + demand.seats > limits.held_seats:
        return refusals.too_many_held_seats(limits.held_seats, max(1.0, held_for_seconds or 1.0))
    return None
