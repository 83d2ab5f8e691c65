"""Corrects the seats of check-ins (CHK-8, docs/decisions/0038).

Only the seat service decides which passenger has a seat; check-in asks it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Final
from uuid import UUID

from checkin_service import notices, records, refusals
from checkin_service.check_ins import cancel_reasons, cancellation, completion, seat_changes, timer_names
from checkin_service.manifests.entitlements import Entitlements
from checkin_service.peers import Peers, Seat
from checkin_service.records import INFANT_SEAT, CheckIn
from services import db, timers
from services.db import Conn, GuardMissed, Pool
from services.errors import Unavailable
from services.timers import Handler

# States from which a check-in can complete; WAITING_FOR_PAYMENT only with its fee paid.
_ACCEPTED: Final = ("BAGGAGE_VALIDATED", "WAITING_FOR_PAYMENT")
ATTEMPTS: Final = 3


class Seating:
    """Corrects check-ins by the seat service's responses.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(self, pool: Pool, peers: Peers, entitlements: Entitlements, *, tell: Callable[[], None]) -> None:
        self._pool = pool
        self._peers = peers
        self._entitlements = entitlements
        self._tell = tell

    def handlers(self) -> Mapping[str, Handler]:
        """Returns each handler by the name of its timer."""
        return {timer_names.CHECK_SEAT: Handler(self.check)}

    async def check(self, subject: str) -> None:
        """Re-checks the seat of a check-in, and completes it if nothing else was missing.

        A completed check-in whose passenger has no seat any more is cancelled.
        """
        check_in = await self.correct_conflicts(UUID(subject))
        if check_in.state in _ACCEPTED:
            async with db.transaction(self._pool) as conn:
                done = await completion.complete(conn, check_in.checkin_id, actor=completion.completion_actor(check_in))
                if not done and await completion.can_complete(conn, check_in.checkin_id):
                    # Another check-in or the manifest changed meanwhile; the timer retries.
                    raise GuardMissed
            self._tell()

    async def correct_conflicts(self, checkin_id: UUID) -> CheckIn:
        """Corrects a check-in, and each completed one that has the same seat.

        Returns the check-in. Raises GuardMissed if one of them changes meanwhile, or Unavailable.
        """
        check_in = await self.correct(checkin_id)
        for other in await self._others_with_seat(check_in):
            await self.correct(other)
        return check_in

    async def seat_for_pass(self, check_in: CheckIn) -> CheckIn:
        """Returns a completed check-in once the seat service has confirmed its seat.

        At that moment the seat is its passenger's. An infant travels on the seat of its adult. Raises SEAT_REQUIRED,
        CHECK_IN_NOT_COMPLETED or Unavailable.
        """
        for _ in range(ATTEMPTS):
            with contextlib.suppress(GuardMissed):
                return await self._seat_for_pass(check_in)
        raise Unavailable("another request is changing the passenger's seat; retry")

    async def _seat_for_pass(self, check_in: CheckIn) -> CheckIn:
        flight_id, seated = check_in.flight_id, check_in.passenger_id
        if check_in.seat_number == INFANT_SEAT:
            seated = await self._adult_of(check_in)
        await self._entitlements.send_of(flight_id, seated)
        seat = await self._peers.confirmed_seat(flight_id, seated)
        if seat is None:
            await self._schedule_check(check_in)
            raise refusals.seat_required()
        if check_in.seat_number != INFANT_SEAT and not _same(check_in, seat):
            await self.correct(check_in.checkin_id)
        async with db.transaction(self._pool) as conn:
            check_in = await records.find(conn, check_in.checkin_id)
        if check_in.state != "COMPLETED":
            raise refusals.check_in_not_completed(check_in.state)
        if check_in.seat_number not in (INFANT_SEAT, seat.seat_number):
            # The passenger moved to another seat between the two responses.
            raise GuardMissed
        return check_in

    async def correct(self, checkin_id: UUID) -> CheckIn:
        """Records the passenger's current seat, or that there is none.

        Returns the check-in as it is then. Raises GuardMissed if the check-in changes meanwhile, or Unavailable.
        """
        check_in = await self._find(checkin_id)
        await self._entitlements.send_of(check_in.flight_id, check_in.passenger_id)
        check_in = await self._find(checkin_id)
        if check_in.state == "CANCELLED" or check_in.seat_number == INFANT_SEAT:
            return check_in
        seat = await self._peers.confirmed_seat(check_in.flight_id, check_in.passenger_id)
        if _same(check_in, seat):
            return check_in
        async with db.transaction(self._pool) as conn:
            if not await _write(conn, check_in, seat):
                # The check-in changed meanwhile, and so may have the seat.
                raise GuardMissed
        self._tell()
        return await self._find(checkin_id)

    async def _others_with_seat(self, check_in: CheckIn) -> list[UUID]:
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT checkin_id FROM check_ins
                WHERE flight_id = $1 AND seat_number = $2 AND checkin_id <> $3
                  AND state = 'COMPLETED' AND seat_number <> 'INF' AND NOT seat_disputed
                """,
                check_in.flight_id,
                check_in.seat_number,
                check_in.checkin_id,
            )
        return [row["checkin_id"] for row in rows]

    async def _adult_of(self, infant: CheckIn) -> str:
        async with db.transaction(self._pool) as conn:
            adult: str | None = await conn.fetchval(
                "SELECT accompanying_passenger_id FROM passengers WHERE flight_id = $1 AND passenger_id = $2",
                infant.flight_id,
                infant.passenger_id,
            )
        if adult is None:
            raise refusals.passenger_not_found()
        return adult

    async def _schedule_check(self, check_in: CheckIn) -> None:
        """Sets a timer that corrects a check-in whose passenger has no seat.

        It is due after FIRST_CHECK, so that the reason of a cancellation can arrive first. A timer that is already
        waiting is not set again: repeated requests for the pass would otherwise postpone it for ever.
        """
        subject = str(check_in.checkin_id)
        async with db.transaction(self._pool) as conn:
            waits = await conn.fetchval(
                """
                SELECT true FROM timers
                WHERE name = $1 AND subject = $2 AND coalesce(fire_time, 'infinity') = 'infinity'
                """,
                timer_names.CHECK_SEAT,
                subject,
            )
            if not waits:
                await timers.set_timer(conn, timer_names.CHECK_SEAT, subject, after=timer_names.FIRST_CHECK)

    async def _find(self, checkin_id: UUID) -> CheckIn:
        async with db.transaction(self._pool) as conn:
            return await records.find(conn, checkin_id)


async def _write(conn: Conn, check_in: CheckIn, seat: Seat | None) -> bool:
    if seat is not None:
        return await seat_changes.record_seat(conn, check_in, seat)
    if check_in.state != "COMPLETED":
        return await seat_changes.remove_seat(conn, check_in)
    if await cancellation.flew_on_seat(conn, check_in.checkin_id):
        return True
    lost = await cancellation.cancel_without_seat(conn, check_in, reason=cancel_reasons.SEAT_RELEASED)
    if lost:
        await notices.seat_released(conn, check_in)
    return lost


def _same(check_in: CheckIn, seat: Seat | None) -> bool:
    if check_in.seat_disputed:
        return False
    known = (check_in.seat_number, check_in.hold_id)
    return known == ((None, None) if seat is None else (seat.seat_number, seat.hold_id))
