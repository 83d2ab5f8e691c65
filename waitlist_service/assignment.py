"""The steps after a match: a seat is claimed, then confirmed or offered.

The steps are handlers of timers. A handler first calls other services, outside a transaction, and writes last. The
guard of the write is the claim id that the handler read. So a handler may run twice, and its process may die at any
point: the timer runs the handler again until it has succeeded.
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
from waitlist_service import entries, notices, peers, refusals, released_seats
from waitlist_service.entitlements import CHECK_IN_CLOSED, ENTITLEMENT_ENDED, Entitlements
from waitlist_service.entries import Claimed, Entry
from waitlist_service.open_waitlists import OpenWaitlists
from waitlist_service.peers import PASSENGER_HOLDS_SEAT, Hold, NotForPassenger, Peers, SeatUnavailable
from waitlist_service.settings import WaitlistSettings

# If a process dies during a claim, another process takes the timer over after this time.
CLAIM_LEASE_SECONDS: Final = 4 * FACTOR
# For how long an entry skips a seat first: a hold of another seat, the usual reason, may end soon.
SKIP: Final = timedelta(seconds=3)
# After a refusal for another reason an entry skips the seat for twice as long as the time before, up to this.
LONGEST_SKIP: Final = timedelta(minutes=10)
# The pause before a match that could not be claimed yet is tried again.
CLAIM_AGAIN: Final = timedelta(seconds=0.25)
# The most offers in one request to the seat service.
OFFERS_AT_ONCE: Final = 200

UNEXPECTED_REFUSALS: Final = Counter(
    "skyhigh_waitlist_unexpected_refusals_total", "Claims that were refused for an unexpected reason.", ["reason"]
)
_log = telemetry.log("assignment")


class Assignment:
    """The handlers of the waitlist's timers.

    `tell` wakes the relay and the timers after a commit.
    """

    def __init__(
        self,
        pool: Pool,
        others: Peers,
        open_waitlists: OpenWaitlists,
        all_entitlements: Entitlements,
        settings: WaitlistSettings,
        *,
        tell: Callable[[], None],
    ) -> None:
        self._pool = pool
        self._peers = others
        self._open_waitlists = open_waitlists
        self._entitlements = all_entitlements
        self._settings = settings
        self._tell = tell
        # Under load many matches share one manifest request and one transaction.
        self._decided: Batcher[UUID, Entry | None] = Batcher("decided", self._decided_batch)
        self._assigned: Batcher[Claimed, Entry | None] = Batcher("assigned", self._assigned_batch)

    def handlers(self) -> Mapping[str, Handler]:
        """Returns the handlers, by the names of their timers."""
        return {
            entries.ASSIGN: Handler(self.assign, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.ACCEPT: Handler(self.accept, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.LAPSE: Handler(self.lapse),
            entries.WITHDRAW: Handler(self.withdraw),
            entries.CLOSE: Handler(self.close),
            # The short lease: if the process of a sweep dies, another one repeats the sweep soon.
            entries.SWEEP: Handler(self.sweep, lease_seconds=CLAIM_LEASE_SECONDS),
            entries.NOTIFY: Handler(self.notify),
            entries.CANCEL_HOLD: Handler(self.cancel_hold),
            released_seats.RETURN_SEAT: Handler(self.return_seat),
        }

    async def assign(self, subject: str) -> None:
        """Claims the seat of an entry's match; then assigns or offers it, as the claim says."""
        entry = await self._decided.submit(UUID(subject))
        if entry is None:
            return
        if entry.claim_request is None:
            # The entry or its flight differs from the manifest. This ends or updates the entry; a match that is left
            # is claimed by the next run of the timer.
            await self._entitlements.compare_entries(entry.flight_id, [entry])
            async with db.transaction(self._pool) as conn:
                if await entries.is_matched(conn, entry):
                    await timers.set_timer(conn, entries.ASSIGN, subject, after=CLAIM_AGAIN)
            return
        request = seat.ClaimSeatRequest.FromString(entry.claim_request)
        try:
            hold = await self._peers.claim(request)
        except SeatUnavailable:
            return await self._remove_match_of_taken_seat(entry)
        except NotForPassenger as refusal:
            await self._remove_refused_match(
                entry, refusal.reason, twice_as_long=refusal.reason != PASSENGER_HOLDS_SEAT
            )
            if refusal.is_for_manifest:
                await self._entitlements.try_to_compare(entry.flight_id)
            return
        except (PeerRefusal, PeerFault) as refusal:
            return await self._settle(entry, refusal)
        await self._take(entry, hold)

    async def accept(self, subject: str) -> None:
        """Confirms the hold of an accepted offer, and assigns the entry.

        If the hold has ended by the seat service's clock, the entry is DECLINED. If the seat service refuses the
        passenger, the offer is withdrawn.
        """
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.hold_id is None or entry.accept_time is None:
            return
        try:
            hold = await self._peers.confirm(entry.hold_id)
            if (seat_number := hold.seat_of(entry)) is None:
                raise SeatUnavailable
        except SeatUnavailable:
            async with db.transaction(self._pool) as conn:
                await entries.lapse(conn, entry.entry_id, hold_id=entry.hold_id)
        except NotForPassenger as refusal:
            await self._refuse_accept(entry, refusal)
        else:
            actor = entry.accept_actor or entry.owner
            await self._assigned.submit(Claimed(entry, entry.hold_id, seat_number, actor))
        self._tell()

    async def withdraw(self, subject: str) -> None:
        """Cancels the hold of a withdrawn offer, and ends the entry.

        If the passenger has confirmed the hold, it stays confirmed, and the entry becomes ASSIGNED.
        """
        async with db.transaction(self._pool) as conn:
            entry = await entries.find(conn, UUID(subject), owner=None)
        if entry.state != "OFFERED" or entry.hold_id is None or entry.withdrawal is None:
            return
        cancelled = await self._peers.cancel_unconfirmed(entry.hold_id, reason=entry.withdraw_reason or "")
        if cancelled or not await self._keep_confirmed(entry, entry.hold_id):
            async with db.transaction(self._pool) as conn:
                await entries.finish_withdrawal(conn, entry)
                await timers.set_timer(conn, entries.SWEEP, entry.flight_id)
        self._tell()

    async def lapse(self, subject: str) -> None:
        """Ends an offer that was not accepted in time.

        Does nothing if the offer is accepted or withdrawn: the timers ACCEPT and WITHDRAW handle these. If the
        passenger has confirmed the hold at the seat service, the entry becomes ASSIGNED.
        """
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
        if hold.state == "CONFIRMED" and await self._keep_confirmed(entry, entry.hold_id):
            return
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
        """Ends all entries of a flight if its check-in has closed."""
        await self._entitlements.close(flight_id)

    async def sweep(self, flight_id: str) -> None:
        """Matches the free seats of a flight's map, in case an event was lost.

        Compares the entries with the manifest and looks for changed offers, too. Sets the next sweep while the flight
        has live entries; without live entries it closes the waitlist.
        """
        async with db.transaction(self._pool) as conn:
            waiting = await entries.has_live_entries(conn, flight_id)
        if not waiting:
            await self._open_waitlists.close_if_empty(flight_id)
            return
        # Before the calls to the seat service, so that entries end also while it is down.
        await self._entitlements.try_to_compare(flight_id)
        await self._open_waitlists.notify_seat_service(flight_id)
        await self._look_at_offers(flight_id)
        seats = await self._peers.seat_map(flight_id)
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, flight_id)
            free = await released_seats.settled(conn, flight_id, peers.free(seats))
            # A map does not say when an offer ends: another caller may take the seat before it is claimed.
            unwanted = await released_seats.match_with_entries(conn, flight_id, dict.fromkeys(free))
            await released_seats.return_seats_later(conn, flight_id, unwanted & peers.offered(seats))
            # Without live entries, for example because check-in has closed since, no further sweep is set.
            if waits := await entries.has_live_entries(conn, flight_id):
                await timers.set_timer(conn, entries.SWEEP, flight_id, after=self._settings.sweep_interval)
        self._tell()
        if not waits:
            await self._open_waitlists.close_if_empty(flight_id)

    async def notify(self, subject: str) -> None:
        """Writes the mail to a passenger whose address was not known at the transition."""
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
            # The guard of the mail: the timer is deleted with it. If a process dies after this commit, a second run
            # finds no timer and writes no second mail.
            if await timers.cancel_timer(conn, entries.NOTIFY, subject) and mail is not None:
                await outbox.enqueue(conn, [mail])
        self._tell()

    async def cancel_hold(self, subject: str) -> None:
        """Cancels the hold of an offer that ended when its flight was cancelled.

        Also runs for timers that a former version of this service set.
        """
        await self._peers.cancel_unconfirmed(UUID(subject), reason="OFFER_DECLINED")

    async def return_seat(self, subject: str) -> None:
        """Returns an OFFERED seat that no waiting entry wants to general sale."""
        flight_id, _, seat_number = subject.rpartition("/")
        await self._peers.return_seat(flight_id, seat_number)

    async def _take(self, entry: Entry, hold: Hold) -> None:
        """Writes the result of a claim: assigns a confirmed hold, offers any other."""
        if hold.state == "CONFIRMED":
            seat_number = hold.seat_of(entry) or entry.seat_number
            assert seat_number is not None
            await self._assigned.submit(Claimed(entry, hold.hold_id, seat_number, "waitlist"))
        else:
            await self._offer(entry, hold)
        self._tell()

    async def _offer(self, entry: Entry, hold: Hold) -> None:
        assert entry.claim_id is not None
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, entry.flight_id)
            await entries.offer(
                conn, entry.entry_id, claim_id=entry.claim_id, hold_id=hold.hold_id, expire_time=hold.expire_time
            )
            await released_seats.touch(conn, [entry.seat] if entry.seat is not None else [])
            await _serve_kept(conn, [entry.flight_id])

    async def _settle(self, entry: Entry, refusal: PeerRefusal | PeerFault) -> None:
        """Ends a claim that was refused for an unexpected reason.

        So the claim delays no other entry. An earlier attempt may have taken effect, so the seat service is asked
        whether the passenger has the seat. If not, the seat goes to the next entry, and this one tries it again later.
        """
        _log.error(
            "claim refused for an unexpected reason",
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
        await self._remove_refused_match(entry, refusal.reason or refusal.code.name, twice_as_long=True)

    async def _keep_confirmed(self, entry: Entry, hold_id: UUID) -> bool:
        """Assigns an offer whose hold the passenger has confirmed at the seat service: OFFERED → ASSIGNED.

        Returns False, and changes nothing, if the passenger has no seat in the hold any more.
        """
        hold = await self._peers.hold(hold_id)
        seat_number = hold.seat_of(entry)
        if seat_number is None:
            return False
        await self._assigned.submit(Claimed(entry, hold_id, seat_number, entry.owner))
        self._tell()
        return True

    async def _refuse_accept(self, entry: Entry, refusal: NotForPassenger) -> None:
        """Withdraws an accepted offer that the seat service refuses to confirm.

        The entries of the flight are compared with the manifest first: if the passenger has left the manifest, that is
        the reason of the withdrawal.
        """
        async with db.transaction(self._pool) as conn:
            await entries.end_accept(conn, entry)
        await self._entitlements.try_to_compare(entry.flight_id)
        async with db.transaction(self._pool) as conn:
            await entries.withdraw(
                conn, [entry.entry_id], to="DECLINED", owner=None, actor="seat", reason=refusal.reason
            )

    async def _end_extended(self, entry: Entry) -> None:
        """Withdraws an offer that has ended although its hold was extended.

        The passenger extended the hold at the seat service. If the offer has not ended yet by the database's clock, the
        timer is set again.
        """
        async with db.transaction(self._pool) as conn:
            left = await conn.fetchval("SELECT $1::timestamptz - statement_timestamp()", entry.offer_expire_time)
            if left > timedelta():
                return await timers.set_timer(conn, entries.LAPSE, str(entry.entry_id), after=left)
            await entries.withdraw(
                conn, [entry.entry_id], to="DECLINED", owner=None, actor="waitlist", reason=entries.OFFER_LAPSED
            )
        await self.withdraw(str(entry.entry_id))

    async def _look_at_offers(self, flight_id: str) -> None:
        """Ends offers whose hold the passenger confirmed or cancelled at the seat service."""
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
        """Returns the entries that are matched, each with its stored claim request.

        A claim without a request is stored first, if the manifest still has the facts of the entry. The entry comes
        without a request if it does not. None stands for an entry that has no match any more.
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
                # Otherwise the entry was moved, or another process stored its claim and is about to send it. In case
                # that process dies, `assign` sets the timer again.
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
                await released_seats.lock_all(conn, flights)
            assigned = await entries.assign(conn, claims)
            await released_seats.touch(conn, [seat for claimed in claims if (seat := claimed.entry.seat) is not None])
            if flights:
                await _serve_kept(conn, flights)
        return assigned

    async def _remove_match_of_taken_seat(self, entry: Entry) -> None:
        """Removes the match of an entry whose seat is taken; the entry keeps its place.

        A sweep then finds the seats that are free.
        """
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, entry.flight_id)
            if await entries.remove_match(conn, entry):
                await released_seats.touch(conn, [entry.seat] if entry.seat is not None else [])
                await _serve_kept(conn, [entry.flight_id])
                await timers.set_timer(conn, entries.SWEEP, entry.flight_id)
        self._tell()

    async def _remove_refused_match(self, entry: Entry, reason: str, *, twice_as_long: bool) -> None:
        """Removes a match that the seat service refuses for this passenger.

        The seat is matched with the next entry. The entry keeps its place, and a row of `skips` has the reason. The
        entry tries the seat again after SKIP, or with `twice_as_long` after twice the time of its last skip, up to
        LONGEST_SKIP.
        """
        assert entry.seat_number is not None
        async with db.transaction(self._pool) as conn:
            await released_seats.lock(conn, entry.flight_id)
            if not await entries.remove_match(conn, entry):
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
            unwanted = await released_seats.match_with_entries(conn, entry.flight_id, {entry.seat_number: None})
            await released_seats.return_seats_later(conn, entry.flight_id, unwanted)
        self._tell()


def _may_claim(entry: Entry, manifest: peers.Manifest) -> bool:
    """Returns True if the manifest permits to claim the entry's match.

    It must still have the facts of the entry, and check-in must be open for the flight, which is not cancelled.
    """
    times = manifest.flights.get(entry.flight_id)
    return (
        manifest.passengers.get((entry.flight_id, entry.passenger_id)) == entry.facts
        and entry.type != "INFANT"
        and times is not None
        and not times.closed
        and times.cancel_time is None
    )


async def _serve_kept(conn: Conn, flight_ids: Collection[str]) -> None:
    """Matches the kept seats of flights again, now that the result of a claim is known.

    The caller has locked the flights.
    """
    for flight_id in await released_seats.keeping(conn, flight_ids):
        await released_seats.return_seats_later(
            conn, flight_id, await released_seats.match_with_entries(conn, flight_id, {})
        )


async def accepted(conn: Conn, entry_id: UUID, *, owner: str | None, actor: str) -> Entry:
    """Marks an offer as accepted by `actor`; sets the timer that confirms it if this process dies.

    Returns the entry, also if it is ASSIGNED already after an offer. Raises ENTRY_NOT_FOUND, NO_OFFER, OFFER_EXPIRED,
    CHECK_IN_CLOSED or PASSENGER_NOT_FOUND.
    """
    entry = await entries.begin_accept(conn, entry_id, owner=owner, actor=actor)
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
