"""The inventory: runs transitions in transactions, batched by arrival, and tells others after the commit."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol, TypeVar, cast
from uuid import UUID

import asyncpg
from google.protobuf.message import Message
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import blocks, claiming, flights, holding, manifests, seats
from seat_service.availability import Availability
from seat_service.cabin_layouts import Layout
from seat_service.flights import ProvisionRequest, WaitlistRequest
from seat_service.manifests import Departures, ManifestChange
from seat_service.refusals import LapsedInTheWay
from seat_service.requests import ChangeRequest, Effects, HoldRequest, OnHold, OnPassenger, OnSeat
from seat_service.seat_map import SeatMaps
from services import db
from services.batch import Batcher, one_alone
from services.db import Conn, Pool
from services.errors import DeadlineExceeded, Refusal
from services.idempotency import Repeatable, once
from services.outbox import Relay

# A lapsed hold is ended and the call tried again; whoever meets a new lapsed hold each time is too late each time.
LAPSED_ATTEMPTS: Final = 3
# Who ends a lapsed hold because it wants the seat; the ledger's next line tells who that was.
TAKER: Final = "taker"

Request_contra = TypeVar("Request_contra", bound=Repeatable, contravariant=True)
Answer_co = TypeVar("Answer_co", bound=Message, covariant=True)
AnyRequest = TypeVar("AnyRequest", bound=Repeatable)
AnyAnswer = TypeVar("AnyAnswer", bound=Message)


class Transition(Protocol[Request_contra, Answer_co]):
    """A function of the state machine."""

    def __call__(
        self, conn: Conn, requests: Sequence[Request_contra], /, *, effects: Effects
    ) -> Awaitable[Sequence[Answer_co | Refusal]]: ...


class Inventory:
    """All changes to seats. A method returns the answer, or raises the refusal."""

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
        hold = partial(self._past_lapsed_holds, transition=holding.hold)
        self._hold: Batcher[HoldRequest, pb.Hold] = Batcher("hold", hold)
        claim = partial(self._past_lapsed_holds, transition=claiming.claim)
        self._claim: Batcher[HoldRequest, pb.Hold] = Batcher("claim", claim)
        self._confirm: Batcher[OnHold, pb.Hold] = Batcher("confirm", self._batch(seats.confirm, pb.Hold))
        self._cancel: Batcher[OnHold, pb.Hold] = Batcher("cancel", self._batch(seats.cancel, pb.Hold))
        self._extend: Batcher[OnHold, pb.Hold] = Batcher("extend", self._batch(seats.extend, pb.Hold))
        release = self._batch(seats.release_passenger, pb.Hold)
        self._release_passenger: Batcher[OnPassenger, pb.Hold] = Batcher("release_passenger", release)
        # Changes lock holds and seats in turn, which only a transaction of its own does in order.
        change = partial(self._past_lapsed_holds, transition=seats.change)
        self._change: Batcher[ChangeRequest, pb.Hold] = Batcher("change", change, largest=1)
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
            "departures", self._batch(manifests.set_departures, pb.SyncPassengersResponse), largest=1
        )
        self._passengers: Batcher[ManifestChange, pb.SyncPassengersResponse] = Batcher(
            "passengers", self._batch(self._sync_transition, pb.SyncPassengersResponse), largest=1
        )

    async def hold(self, request: HoldRequest) -> pb.Hold:
        """AVAILABLE → HELD, all seats or none."""
        return await self._hold.submit(request)

    async def claim(self, request: HoldRequest) -> pb.Hold:
        """AVAILABLE or OFFERED → HELD, or → CONFIRMED at once."""
        return await self._claim.submit(request)

    async def confirm(self, request: OnHold) -> pb.Hold:
        """HELD → CONFIRMED."""
        return await self._confirm.submit(request)

    async def cancel(self, request: OnHold) -> pb.Hold:
        """HELD or CONFIRMED → CANCELLED."""
        return await self._cancel.submit(request)

    async def release_passenger(self, request: OnPassenger) -> pb.Hold:
        """HELD or CONFIRMED → AVAILABLE or OFFERED, one passenger's seat of a hold."""
        return await self._release_passenger.submit(request)

    async def extend(self, request: OnHold) -> pb.Hold:
        """HELD → HELD, with its full time again."""
        return await self._extend.submit(request)

    async def change(self, request: ChangeRequest) -> pb.Hold:
        """HELD → HELD, with other seats and its full time again."""
        return await self._change.submit(request)

    async def block(self, request: OnSeat) -> pb.Seat:
        """AVAILABLE or OFFERED → BLOCKED."""
        return await self._block.submit(request)

    async def unblock(self, request: OnSeat) -> pb.Seat:
        """BLOCKED → AVAILABLE or OFFERED."""
        return await self._unblock.submit(request)

    async def return_seat(self, request: OnSeat) -> pb.Seat:
        """OFFERED → AVAILABLE."""
        return await self._return.submit(request)

    async def provision(self, request: ProvisionRequest) -> pb.ProvisionSeatsResponse:
        """(nothing) → AVAILABLE, for all seats of a layout."""
        return await self._provision.submit(request)

    async def set_waitlist_open(self, request: WaitlistRequest) -> pb.SetWaitlistOpenResponse:
        """Decides whether freed seats are OFFERED."""
        return await self._waitlist.submit(request)

    async def set_departures(self, request: Departures) -> pb.SyncPassengersResponse:
        """Decides from when on nothing is given on flights."""
        return await self._departures.submit(request)

    async def sync_passengers(self, request: ManifestChange) -> pb.SyncPassengersResponse:
        """HELD or CONFIRMED → AVAILABLE or OFFERED, for passengers who ended or whose seat does not fit any more."""
        return await self._passengers.submit(request)

    def tell(self, effects: Effects) -> None:
        """Tells the map, the counts and the relay what a committed transaction changed."""
        if effects.flights:
            self._maps.changed(effects.flights)
            self._availability.changed(effects.flights)
        if effects.events:
            self._relay.wake()

    async def _provision_transition(
        self, conn: Conn, requests: Sequence[ProvisionRequest], /, *, effects: Effects
    ) -> list[pb.ProvisionSeatsResponse | Refusal]:
        effects.flights.update(request.flight_id for request in requests)
        return await flights.provision(conn, requests, layouts=self._layouts)

    async def _sync_transition(
        self, conn: Conn, requests: Sequence[ManifestChange], /, *, effects: Effects
    ) -> list[pb.SyncPassengersResponse | Refusal]:
        return await manifests.sync(conn, requests, layouts=self._layouts, effects=effects)

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
        """Runs a transition in one transaction, with repeats answered as before, and tells of it."""
        try:
            return await self._attempt(requests, transition, answer_type, expect_repeats=False)
        except asyncpg.UniqueViolationError:
            # A key was used before, or somebody was faster: nothing is left of the attempt, and now it is known.
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
        """Runs a transition; where lapsed holds stand in the way, ends them and runs it again (SEAT-3).

        What was committed stays the answer of its request, whatever becomes of those that met a lapsed hold.
        """
        answers: list[pb.Hold | Exception] = [
            *await self._transact(requests, transition=transition, answer_type=pb.Hold)
        ]
        for _ in range(LAPSED_ATTEMPTS):
            late = [n for n, answer in enumerate(answers) if isinstance(answer, LapsedInTheWay)]
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
        """Runs a transition for a part of a batch, whose rest is committed; each error is the answer of its request."""

        async def run(some: Sequence[AnyRequest]) -> list[pb.Hold | Exception]:
            return [*await self._transact(some, transition=transition, answer_type=pb.Hold)]

        try:
            return await run(requests)
        except (DeadlineExceeded, *db.AWAY) as error:
            return [error] * len(requests)
        except Exception:
            return [await one_alone(run, request) for request in requests]

    async def _ended(self, answers: list[pb.Hold | Exception], n: int) -> bool:
        """Ends the lapsed holds in the way of a request; where that fails, the error is its answer and no other's."""
        try:
            await self._expire(set(cast(LapsedInTheWay, answers[n]).hold_ids))
        except Exception as error:
            answers[n] = error
            return False
        return True

    async def _expire(self, hold_ids: set[UUID]) -> None:
        effects = Effects()
        async with db.transaction(self._pool) as conn:
            await seats.expire(conn, list(hold_ids), actor=TAKER, effects=effects)
        self.tell(effects)


async def _waitlist_transition(
    conn: Conn, requests: Sequence[WaitlistRequest], /, *, effects: Effects
) -> list[pb.SetWaitlistOpenResponse | Refusal]:
    return await flights.set_waitlist_open(conn, requests)
