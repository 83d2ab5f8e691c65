"""AcceptOffer, DeclineOffer, LeaveWaitlist and SetWaitlistMode."""

from __future__ import annotations

from uuid import UUID

from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import db, timers
from services.db import Conn, GuardMissed, Pool
from services.idempotency import RequestKey
from services.transitions import Transitions
from waitlist_service import assignment, entries, refusals, released_seats
from waitlist_service.assignment import Assignment
from waitlist_service.entitlements import Entitlements
from waitlist_service.entries import Entry


class Offers:
    """Accept, decline and leave.

    Each calls the seat service first, if the entry has an offer: the state of its hold decides.
    """

    def __init__(
        self, pool: Pool, assigning: Assignment, all_entitlements: Entitlements, transitions: Transitions
    ) -> None:
        self._pool = pool
        self._assigning = assigning
        self._entitlements = all_entitlements
        self._transitions = transitions

    async def accept(
        self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None, actor: str
    ) -> pb.WaitlistEntry:
        """Accepts an offer before its end: OFFERED → ASSIGNED.

        A repeat returns the assigned entry. Raises ENTRY_NOT_FOUND, NO_OFFER, OFFER_EXPIRED, CHECK_IN_CLOSED or
        PASSENGER_NOT_FOUND. Raises Unavailable if the seat service is down: then the offer stays accepted, and a timer
        confirms it when the seat service is back. If the check-in service is down, Unavailable is raised and nothing
        has changed.
        """
        known = await self._transitions.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state == "OFFERED" and entry.accept_time is None:
            await self._entitlements.compare_entries(entry.flight_id, [entry])
        async with db.transaction(self._pool) as conn:
            await assignment.accepted(conn, entry_id, owner=owner, actor=actor)
        await self._assigning.accept(str(entry_id))

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            return await entries.shown(conn, await assignment.accepted(conn, entry_id, owner=owner, actor=actor))

        return await self._transitions.run(request_key, pb.WaitlistEntry, answer)

    async def decline(
        self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None, actor: str
    ) -> pb.WaitlistEntry:
        """Declines an offer: OFFERED → DECLINED.

        The seat goes to the next entry. A repeat returns the declined entry. If the passenger has confirmed the hold at
        the seat service, it stays confirmed, and the entry becomes ASSIGNED; the call then raises NO_OFFER. Raises
        ENTRY_NOT_FOUND or NO_OFFER. Raises Unavailable if the seat service is down: then the offer stays withdrawn, and
        a timer ends it when the seat service is back.
        """

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            entry = await entries.find(conn, entry_id, owner=owner)
            if entry.state == "OFFERED":
                # The offer is accepted, and its confirmation is in progress: `Transitions` tries again.
                raise GuardMissed
            if entry.state != "DECLINED":
                raise refusals.no_offer(entry.state)
            return await entries.shown(conn, entry)

        known = await self._transitions.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        await self._withdraw(entry_id, to="DECLINED", owner=owner, actor=actor)
        return await self._transitions.run(request_key, pb.WaitlistEntry, answer)

    async def leave(
        self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None, actor: str
    ) -> pb.WaitlistEntry:
        """Ends an entry at its owner's request: WAITING or OFFERED → LEFT.

        A repeat returns the ended entry. If the passenger has confirmed the hold at the seat service, it stays
        confirmed, and the entry becomes ASSIGNED; the call then raises ENTRY_ENDED. Raises ENTRY_NOT_FOUND or
        ENTRY_ENDED. Raises Unavailable while the result of a claim is unknown, or if the seat service is down.
        """

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            entry = await entries.find(conn, entry_id, owner=owner)
            if entry.state == "WAITING":
                entry = await _leave_waiting(conn, entry, actor=actor)
            if entry.state == "OFFERED":
                # The offer is accepted, and its confirmation is in progress: `Transitions` tries again.
                raise GuardMissed
            if entry.state != "LEFT":
                raise refusals.entry_ended(entry.state)
            return await entries.shown(conn, entry)

        known = await self._transitions.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        await self._withdraw(entry_id, to="LEFT", owner=owner, actor=actor)
        return await self._transitions.run(request_key, pb.WaitlistEntry, answer)

    async def _withdraw(self, entry_id: UUID, *, to: str, owner: str | None, actor: str) -> None:
        """Withdraws the offer of an entry, unless it is accepted, and cancels its hold."""
        async with db.transaction(self._pool) as conn:
            await entries.withdraw(conn, [entry_id], to=to, owner=owner, actor=actor, reason=to)
            entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state == "OFFERED" and entry.withdrawal is not None:
            await self._assigning.withdraw(str(entry_id))


async def _leave_waiting(conn: Conn, entry: Entry, *, actor: str) -> Entry:
    """Ends a WAITING entry: → LEFT.

    Its matched seat goes to the next entry that wants it.
    """
    await released_seats.lock(conn, entry.flight_id)
    left = await entries.leave(conn, entry.entry_id, owner=None, actor=actor)
    if left is None:
        # Its claim is in progress. `Transitions` tries again; the call fails with Unavailable if that takes too long.
        raise GuardMissed
    if left.seat_number is not None:
        unwanted = await released_seats.match_with_entries(conn, left.flight_id, {left.seat_number: None})
        await released_seats.return_seats_later(conn, left.flight_id, unwanted)
    # If this was the last live entry, the sweep closes the waitlist.
    await timers.set_timer(conn, entries.SWEEP, left.flight_id)
    return left


async def set_mode(request: pb.SetWaitlistModeRequest, conn: Conn) -> pb.SetWaitlistModeResponse:
    """Sets the mode of a flight for future claims.

    Existing claims and offers do not change.
    """
    await conn.execute(
        """
        INSERT INTO flights (flight_id, mode) VALUES ($1, $2::waitlist_mode)
        ON CONFLICT (flight_id) DO UPDATE SET mode = excluded.mode
        """,
        request.flight_id,
        pb.WaitlistMode.Name(request.mode),
    )
    return pb.SetWaitlistModeResponse(flight_id=request.flight_id, mode=request.mode)
