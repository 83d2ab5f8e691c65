"""Outcomes of the transitions of holds: a hold as callers see it, or a refusal.

A transition takes a connection inside a transaction and a list of requests. It returns a hold or a refusal for each
request. It first takes locks, which only put concurrent transactions in order. Then a guarded write decides: its WHERE
clause has the conditions of the transition, evaluated after the locks at the database time of that statement. The
reason of a refusal is read from the locked rows. Only services may move a managed hold; its owner and agents are
refused with HOLD_MANAGED. `Effects` collects what the caller publishes after the commit.

    HELD → CONFIRMED → CANCELLED        HELD → CANCELLED        HELD → EXPIRED        (hold.py creates a hold: HELD)

The guard of a row that is looked up by its id compares `state || ''`. With `state = 'HELD'` a planner without
statistics, as on the first day or after a restore, would use the partial index and read every held row (decision 27).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import refusals
from seat_service.holds.locks import HeldSeat, StandingHold, seats_of
from seat_service.requests import Effects, OnHold
from seat_service.rules.entitlements import locator
from services.db import Conn
from services.errors import Refusal
from services.proto import timestamp

Transition = Callable[[Conn, Sequence[OnHold], Effects], Awaitable[list[pb.Hold | Refusal]]]


async def in_rounds(
    conn: Conn, requests: Sequence[OnHold], transition: Transition, effects: Effects
) -> list[pb.Hold | Refusal]:
    """Runs a transition in rounds, with at most one request for each hold in a round.

    A second request for a hold runs in a later round and finds what the first one changed.
    """
    answers: dict[int, pb.Hold | Refusal] = {}
    pending = list(range(len(requests)))
    while pending:
        first = {requests[n].hold_id: n for n in reversed(pending)}
        now = sorted(first.values())
        for n, answer in zip(now, await transition(conn, [requests[n] for n in now], effects), strict=True):
            answers[n] = answer
        pending = [n for n in pending if n not in answers]
    return [answers[n] for n in range(len(requests))]


def columns(requests: Sequence[OnHold]) -> tuple[list[UUID], list[str | None], list[bool], list[str | None]]:
    """Returns hold ids, owners, `manages` and locators: the first four arguments of a transition's statement."""
    return (
        [request.hold_id for request in requests],
        [request.owner for request in requests],
        [request.manages for request in requests],
        [locator(request.actor) for request in requests],
    )


def hold_message(hold: StandingHold, seats: Mapping[UUID, Sequence[HeldSeat]], *, state: str) -> pb.Hold:
    """Returns a hold as callers see it in this state; released seats only if it has ended."""
    ended = state in ("CANCELLED", "EXPIRED")
    return pb.Hold(
        hold_id=str(hold.hold_id),
        state=pb.Hold.State.Value(state),
        purpose=pb.Hold.Purpose.Value(hold.purpose),
        seats=[
            pb.SeatAssignment(flight_id=seat.flight_id, seat_number=seat.seat_number, passenger_id=seat.passenger_id)
            for seat in seats[hold.hold_id]
            if ended or seat.state != "RELEASED"
        ],
        create_time=timestamp(hold.create_time),
        expire_time=timestamp(hold.expire_time),
        extensions_left=hold.extensions_left,
        managed=hold.managed,
    )


def explain(
    hold: StandingHold | None,
    request: OnHold,
    seats: Mapping[UUID, Sequence[HeldSeat]],
    revoked: Mapping[UUID, Refusal],
    *,
    repeats: str | None = None,
) -> pb.Hold | Refusal:
    """Returns the refusal that says why a locked hold did not change.

    Returns the hold itself if it already is in the state `repeats`, which the request asks for.
    """
    if hold is None or (request.owner is not None and hold.owner != request.owner):
        return refusals.hold_not_found()
    if hold.managed and not request.manages:
        return refusals.hold_managed()
    if hold.state == repeats:
        return hold_message(hold, seats, state=hold.state)
    if hold.state == "CONFIRMED" and request.unless_confirmed:
        # The caller asks for nothing else: a lost right of a passenger does not matter to it.
        return refusals.hold_confirmed()
    return revoked.get(hold.hold_id) or _explain_state(hold, extends=repeats is None)


def _explain_state(hold: StandingHold, *, extends: bool) -> Refusal:
    match hold.state:
        case "CANCELLED":
            return refusals.hold_cancelled()
        case "CONFIRMED":
            return refusals.hold_confirmed()
        case "HELD" if extends and not hold.lapsed and hold.extensions_left == 0:
            return refusals.hold_limit_reached(hold.expire_time)
    # Also a hold that lapsed while the transition waited for its lock.
    return refusals.hold_expired(hold.expire_time)


async def find(conn: Conn, hold_id: UUID, *, owner: str | None) -> pb.Hold:
    """Returns a hold as it is now; `owner` None finds the holds of all owners.

    A lapsed hold is shown as EXPIRED, even before the sweeper has written that. Raises HOLD_NOT_FOUND.
    """
    row = await conn.fetchrow(
        """
        SELECT hold_id, owner, purpose::text, managed, state::text, extensions_left, create_time, expire_time,
               expire_time <= statement_timestamp() AS lapsed
        FROM holds WHERE hold_id = $1 AND ($2::text IS NULL OR owner = $2)
        """,
        hold_id,
        owner,
    )
    if row is None:
        raise refusals.hold_not_found()
    hold = StandingHold(**row)
    return hold_message(hold, await seats_of(conn, [hold_id]), state=hold.present_state)
