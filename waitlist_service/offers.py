"""What a passenger answers: accept, decline, leave. And how a flight gives its seats."""

from __future__ import annotations

from uuid import UUID

from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import db, timers
from services.db import Conn, GuardMissed, Pool
from services.idempotency import RequestKey
from services.mutations import Mutations
from waitlist_service import assignment, entries, refusals
from waitlist_service.assignment import Assignment


class Offers:
    """Accepting, which asks the seat service."""

    def __init__(self, pool: Pool, assigning: Assignment, mutations: Mutations) -> None:
        self._pool = pool
        self._assigning = assigning
        self._mutations = mutations

    async def accept(self, entry_id: UUID, request_key: RequestKey | None, *, owner: str | None) -> pb.WaitlistEntry:
        """OFFERED → ASSIGNED, before the offer ends. A repeat answers the assigned entry.

        Raises ENTRY_NOT_FOUND, NO_OFFER, OFFER_EXPIRED; Unavailable where the seat service is away: then the offer
        stays accepted, and is confirmed as soon as it is back.
        """
        known = await self._mutations.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        async with db.transaction(self._pool) as conn:
            await assignment.accepted(conn, entry_id, owner=owner)
        await self._assigning.accept(str(entry_id))

        async def answer(conn: Conn) -> pb.WaitlistEntry:
            return await entries.shown(conn, await assignment.accepted(conn, entry_id, owner=owner))

        return await self._mutations.run(request_key, pb.WaitlistEntry, answer)


async def decline(conn: Conn, entry_id: UUID, *, owner: str | None, actor: str) -> pb.WaitlistEntry:
    """OFFERED → DECLINED; the seat goes to the next. A repeat answers the declined entry.

    Raises ENTRY_NOT_FOUND or NO_OFFER. One that is being accepted at this moment is judged anew.
    """
    entry = await entries.decline(conn, entry_id, owner=owner, actor=actor, reason="DECLINED")
    if entry is None:
        entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state == "OFFERED":
            raise GuardMissed
        if entry.state != "DECLINED":
            raise refusals.no_offer(entry.state)
    return await entries.shown(conn, entry)


async def leave(conn: Conn, entry_id: UUID, *, owner: str | None, actor: str) -> pb.WaitlistEntry:
    """WAITING or OFFERED → LEFT. A repeat answers the entry that was left.

    Raises ENTRY_NOT_FOUND or ENTRY_ENDED. One that is being assigned at this moment is judged anew.
    """
    entry = await entries.leave(conn, entry_id, owner=owner, actor=actor)
    if entry is not None:
        # Whoever was the last closes the waitlist behind it.
        await timers.set_timer(conn, entries.SWEEP, entry.flight_id)
    else:
        entry = await entries.find(conn, entry_id, owner=owner)
        if entry.state in ("WAITING", "OFFERED"):
            raise GuardMissed
        if entry.state != "LEFT":
            raise refusals.entry_ended(entry.state)
    return await entries.shown(conn, entry)


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
