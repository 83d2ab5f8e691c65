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
from services.clients import PeerFault, PeerRefusal
from services.db import Conn, Pool
from services.errors import Refusal
from services.time_limits import FACTOR
from services.timers import Handler
from waitlist_service import entries, notices, peers, refusals, serving
from waitlist_service.entitlements import CHECK_IN_CLOSED, ENTITLEMENT_ENDED, Entitlements
from waitlist_service.entries import Claimed, Entry
from waitlist_service.openness import Openness
from waitlist_service.peers import PASSENGER_HOLDS_SEAT, Hold, NotForPassenger, Peers, SeatGone
from waitlist_service.settings import WaitlistSettings

# Whoever dies with a claim leaves it to another after so long.
CLAIM_LEASE_SECONDS: Final = 4 * FACTOR
# A passenger who holds another seat at this moment may be free of it soon.
SKIP: Final = timedelta(seconds=3)
# Any other refusal of a seat is tried again after twice as long as the time before.
LONGEST_SKIP: Final = timedelta(minutes=10)
# Until a match that could not be claimed is looked at again.
CLAIM_AGAIN: Final = timedelta(seconds=0.25)
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
            # Ends the entry or updates it, as the manifest says. A match that still stands is claimed then.
            await self._entitlements.compare_entries(entry.flight_id, [entry])
            async with db.transaction(self._pool) as conn:
                if await entries.is_matched(conn, entry):
                    await timers.set_timer(conn, entries.ASSIGN, subject, after=CLAIM_AGAIN)
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
        except (PeerRefusal, PeerFault) as refusal:
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
            await self._assigned.submit(Claimed(entry, entry.hold_id, hold.seat_of(entry), entry.owner))
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
        if hold.state == "HELD" and entry.offer_expire_time is not None and hold.expire_time > entry.offer_expire_time:
            return await self._end_extended(entry)
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
        # First: entries end also while the seat service is down.
        await self._entitlements.try_to_compare(flight_id)
        await self._openness.tell(flight_id)
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
            # Check-in may have closed since: the flight's last sweep is set then, and no other.
            if waits := await entries.anybody_waits(conn, flight_id):
                await timers.set_timer(conn, entries.SWEEP, flight_id, after=self._settings.sweep_interval)
        self._tell()
        if not waits:
            await self._openness.close_if_nobody_waits(flight_id)

    async def notify(self, subject: str) -> None:
        """Has a passenger told by mail for whom the manifest could not be asked before."""
        async with db.session(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
            reason = await conn.fetchval(
                "SELECT reason FROM entry_events WHERE entry_id = $1 ORDER BY version DESC LIMIT 1", entry.entry_id
            )
        place = (entry.flight_id, entry.passenger_id)
        manifest = await self._peers.manifest([place])
        facts, times = manifest.passengers.get(place), manifest.flights.get(entry.flight_id)
        if facts is None:
            return
        reached = replace(entry, contact_email=facts.contact_email, contact_name=facts.contact_name)
        mail = notices.mail_of(reached, reason=reason, origin="" if times is None else times.origin)
        async with db.transaction(self._pool) as conn:
            # The guard of the mail: a process that died before it marked the timer leaves it to a second run.
            if await timers.cancel_timer(conn, entries.NOTIFY, subject) and mail is not None:
                await outbox.enqueue(conn, [mail])
        self._tell()

    async def cancel_hold(self, subject: str) -> None:
        """Cancels the hold of an offer that ended with its flight, or with a former version of this service."""
        await self._peers.cancel_unconfirmed(UUID(subject), reason="OFFER_DECLINED")

    async def hand_back(self, subject: str) -> None:
        """Hands back a seat that nobody who waits wants."""
        flight_id, _, seat_number = subject.rpartition("/")
        await self._peers.hand_back(flight_id, seat_number)

    async def _take(self, entry: Entry, hold: Hold) -> None:
        """Writes what the seat service answered a claim with: a confirmed seat, or one to offer."""
        if hold.state == "CONFIRMED":
            await self._assigned.submit(Claimed(entry, hold.hold_id, hold.seat_of(entry), "waitlist"))
        else:
            await self._offer(entry, hold)
        self._tell()

    async def _offer(self, entry: Entry, hold: Hold) -> None:
        assert entry.claim_id is not None
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, entry.flight_id)
            await entries.offer(
                conn, entry.entry_id, claim_id=entry.claim_id, hold_id=hold.hold_id, expire_time=hold.expire_time
            )
            await serving.touch(conn, [entry.seat] if entry.seat is not None else [])
            await _serve_kept(conn, [entry.flight_id])

    async def _settle(self, entry: Entry, refusal: PeerRefusal | PeerFault) -> None:
        """Ends a claim that was refused for an unexpected reason, so that it holds up no other entry.

        An earlier try may have had an effect: the seat service says whether the passenger has the seat. If not, the
        seat goes to the next in line, and the entry tries it again later.
        """
        _log.error(
            "a claim was refused for an unexpected reason",
            entry_id=str(entry.entry_id),
            flight_id=entry.flight_id,
            seat_number=entry.seat_number,
            reason=refusal.reason,
            code=refusal.code.name,
        )
        UNEXPECTED_REFUSALS.labels(refusal.reason or refusal.code.name).inc()
        for each in (await self._peers.seats_of([entry]))[entry.entry_id]:
            if each.seat_number == entry.seat_number:
                return await self._take(entry, await self._peers.hold(each.hold_id))
        await self._next_in_line(entry, refusal.reason or refusal.code.name, twice_as_long=True)

    async def _keep_confirmed(self, entry: Entry, hold_id: UUID) -> None:
        """OFFERED → ASSIGNED: the passenger confirmed the hold of the offer itself, at the seat service."""
        hold = await self._peers.hold(hold_id)
        await self._assigned.submit(Claimed(entry, hold_id, hold.seat_of(entry), entry.owner))
        self._tell()

    async def _refuse_accept(self, entry: Entry, refusal: NotForPassenger) -> None:
        """Ends an offer that the seat service does not confirm for its passenger any more."""
        async with db.transaction(self._pool) as conn:
            await entries.end_accept(conn, entry)
        await self._entitlements.try_to_compare(entry.flight_id)
        async with db.transaction(self._pool) as conn:
            await entries.withdraw(
                conn, [entry.entry_id], to="DECLINED", owner=None, actor="seat", reason=refusal.reason
            )

    async def _end_extended(self, entry: Entry) -> None:
        """Withdraws an offer that has ended although its passenger gave the hold a later end at the seat service."""
        async with db.transaction(self._pool) as conn:
            left = await conn.fetchval("SELECT $1::timestamptz - statement_timestamp()", entry.offer_expire_time)
            if left > timedelta():
                return await timers.set_timer(conn, entries.LAPSE, str(entry.entry_id), after=left)
            await entries.withdraw(
                conn, [entry.entry_id], to="DECLINED", owner=None, actor="waitlist", reason=entries.OFFER_LAPSED
            )
        await self.withdraw(str(entry.entry_id))

    async def _look_at_offers(self, flight_id: str) -> None:
        """Finds offers whose hold the passenger has confirmed, cancelled or changed at the seat service."""
        async with db.session(self._pool) as conn:
            offered = await entries.offered(conn, flight_id, limit=OFFERS_AT_ONCE)
        if not offered:
            return
        seats = await self._peers.seats_of(offered)
        for entry in offered:
            holds = {each.hold_id: each for each in seats[entry.entry_id]}
            hold = holds.get(entry.hold_id) if entry.hold_id is not None else None
            if hold is None or hold.confirmed:
                await self.lapse(str(entry.entry_id))

    async def _decided_batch(self, entry_ids: Sequence[UUID]) -> list[Entry | Refusal | None]:
        """Returns the matched entries, each with its claim; without one if the entry or its passenger has changed.

        None for an entry that is matched with nothing any more.
        """
        async with db.session(self._pool) as conn:
            found = await entries.matched(conn, entry_ids, mode=self._settings.mode)
        answers = {entry_id: entry for entry_id, (entry, _) in found.items()}
        undecided = [entry for entry in answers.values() if entry.claim_request is None]
        if undecided:
            manifest = await self._peers.manifest([(entry.flight_id, entry.passenger_id) for entry in undecided])
            claims = [
                (entry, self._claim(entry, found[entry.entry_id][1]))
                for entry in undecided
                if _may_claim(entry, manifest)
            ]
            async with db.session(self._pool) as conn:
                decided = await entries.decide(conn, claims) if claims else set()
            for entry, request in claims:
                # If not, it has ended, or another process has decided it and may die before it sends the claim.
                if entry.entry_id in decided:
                    answers[entry.entry_id] = replace(entry, claim_request=request)
        return [answers.get(entry_id) for entry_id in entry_ids]

    def _claim(self, entry: Entry, mode: str) -> bytes:
        request = peers.claim_request(entry, offer_ttl=None if mode == "AUTO_CONFIRM" else self._settings.offer_ttl)
        return request.SerializeToString(deterministic=True)

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

    async def _next_in_line(self, entry: Entry, reason: str, *, twice_as_long: bool) -> None:
        """The seat is not for this passenger now: why is written down, it keeps its place, and the next is served.

        It tries the seat again after SKIP, or after twice as long as the last time, up to LONGEST_SKIP.
        """
        assert entry.seat_number is not None
        async with db.transaction(self._pool) as conn:
            await serving.lock(conn, entry.flight_id)
            if not await entries.give_up_claim(conn, entry):
                return
            await conn.execute(
                """
                INSERT INTO skips (entry_id, seat_number, reason, end_time)
                VALUES ($1, $2, $3, statement_timestamp() + $4::interval)
                ON CONFLICT (entry_id, seat_number) DO UPDATE
                SET reason = excluded.reason, skip_time = statement_timestamp(),
                    end_time = CASE WHEN $5 AND isfinite(skips.end_time)
                                    THEN statement_timestamp()
                                         + least(2 * greatest(skips.end_time - skips.skip_time, $4::interval), $6)
                                    ELSE excluded.end_time END
                """,
                entry.entry_id,
                entry.seat_number,
                reason,
                SKIP,
                twice_as_long,
                LONGEST_SKIP,
            )
            unwanted = await serving.serve(conn, entry.flight_id, {entry.seat_number: None})
            await serving.hand_back(conn, entry.flight_id, unwanted)
        self._tell()


def _may_claim(entry: Entry, manifest: peers.Manifest) -> bool:
    """Whether the manifest says of an entry's passenger and flight what it said when the entry was matched."""
    times = manifest.flights.get(entry.flight_id)
    return (
        manifest.passengers.get((entry.flight_id, entry.passenger_id)) == entry.facts
        and entry.type != "INFANT"
        and times is not None
        and not times.closed
        and times.cancel_time is None
    )


async def _serve_kept(conn: Conn, flight_ids: Collection[str]) -> None:
    """Serves what was kept until a claim was judged; the flights are locked."""
    for flight_id in await serving.keeping(conn, flight_ids):
        await serving.hand_back(conn, flight_id, await serving.serve(conn, flight_id, {}))


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
    lapsed = entry.state == "OFFERED" and entry.withdraw_reason in (None, entries.OFFER_LAPSED)
    if (entry.state == "DECLINED" or lapsed) and entry.offer_expire_time is not None:
        raise refusals.offer_expired(entry.offer_expire_time)
    raise refusals.no_offer(entry.withdrawal or entry.state)
