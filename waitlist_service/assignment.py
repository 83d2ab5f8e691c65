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

from prometheus_client import Counter
from skyhigh.seat.v1 import seat_service_pb2 as seat

from services import db, outbox, telemetry, timers
from services.batch import Batcher
from services.clients import PeerRefusal
from services.db import Conn, Pool
from services.errors import Refusal
from services.timers import Handler
from waitlist_service import entries, notices, peers, refusals, serving
from waitlist_service.entitlements import CHECK_IN_CLOSED, ENTITLEMENT_ENDED, Entitlements
from waitlist_service.entries import Claimed, Entry
from waitlist_service.openness import Openness
from waitlist_service.peers import PASSENGER_HOLDS_SEAT, Hold, NotForPassenger, Peers, SeatGone
from waitlist_service.settings import WaitlistSettings

# Whoever dies with a claim leaves it to another after so long.
CLAIM_LEASE_SECONDS: Final = 4
# A passenger who holds another seat at this moment may be free of it soon.
SKIP: Final = timedelta(seconds=3)
# Any other refusal of a seat is tried again after twice as long as the time before.
LONGEST_SKIP: Final = timedelta(minutes=10)
# The most of one question to the seat service.
OFFERS_AT_ONCE: Final = 200

UNEXPECTED_REFUSALS: Final = Counter(
    "skyhigh_waitlist_unexpected_refusals_total", "Claims that were refused for an unexpected reason.", ["reason"]
)
_log = telemetry.log("assignment")


class Assignment:
    """The handlers. `tell` wakes whoever looks for what a transaction left to be done."""

    def __init__(
        self,
        pool: Pool,
        others: Peers,
        openness: Openness,
        all_entitlements: Entitlements,
        settings: WaitlistSettings,
        *,
        tell: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._peers = others
        self._openness = openness
        self._entitlements = all_entitlements
        self._settings = settings
        self._tell = tell
        # A release is worth little by itself; under load what many share is paid once.
        self._decided: Batcher[UUID, Entry | None] = Batcher("decided", self._decided_batch)
        self._assigned: Batcher[Claimed, Entry | None] = Batcher("assigned", self._assigned_batch)

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers by the names of their timers."""
        return {
            entries.ASSIGN: Handler(self.assign, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.ACCEPT: Handler(self.accept, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.LAPSE: Handler(self.lapse),
            entries.WITHDRAW: Handler(self.withdraw),
            entries.CLOSE: Handler(self.close),
            # A flight is looked at again soon after who looked has died.
            entries.SWEEP: Handler(self.sweep, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.NOTIFY: Handler(self.notify),
            entries.CANCEL_HOLD: Handler(self.cancel_hold),
            serving.HAND_BACK: Handler(self.hand_back),
        }

    async def assign(self, subject: str) -> None:
        """Claims the seat that an entry is matched with, and confirms or offers it, as the claim says."""
        entry = await self._decided.submit(UUID(subject))
        if entry is None:
            return
        if entry.claim_request is None:
            # Ends the entry or updates it, as the manifest says; then its timer comes again, or the next is served.
            await self._entitlements.compare_entries(entry.flight_id, [entry])
            return
        request = seat.ClaimSeatRequest.FromString(entry.claim_request)
        try:
            hold = await self._peers.claim(request)
        except SeatGone:
            return await self._back_in_line(entry)
        except NotForPassenger as refusal:
            await self._next_in_line(entry, refusal.reason, twice_as_long=refusal.reason != PASSENGER_HOLDS_SEAT)
            if refusal.is_for_manifest:
                await self._entitlements.try_to_compare(entry.flight_id)
            return
        except PeerRefusal as refusal:
            return await self._settle(entry, refusal)
        await self._take(entry, hold)

    async def accept(self, subject: str) -> None:
        """Confirms an offer that was accepted, before it ended by the seat service's clock."""
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.hold_id is None or entry.accept_time is None:
            return
        try:
            hold = await self._peers.confirm(entry.hold_id)
        except SeatGone:
            async with db.transaction(self._pool) as conn:
                await entries.lapse(conn, entry.entry_id, hold_id=entry.hold_id)
        except NotForPassenger as refusal:
            await self._refuse_accept(entry, refusal)
        else:
            await self._assigned.submit(Claimed(entry, entry.hold_id, hold.seat_number, entry.owner))
        self._tell()

    async def withdraw(self, subject: str) -> None:
        """Cancels the hold of a withdrawn offer, which ends the entry; a confirmed hold stays, and is assigned."""
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.hold_id is None or entry.withdrawal is None:
            return
        if await self._peers.cancel_unconfirmed(entry.hold_id, reason=entry.withdraw_reason or ""):
            async with db.transaction(self._pool) as conn:
                await entries.finish_withdrawal(conn, entry)
                await timers.set_timer(conn, entries.SWEEP, entry.flight_id)
        else:
            await self._keep_confirmed(entry, entry.hold_id)
        self._tell()

    async def lapse(self, subject: str) -> None:
        """Ends an offer that was not accepted in time; an accepted or withdrawn one is another timer's."""
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if (
            entry.state != "OFFERED"
            or entry.accept_time is not None
            or entry.withdrawal is not None
            or entry.hold_id is None
        ):
            return
        hold = await self._peers.hold(entry.hold_id)
        if hold.state == "CONFIRMED":
            # By the passenger itself, at the seat service.
            return await self._keep_confirmed(entry, entry.hold_id)
        async with db.transaction(self._pool) as conn:
            if hold.state == "HELD":
                left = await conn.fetchval(
                    "SELECT greatest($1::timestamptz - statement_timestamp(), interval '1 s')", hold.expire_time
                )
                await timers.set_timer(conn, entries.LAPSE, subject, after=left)
            else:
                await entries.lapse(conn, entry.entry_id, hold_id=entry.hold_id)
        self._tell()

    async def close(self, flight_id: str) -> None:
        """Ends all entries of a flight when its check-in closes."""
        await self._entitlements.close(flight_id)

    async def sweep(self, flight_id: str) -> None:
        """Serves what events missed, as long as anybody waits, and then closes the flight's waitlist."""
        async with db.transaction(self._pool) as conn:
            waiting = await entries.anybody_waits(conn, flight_id)
        if not waiting:
            await self._openness.close_if_nobody_waits(flight_id)
            return
        await self._openness.tell(flight_id)
        await self._entitlements.try_to_compare(flight_id)
        await self._look_at_offers(flight_id)
        seats = await self._peers.seat_map(flight_id)
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, flight_id)
            free, as_of = await serving.settled(conn, flight_id, peers.free(seats))
            offered = peers.offered(seats)
            unwanted = await serving.serve(
                conn, flight_id, {number: as_of if number in offered else None for number in free}
            )
            await serving.hand_back(conn, flight_id, unwanted & offered)
            await timers.set_timer(conn, entries.SWEEP, flight_id, after=self._settings.sweep_interval)
        self._tell()

    async def notify(self, subject: str) -> None:
        """Has a passenger told by mail for whom the manifest could not be asked before."""
        async with db.session(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
            reason = await conn.fetchval(
                "SELECT reason FROM entry_events WHERE entry_id = $1 ORDER BY version DESC LIMIT 1", entry.entry_id
            )
        place = (entry.flight_id, entry.passenger_id)
        facts = (await self._peers.manifest([place])).passengers.get(place)
        if facts is None:
            return
        reached = replace(entry, contact_email=facts.contact_email, contact_name=facts.contact_name)
        mail = notices.mail_of(reached, reason=reason)
        if mail is not None:
            async with db.transaction(self._pool) as conn:
                await outbox.enqueue(conn, [mail])
            self._tell()

    async def cancel_hold(self, subject: str) -> None:
        """Cancels the hold of an offer that ended with its flight, or with a former version of this service."""
        await self._peers.cancel_unconfirmed(UUID(subject), reason="OFFER_DECLINED")

    async def accepted(conn: Conn, entry_id: UUID, *, owner: str | None) -> Entry:
    """Begins to accept an offer; the timer goes on with it should this process die.

    Returns the entry, also one that is assigned already. Raises ENTRY_NOT_FOUND, NO_OFFER, OFFER_EXPIRED,
    CHECK_IN_CLOSED or PASSENGER_NOT_FOUND.
    """
    entry = await entries.begin_accept(conn, entry_id, owner=owner)
    if entry is not None:
        await timers.set_timer(conn, entries.ACCEPT, str(entry_id), after=timedelta(seconds=CLAIM_LEASE_SECONDS))
        return entry
    entry = await entries.find(conn, entry_id, owner=owner)
    if entry.state == "ASSIGNED" and entry.offer_expire_time is not None:
        return entry
    if entry.withdraw_reason == CHECK_IN_CLOSED:
        close_time = await conn.fetchval("SELECT close_time FROM flights WHERE flight_id = $1", entry.flight_id)
        if close_time is not None:
            raise refusals.check_in_closed(entry.flight_id, close_time)
    if entry.withdraw_reason == ENTITLEMENT_ENDED:
        raise refusals.passenger_not_found()
    if entry.state == "DECLINED" and entry.offer_expire_time is not None:
        raise refusals.offer_expired(entry.offer_expire_time)
    raise refusals.no_offer(entry.withdrawal or entry.state)
