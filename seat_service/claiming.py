"""The waitlist's way to a seat: AVAILABLE or OFFERED → HELD, and at once → CONFIRMED where it has nobody to ask."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import holding, passenger_seats, seats
from seat_service.locks import lock_holds
from seat_service.requests import Effects, HoldRequest, OnHold
from services.db import Conn, GuardMissed
from services.errors import Refusal


async def claim(conn: Conn, requests: Sequence[HoldRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Holds, and confirms in the same transaction what shall be confirmed; a passenger's former seat is freed.

    Answers the hold, HELD or CONFIRMED; what `holding.hold` refuses with.
    """
    # Before the manifests are locked: confirming locks these holds, and the order of locks is one (locks.py).
    former = await passenger_seats.confirmed_holds(
        conn, {seat.passenger for request in requests if request.confirm for seat in request.seats}
    )
    if former:
        await lock_holds(conn, former)
    answers = await holding.hold(conn, requests, effects=effects)
    held = {
        n: UUID(answer.hold_id)
        for n, (request, answer) in enumerate(zip(requests, answers, strict=True))
        if request.confirm and isinstance(answer, pb.Hold)
    }
    if held:
        # A request shows once in the ledger of a seat: with the step that took it.
        confirmations = [OnHold(hold_id, owner=None, actor=requests[n].actor) for n, hold_id in held.items()]
        for n, confirmed in zip(held, await seats.confirm(conn, confirmations, effects=effects), strict=True):
            if isinstance(confirmed, Refusal):
                # Ours, held a moment ago, and locked ever since.
                raise GuardMissed from confirmed
            answers[n] = confirmed
    return answers
