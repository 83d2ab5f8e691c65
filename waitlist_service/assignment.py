"""What happens to a match: the seat is claimed, then confirmed at once or offered. The handlers of the timers.

Each asks first, in no transaction, and writes last, under the guard of the claim that it saw. So each may run twice, or
die anywhere; it runs again until it has ended well.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Final
from uuid import UUID

from services import db, outbox, timers
from services.batch import Batcher
from services.db import Conn, Pool
from services.errors import Refusal
from services.timers import Handler
from waitlist_service import entries, notices, peers, refusals, serving
from waitlist_service.entries import Claimed, Entry
from waitlist_service.openness import Openness
from waitlist_service.peers import Hold, NotForPassenger, Peers, SeatGone
from waitlist_service.settings import WaitlistSettings

# Whoever dies with a claim leaves it to another after so long.
CLAIM_LEASE_SECONDS: Final = 3
# A passenger who holds another seat at this moment may be free of it soon.
SKIP: Final = timedelta(seconds=3)
HAND_BACK: Final = "hand-back"


class Assignment:
    """The handlers. `tell` wakes whoever looks for what a transaction left to be done."""

    def __init__(
        self, pool: Pool, others: Peers, openness: Openness, settings: WaitlistSettings, *, tell: Callable[[], None]
    ) -> None:
        self._pool = pool
        self._peers = others
        self._openness = openness
        self._settings = settings
        self._tell = tell
        # A release is worth little by itself; under load what many share is paid once.
        self._matched: Batcher[UUID, tuple[Entry, str] | None] = Batcher("matched", self._matched_batch)
        self._assigned: Batcher[Claimed, Entry | None] = Batcher("assigned", self._assigned_batch)

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers by the names of their timers."""
        return {
            entries.ASSIGN: Handler(self.assign, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.ACCEPT: Handler(self.accept, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.LAPSE: Handler(self.lapse),
            # A flight is looked at again soon after who looked has died.
            entries.SWEEP: Handler(self.sweep, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.NOTIFY: Handler(self.notify),
            entries.CANCEL_HOLD: Handler(self.cancel_hold),
            HAND_BACK: Handler(self.hand_back),
        }

    async def assign(self, subject: str) -> None:
        """Claims the seat that an entry is matched with, and confirms or offers it, as the flight's mode says."""
        found = await self._matched.submit(UUID(subject))
        if found is None:
            return
        entry, mode = found
        at_once = mode == "AUTO_CONFIRM"
        try:
            hold = await self._peers.claim(entry, offer_ttl=None if at_once else self._settings.offer_ttl)
        except SeatGone:
            return await self._back_in_line(entry)
        except NotForPassenger as refusal:
            return await self._next_in_line(entry, refusal)
        if at_once:
            await self._assigned.submit(Claimed(entry, hold.hold_id, "waitlist"))
        else:
            await self._offer(entry, hold)
        self._tell()

    async def accept(self, subject: str) -> None:
        """Confirms an offer that was accepted, before it ended by the seat service's clock."""
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.hold_id is None or entry.claim_id is None:
            return
        try:
            await self._peers.confirm(entry.hold_id)
        except SeatGone:
            async with db.transaction(self._pool) as conn:
                await entries.lapse(conn, entry.entry_id, hold_id=entry.hold_id)
        else:
            await self._assigned.submit(Claimed(entry, entry.hold_id, entry.owner))
        self._tell()

    async def lapse(self, subject: str) -> None:
        """Ends an offer that was not accepted in time; an accepted one is the other timer's."""
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.accept_time is not None or entry.hold_id is None:
            return
        hold = await self._peers.hold(entry.hold_id)
        async with db.transaction(self._pool) as conn:
            if hold.state == "HELD":
                await timers.set_timer(conn, entries.LAPSE, subject, after=timedelta(seconds=1))
            elif hold.state == "CONFIRMED":
                # By the passenger itself, at the seat service.
                await entries.assign(conn, [Claimed(entry, entry.hold_id, entry.owner)])
            else:
                await entries.lapse(conn, entry.entry_id, hold_id=entry.hold_id)
        self._tell()

    async def sweep(self, flight_id: str) -> None:
        """Serves what events missed, as long as anybody waits, and then closes the flight's waitlist."""
        async with db.transaction(self._pool) as conn:
            waiting = await entries.anybody_waits(conn, flight_id)
        if not waiting:
            await self._openness.close_if_nobody_waits(flight_id)
            return
        await self._openness.tell(flight_id)
        seats = await self._peers.seat_map(flight_id)
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, flight_id)
            free, as_of = await serving.settled(conn, flight_id, peers.free(seats))
            offered = peers.offered(seats)
            unwanted = await serving.serve(
                conn, flight_id, {number: as_of if number in offered else None for number in free}
            )
            await hand_back(conn, flight_id, unwanted & offered)
            await timers.set_timer(conn, entries.SWEEP, flight_id, after=self._settings.sweep_interval)
        self._tell()

    async def notify(self, subject: str) -> None:
        """Has a passenger told by mail for whom the manifest could not be asked before."""
        async with db.session(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
            cancelled = await conn.fetchval(
                "SELECT cancel_time IS NOT NULL FROM flights WHERE flight_id = $1", entry.flight_id
            )
        passenger = await self._peers.passenger(entry.flight_id, entry.passenger_id)
        if passenger is None:
            return
        reached = replace(entry, contact_email=passenger.contact_email, contact_name=passenger.given_name)
        mail = notices.mail_of(reached, flight_cancelled=cancelled)
        if mail is not None:
            async with db.transaction(self._pool) as conn:
                await outbox.enqueue(conn, [mail])
            self._tell()

    async def cancel_hold(self, subject: str) -> None:
        """Gives back the hold of an offer that nobody wants any more."""
        await self._peers.cancel(UUID(subject), reason="OFFER_DECLINED")

    async def hand_back(self, subject: str) -> None:
        """Hands back a seat that nobody who waits wants."""
        flight_id, _, seat_number = subject.rpartition("/")
        await self._peers.hand_back(flight_id, seat_number)

    async def _offer(self, entry: Entry, hold: Hold) -> None:
        assert entry.claim_id is not None
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, entry.flight_id)
            await entries.offer(
                conn, entry.entry_id, claim_id=entry.claim_id, hold_id=hold.hold_id, expire_time=hold.expire_time
            )
            await serving.touch(conn, [entry.seat] if entry.seat is not None else [])
            await _serve_kept(conn, [entry.flight_id])

    async def _matched_batch(self, entry_ids: Sequence[UUID]) -> list[tuple[Entry, str] | Refusal | None]:
        async with db.session(self._pool) as conn:
            found = await entries.matched(conn, entry_ids, mode=self._settings.mode)
        return [found.get(entry_id) for entry_id in entry_ids]

    async def _assigned_batch(self, claims: Sequence[Claimed]) -> Sequence[Entry | Refusal | None]:
        flights = {claimed.entry.flight_id for claimed in claims if claimed.entry.uncertain}
        async with db.transaction(self._pool) as conn:
            if flights:
                await serving.lock_all(conn, flights)
            assigned = await entries.assign(conn, claims)
            await serving.touch(conn, [seat for claimed in claims if (seat := claimed.entry.seat) is not None])
            if flights:
                await _serve_kept(conn, flights)
        return assigned

    async def _back_in_line(self, entry: Entry) -> None:
        """The seat is gone: the entry is back in its place, and a look at the map finds what else is free."""
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, entry.flight_id)
            if await entries.give_up_claim(conn, entry):
                await serving.touch(conn, [entry.seat] if entry.seat is not None else [])
                await _serve_kept(conn, [entry.flight_id])
                await timers.set_timer(conn, entries.SWEEP, entry.flight_id)
        self._tell()

    async def _next_in_line(self, entry: Entry, refusal: NotForPassenger) -> None:
        """The seat is not for this passenger: why is written down, it keeps its place, and the next is served."""
        assert entry.seat_number is not None
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, entry.flight_id)
            if not await entries.give_up_claim(conn, entry):
                return
            await conn.execute(
                """
                INSERT INTO skips (entry_id, seat_number, reason, end_time)
                VALUES ($1, $2, $3, CASE WHEN $4 THEN 'infinity' ELSE statement_timestamp() + $5::interval END)
                ON CONFLICT (entry_id, seat_number) DO UPDATE
                SET reason = excluded.reason, end_time = excluded.end_time, skip_time = statement_timestamp()
                """,
                entry.entry_id,
                entry.seat_number,
                refusal.reason,
                refusal.for_ever,
                SKIP,
            )
            unwanted = await serving.serve(conn, entry.flight_id, {entry.seat_number: None})
            await hand_back(conn, entry.flight_id, unwanted)
        self._tell()


async def _serve_kept(conn: Conn, flight_ids: Collection[str]) -> None:
    """Serves what was kept until a claim was judged; the flights are locked."""
    for flight_id in await serving.keeping(conn, flight_ids):
        await hand_back(conn, flight_id, await serving.serve(conn, flight_id, {}))


async def hand_back(conn: Conn, flight_id: str, seat_numbers: set[str]) -> None:
    """Has seats handed back that nobody who waits wants, in the transaction that found that out."""
    if seat_numbers:
        await timers.set_timers(conn, HAND_BACK, [f"{flight_id}/{number}" for number in sorted(seat_numbers)])


async def accepted(conn: Conn, entry_id: UUID, *, owner: str | None) -> Entry:
    """Begins to accept an offer; the timer goes on with it should this process die.

    Returns the entry, also one that is assigned already. Raises ENTRY_NOT_FOUND, NO_OFFER or OFFER_EXPIRED.
    """
    entry = await entries.begin_accept(conn, entry_id, owner=owner)
    if entry is not None:
        await timers.set_timer(conn, entries.ACCEPT, str(entry_id), after=timedelta(seconds=CLAIM_LEASE_SECONDS))
        return entry
    entry = await entries.find(conn, entry_id, owner=owner)
    if entry.state == "ASSIGNED" and entry.offer_expire_time is not None:
        return entry
    if entry.state == "DECLINED" and entry.offer_expire_time is not None:
        raise refusals.offer_expired(entry.offer_expire_time)
    raise refusals.no_offer(entry.state)
