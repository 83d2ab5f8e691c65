"""Claims by the waitlist: AVAILABLE or OFFERED → HELD or CONFIRMED.

The waitlist confirms at once on flights in the mode AUTO_CONFIRM, where no passenger has to accept an offer.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds import passenger_seats
from seat_service.holds.confirm import confirm
from seat_service.holds.hold import hold
from seat_service.holds.locks import lock_holds
from seat_service.requests import Effects, HoldRequest, OnHold
from services.db import Conn, GuardMissed
from services.errors import Refusal


async def claim(conn: Conn, requests: Sequence[HoldRequest], *, effects: Effects) -> list[pb.Hold | Refusal]:
    """Holds seats, and confirms those with `confirm` in the same transaction.

    Confirming releases the passenger's former confirmed seat. Returns for each request the hold, HELD or CONFIRMED, or
    a refusal of `hold`. Raises GuardMissed if a new hold cannot be confirmed.
    """
    # `confirm` locks these holds below. They are locked here already, because holds must be locked before the
    # manifests and seats that `hold` locks (locks.py).
    former = await passenger_seats.confirmed_holds(
        conn, {seat.passenger for request in requests if request.confirm for seat in request.seats}
    )
    if former:
        await lock_holds(conn, former)
    answers = await hold(conn, requests, effects=effects)
    held = {
        n: UUID(answer.hold_id)
        for n, (request, answer) in enumerate(zip(requests, answers, strict=True))
        if request.confirm and isinstance(answer, pb.Hold)
    }
    if held:
        # Without a request key: the ledger of a seat names a request once, at the step AVAILABLE or OFFERED → HELD.
        confirmations = [OnHold(hold_id, owner=None, actor=requests[n].actor) for n, hold_id in held.items()]
        for n, confirmed in zip(held, await confirm(conn, confirmations, effects=effects), strict=True):
            if isinstance(confirmed, Refusal):
                # This transaction has just created the hold and keeps it locked, so that no refusal is expected.
                raise GuardMissed from confirmed
            answers[n] = confirmed
    return answers
