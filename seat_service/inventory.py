"""The inventory: runs transitions in transactions, and publishes their effects.

Requests that arrive while a batch is running form the next batch, with one transaction for all of them. After the
commit the map, the seat counts and the relay are notified.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar, cast
from uuid import UUID

import asyncpg
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.flights.provisioning import ProvisionRequest, provision
from seat_service.flights.waitlist_switch import WaitlistRequest, set_waitlist_open
from seat_service.holds import blocks
from seat_service.holds.cancel import cancel
from seat_service.holds.change import change
from seat_service.holds.claim import claim
from seat_service.holds.confirm import confirm
from seat_service.holds.expire import expire
from seat_service.holds.extend import extend
from seat_service.holds.hold import hold
from seat_service.holds.releases import release_passenger
from seat_service.layouts.cabin_layouts import Layout
from seat_service.manifests.departures import Departures, set_departures
from seat_service.manifests.manifest_copy import ManifestChange, sync
from seat_service.maps.availability import Availability
from seat_service.maps.seat_map import SeatMaps
from seat_service.refusals import LapsedHoldConflict
from seat_service.requests import ChangeRequest, Effects, HoldRequest, OnHold, OnPassenger, OnSeat
from services import db
from services.batch import Batcher, run_alone
from services.db import Conn, Pool
from services.errors import DeadlineExceeded, Refusal
from services.idempotency import Repeatable, once
from services.outbox import Relay

# How often a request that met a lapsed hold is tried again after the hold was expired. A request that meets another
# lapsed hold each time loses each race, and is refused with SEAT_TAKEN.
LAPSED_ATTEMPTS: Final = 3
# The actor in the ledger if a lapsed hold is expired for a caller that needs the seat. The next line of the ledger
# names that caller.
TAKER: Final = "taker"

Request_contra = TypeVar("Request_contra", bound=Repeatable, contravariant=True)
Answer_co = TypeVar("Answer_co", bound=Message, covariant=True)
AnyRequest = TypeVar("AnyRequest", bound=Repeatable)
AnyAnswer = TypeVar("AnyAnswer", bound=Message)


class Transition(Protocol[Request_contra, Answer_co]):
    """A transition of the state machine, such as `confirm`."""

    def __call__(
        self, conn: Conn, requests: Sequence[Request_contra], /, *, effects: Effects
    ) -> Awaitable[Sequence[Answer_co | Refusal]]: ...


class Inventory:
    """All changes to seats. Each method returns the result, or raises the refusal."""

    def __init__(
        self,
        pool: Pool,
        *,
        layouts: Mapping[str, Layout],
        maps: SeatMaps,
        availability: Availability,
        relay: Relay,
    ) -> None:
        self._pool = pool
        self._layouts = layouts
        self._maps = maps
        self._availability = availability
        self._relay = relay
        holding = partial(self._past_lapsed_holds, transition=hold)
        self._hold: Batcher[HoldRequest, pb.Hold] = Batcher("hold", holding)
        claiming = partial(self._past_lapsed_holds, transition=claim)
        self._claim: Batcher[HoldRequest, pb.Hold] = Batcher("claim", claiming)
        self._confirm: Batcher[OnHold, pb.Hold] = Batcher("confirm", self._batch(confirm, pb.Hold))
        self._cancel: Batcher[OnHold, pb.Hold] = Batcher("cancel", self._batch(cancel, pb.Hold))
        self._extend: Batcher[OnHold, pb.Hold] = Batcher("extend", self._batch(extend, pb.Hold))
        release = self._batch(release_passenger, pb.Hold)
        self._release_passenger: Batcher[OnPassenger, pb.Hold] = Batcher("release_passenger", release)
        # A change locks its hold and then seats. Two changes in one transaction would lock a hold after seats, against
        # the order of locks: so each has its own transaction (`largest=1`).
        changing = partial(self._past_lapsed_holds, transition=change)
        self._change: Batcher[ChangeRequest, pb.Hold] = Batcher("change", changing, largest=1)
        self._block: Batcher[OnSeat, pb.Seat] = Batcher("block", self._batch(blocks.block, pb.Seat), largest=1)
        self._unblock: Batcher[OnSeat, pb.Seat] = Batcher("unblock", self._batch(blocks.unblock, pb.Seat), largest=1)
        self._return: Batcher[OnSeat, pb.Seat] = Batcher("return", self._batch(blocks.return_seat, pb.Seat), largest=1)
        self._provision: Batcher[ProvisionRequest, pb.ProvisionSeatsResponse] = Batcher(
            "provision", self._batch(self._provision_transition, pb.ProvisionSeatsResponse), largest=1
        )
        self._waitlist: Batcher[WaitlistRequest, pb.SetWaitlistOpenResponse] = Batcher(
            "waitlist", self._batch(_waitlist_transition, pb.SetWaitlistOpenResponse), largest=1
        )

        self._departures: Batcher[Departures, pb.SyncPassengersResponse] = Batcher(
            "departures", self._batch(set_departures, pb.SyncPassengersResponse), largest=1
        )
        self._passengers: Batcher[ManifestChange, pb.SyncPassengersResponse] = Batcher(
            "passengers", self._batch(self._sync_transition, pb.SyncPassengersResponse), largest=1
        )

    async def hold(self, request: HoldRequest) -> pb.Hold:
        """Holds all seats of the request, or none: AVAILABLE → HELD."""
        return await self._hold.submit(request)

    async def claim(self, request: HoldRequest) -> pb.Hold:
        """Claims seats for the waitlist: AVAILABLE or OFFERED → HELD or CONFIRMED."""
        return await self._claim.submit(request)

    async def confirm(self, request: OnHold) -> pb.Hold:
        """Confirms a hold: HELD → CONFIRMED."""
        return await self._confirm.submit(request)

    async def cancel(self, request: OnHold) -> pb.Hold:
        """Cancels a hold: HELD or CONFIRMED → CANCELLED."""
        return await self._cancel.submit(request)

    async def release_passenger(self, request: OnPassenger) -> pb.Hold:
        """Releases one passenger's seat of a hold: → AVAILABLE or OFFERED."""
        return await self._release_passenger.submit(request)

    async def extend(self, request: OnHold) -> pb.Hold:
        """Gives a hold its full TTL again: HELD → HELD."""
        return await self._extend.submit(request)

    async def change(self, request: ChangeRequest) -> pb.Hold:
        """Replaces the seats of a hold, and gives it its full TTL again: HELD → HELD."""
        return await self._change.submit(request)

    async def block(self, request: OnSeat) -> pb.Seat:
        """Blocks a seat: AVAILABLE or OFFERED → BLOCKED."""
        return await self._block.submit(request)

    async def unblock(self, request: OnSeat) -> pb.Seat:
        """Unblocks a seat: BLOCKED → AVAILABLE or OFFERED."""
        return await self._unblock.submit(request)

    async def return_seat(self, request: OnSeat) -> pb.Seat:
        """Returns an offered seat to general sale: OFFERED → AVAILABLE."""
        return await self._return.submit(request)

    async def provision(self, request: ProvisionRequest) -> pb.ProvisionSeatsResponse:
        """Creates the seats of a flight, AVAILABLE, from its layout."""
        return await self._provision.submit(request)

    async def set_waitlist_open(self, request: WaitlistRequest) -> pb.SetWaitlistOpenResponse:
        """Opens or closes the waitlist of a flight.

        Released seats are OFFERED while it is open.
        """
        return await self._waitlist.submit(request)

    async def set_departures(self, request: Departures) -> pb.SyncPassengersResponse:
        """Sets departure times: from its departure on no seat of a flight can be held."""
        return await self._departures.submit(request)

    async def sync_passengers(self, request: ManifestChange) -> pb.SyncPassengersResponse:
        """Writes changed passengers, and releases seats without entitlement.

        HELD or CONFIRMED → AVAILABLE or OFFERED (SEAT-17).
        """
        return await self._passengers.submit(request)

    def tell(self, effects: Effects) -> None:
        """Publishes the effects of a committed transaction.

        Notifies the map, the seat counts and the relay.
        """
        if effects.flights:
            self._maps.changed(effects.flights)
            self._availability.changed(effects.flights)
        if effects.events:
            self._relay.wake()

    async def _provision_transition(
        self, conn: Conn, requests: Sequence[ProvisionRequest], /, *, effects: Effects
    ) -> list[pb.ProvisionSeatsResponse | Refusal]:
        effects.flights.update(request.flight_id for request in requests)
        return await provision(conn, requests, layouts=self._layouts)

    async def _sync_transition(
        self, conn: Conn, requests: Sequence[ManifestChange], /, *, effects: Effects
    ) -> list[pb.SyncPassengersResponse | Refusal]:
        return await sync(conn, requests, layouts=self._layouts, effects=effects)

    def _batch(
        self, transition: Transition[AnyRequest, AnyAnswer], answer_type: type[AnyAnswer]
    ) -> Callable[[Sequence[AnyRequest]], Awaitable[Sequence[AnyAnswer | Refusal]]]:
        return partial(self._transact, transition=transition, answer_type=answer_type)

    async def _transact(
        self,
        requests: Sequence[AnyRequest],
        *,
        transition: Transition[AnyRequest, AnyAnswer],
        answer_type: type[AnyAnswer],
    ) -> list[AnyAnswer | Refusal]:
        """Runs a transition in one transaction, then publishes its effects.

        A repeat of a request gets the first response.
        """
        try:
            return await self._attempt(requests, transition, answer_type, expect_repeats=False)
        except asyncpg.UniqueViolationError:
            # An idempotency key was used before, or the requests lost a race. The attempt was rolled back; this one
            # looks up the stored responses first.
            return await self._attempt(requests, transition, answer_type, expect_repeats=True)

    async def _attempt(
        self,
        requests: Sequence[AnyRequest],
        transition: Transition[AnyRequest, AnyAnswer],
        answer_type: type[AnyAnswer],
        *,
        expect_repeats: bool,
    ) -> list[AnyAnswer | Refusal]:
        effects = Effects()
        async with db.decided(self._pool) as conn:
            answers = await once(
                conn, requests, answer_type, partial(transition, effects=effects), expect_repeats=expect_repeats
            )
        self.tell(effects)
        return answers

    async def _past_lapsed_holds(
        self, requests: Sequence[AnyRequest], *, transition: Transition[AnyRequest, pb.Hold]
    ) -> list[pb.Hold | Exception]:
        """Runs a transition, and again for requests that met lapsed holds (SEAT-3).

        It first expires these holds, and tries at most LAPSED_ATTEMPTS times. A committed result stays the result of
        its request, even if other requests of the batch fail in a later attempt.
        """
        answers: list[pb.Hold | Exception] = [
            *await self._transact(requests, transition=transition, answer_type=pb.Hold)
        ]
        for _ in range(LAPSED_ATTEMPTS):
            late = [n for n, answer in enumerate(answers) if isinstance(answer, LapsedHoldConflict)]
            late = [n for n in late if await self._ended(answers, n)]
            if not late:
                break
            again = await self._again([requests[n] for n in late], transition)
            for n, answer in zip(late, again, strict=True):
                answers[n] = answer
        return answers

    async def _again(
        self, requests: Sequence[AnyRequest], transition: Transition[AnyRequest, pb.Hold]
    ) -> list[pb.Hold | Exception]:
        """Runs a transition for some requests of a batch.

        The other requests of the batch are committed already. An error is returned as the outcome of its request. If it
        were raised, the batcher would run all requests of the batch again.
        """

        async def run(some: Sequence[AnyRequest]) -> list[pb.Hold | Exception]:
            return [*await self._transact(some, transition=transition, answer_type=pb.Hold)]

        try:
            return await run(requests)
        except (DeadlineExceeded, *db.UNREACHABLE) as error:
            return [error] * len(requests)
        except Exception:
            return [await run_alone(run, request) for request in requests]

    async def _ended(self, answers: list[pb.Hold | Exception], n: int) -> bool:
        """Expires the lapsed holds that prevent request `n`; returns False if that failed.

        The error then becomes the outcome of this request only.
        """
        try:
            await self._expire(set(cast(LapsedHoldConflict, answers[n]).hold_ids))
        except Exception as error:
            answers[n] = error
            return False
        return True

    async def _expire(self, hold_ids: set[UUID]) -> None:
        effects = Effects()
        async with db.transaction(self._pool) as conn:
            await expire(conn, list(hold_ids), actor=TAKER, effects=effects)
        self.tell(effects)


async def _waitlist_transition(
    conn: Conn, requests: Sequence[WaitlistRequest], /, *, effects: Effects
) -> list[pb.SetWaitlistOpenResponse | Refusal]:
    return await set_waitlist_open(conn, requests)
