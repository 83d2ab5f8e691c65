"""Eligibility rules: GetEligibility shows them, and StartCheckIn enforces them.

No rule here requires a seat: StartCheckIn takes one from a hold, or uses the passenger's confirmed seat.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from services.auth import Role
from services.db import Conn
from services.errors import Refusal

# Service codes of passengers whom an agent has to see at the airport: unaccompanied minors, medical cases, stretchers,
# deportees (accompanied or not), weapons, animals in the cabin or in the hold.
AT_THE_AIRPORT: Final = frozenset({"UMNR", "MEDA", "STCR", "DEPA", "DEPU", "WEAP", "PETC", "AVIH"})


@dataclass(frozen=True, slots=True)
class Situation:
    """The facts that the rules evaluate: one passenger of one flight.

    They are read at one moment of the database's clock, `now`.
    """

    role: Role
    flight_id: str
    pnr: str
    fare: str
    special_services: Sequence[str]
    adult: str | None
    """The passenger on whose lap this infant travels; None for all others."""
    adult_completed: bool
    flight_cancelled: bool
    now: datetime
    open_time: datetime
    close_time: datetime
    live_checkin_id: UUID | None
    live_state: str


Rule = Callable[[Situation], Refusal | None]


def _flight_flies(it: Situation) -> Refusal | None:
    return refusals.flight_cancelled(it.flight_id) if it.flight_cancelled else None


def _has_opened(it: Situation) -> Refusal | None:
    return refusals.check_in_not_open(it.open_time) if it.now < it.open_time else None


def _has_not_closed(it: Situation) -> Refusal | None:
    return refusals.check_in_closed(it.close_time) if it.now >= it.close_time else None


def _is_the_first(it: Situation) -> Refusal | None:
    if it.live_checkin_id is None:
        return None
    return refusals.already_checked_in(it.live_checkin_id, it.live_state)


def _needs_no_agent(it: Situation) -> Refusal | None:
    service = next((code for code in it.special_services if code in AT_THE_AIRPORT), None)
    return None if service is None or it.role is Role.AGENT else refusals.agent_required(service)


def _comes_after_its_adult(it: Situation) -> Refusal | None:
    return None if it.adult is None or it.adult_completed else refusals.adult_required(it.adult)


RULES: Final[Sequence[Rule]] = (
    _flight_flies,
    _has_opened,
    _has_not_closed,
    _is_the_first,
    _needs_no_agent,
    _comes_after_its_adult,
)


def refusals_of(situation: Situation) -> list[Refusal]:
    """Returns the error of each rule that is not met, in the order of the rules."""
    return [refusal for rule in RULES if (refusal := rule(situation)) is not None]


def message(situation: Situation) -> pb.Eligibility:
    """Returns the result of all rules as callers see it."""
    reasons = [
        pb.Eligibility.Reason(reason=refusal.reason, message=refusal.message, metadata=refusal.metadata)
        for refusal in refusals_of(situation)
    ]
    return pb.Eligibility(eligible=not reasons, reasons=reasons)


async def situation(conn: Conn, flight_id: str, passenger_id: str, *, pnr: str | None, role: Role) -> Situation:
    """Reads the situation of a passenger. Raises PASSENGER_NOT_FOUND.

    With `pnr`, only a passenger of that locator is found.
    """
    row = await conn.fetchrow(
        """
        SELECT flight_id, passengers.pnr, fare, special_services, accompanying_passenger_id AS adult,
               EXISTS (
                   SELECT FROM check_ins AS adult
                   WHERE adult.flight_id = $1 AND adult.passenger_id = accompanying_passenger_id
                     AND adult.state = 'COMPLETED'
               ) AS adult_completed,
               cancel_time IS NOT NULL AS flight_cancelled, statement_timestamp() AS now,
               departure_time - opens_before AS open_time, departure_time - closes_before AS close_time,
               live.checkin_id AS live_checkin_id, coalesce(live.state::text, '') AS live_state
        FROM passengers JOIN flights USING (flight_id)
        LEFT JOIN LATERAL (
            SELECT checkin_id, state FROM check_ins
            WHERE check_ins.flight_id = $1 AND check_ins.passenger_id = $2 AND check_ins.state <> 'CANCELLED' LIMIT 1
        ) AS live ON true
        WHERE flight_id = $1 AND passenger_id = $2 AND ($3::text IS NULL OR passengers.pnr = $3)
        """,
        flight_id,
        passenger_id,
        pnr,
    )
    if row is None:
        raise refusals.passenger_not_found()
    return Situation(role=role, **row)
