"""What a passenger answers: accept, decline, leave. And how a flight gives its seats."""

from __future__ import annotations

from uuid import UUID

from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import db, timers
from services.db import Conn, GuardMissed, Pool
from services.idempotency import RequestKey
from services.mutations import Mutations
from waitlist_service import assignment, entries, refusals, serving
from waitlist_service.assignment import Assignment
from waitlist_service.entitlements import Entitlements
from waitlist_service.entries import Entry


class Offers:
    """Accepting, declining and leaving, which ask the seat service what has become of the offer's hold."""

    def __init__(self, pool: Pool, assigning: Assignment, all_entitlements: Entitlements, mutations: Mutations) -> None:
        self._pool = pool
        self._assigning = assigning
        self._entitlements = all_entitlements
        self._mutations = mutations

    async def accept(self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None) -> pb.WaitlistEntry:
        """OFFERED → ASSIGNED, before the offer ends. A repeat answers the assigned entry.

        Raises ENTRY_NOT_FOUND, NO_OFFER, OFFER_EXPIRED, CHECK_IN_CLOSED, PASSENGER_NOT_FOUND; Unavailable where the
        seat service is away: then the offer stays accepted, and is confirmed as soon as it is back.
        """
        known = await self._mutations.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state == "OFFERED" and entry.accept_time is None:
            await self._entitlements.compare_entries(entry.flight_id, [entry])
        async with db.transaction(self._pool) as conn:
            await assignment.accepted(conn, entry_id, owner=owner)
        await self._assigning.accept(str(entry_id))

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            return await entries.shown(conn, await assignment.accepted(conn, entry_id, owner=owner))

        return await self._mutations.run(request_key, pb.WaitlistEntry, answer)

    async def decline(
        self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None, actor: str
    ) -> pb.WaitlistEntry:
        """OFFERED → DECLINED; the seat goes to the next. A repeat answers the declined entry.

        A hold that the passenger has confirmed stays confirmed, and the entry becomes ASSIGNED. Raises ENTRY_NOT_FOUND
        or NO_OFFER; Unavailable if the seat service is down: then the offer stays withdrawn, and ends as soon as it is
        back.
        """

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            entry = await entries.find(conn, entry_id, owner=owner)
            if entry.state == "OFFERED":
                # It is being accepted at this moment.
                raise GuardMissed
            if entry.state != "DECLINED":
                raise refusals.no_offer(entry.state)
            return await entries.shown(conn, entry)

        known = await self._mutations.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        await self._withdraw(entry_id, to="DECLINED", owner=owner, actor=actor)
        return await self._mutations.run(request_key, pb.WaitlistEntry, answer)

    async def leave(
        self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None, actor: str
    ) -> pb.WaitlistEntry:
        """WAITING or OFFERED → LEFT. A repeat answers the entry that was left.

        A hold that the passenger has confirmed stays confirmed, and the entry becomes ASSIGNED. Raises ENTRY_NOT_FOUND
        or ENTRY_ENDED; Unavailable while a claim's outcome is not known, or if the seat service is down.
        """

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            entry = await entries.find(conn, entry_id, owner=owner)
            if entry.state == "WAITING":
                entry = await _leave_line(conn, entry, actor=actor)
            if entry.state == "OFFERED":
                # It is being accepted at this moment.
                raise GuardMissed
            if entry.state != "LEFT":
                raise refusals.entry_ended(entry.state)
            return await entries.shown(conn, entry)

        known = await self._mutations.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        await self._withdraw(entry_id, to="LEFT", owner=owner, actor=actor)
        return await self._mutations.run(request_key, pb.WaitlistEntry, answer)

    async def _withdraw(self, entry_id: UUID, *, to: str, owner: str | None, actor: str) -> None:
        """Withdraws an offer and cancels its hold, if the entry has one and it is not being accepted."""
        async with db.transaction(self._pool) as conn:
            await entries.withdraw(conn, [entry_id], to=to, owner=owner, actor=actor, reason=to)
            entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state == "OFFERED" and entry.withdrawal is not None:
            await self._assigning.withdraw(str(entry_id))


async def _leave_line(conn: Conn, entry: Entry, *, actor: str) -> Entry:
    """WAITING → LEFT; a seat that the entry was matched with goes to the next."""
    await serving.lock(conn, entry.flight_id)
    left = await entries.leave(conn, entry.entry_id, owner=None, actor=actor)
    if left is None:
        # Its claim is under way.
        raise GuardMissed
    if left.seat_number is not None:
        unwanted = await serving.serve(conn, left.flight_id, {left.seat_number: None})
        await serving.hand_back(conn, left.flight_id, unwanted)
    # Whoever was the last closes the waitlist behind it.
    await timers.set_timer(conn, entries.SWEEP, left.flight_id)
    return left


async def set_mode(request: pb.SetWaitlistModeRequest, conn: Conn) -> pb.SetWaitlistModeResponse:
    """Decides how seats of a flight are given from now on; offers that were made stay."""
    await conn.execute(
        """
        INSERT INTO flights (flight_id, mode) VALUES ($1, $2::waitlist_mode)
        ON CONFLICT (flight_id) DO UPDATE SET mode = excluded.mode
        """,
        request.flight_id,
        pb.WaitlistMode.Name(request.mode),
    )
    return pb.SetWaitlistModeResponse(flight_id=request.flight_id, mode=request.mode)
