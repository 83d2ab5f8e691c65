"""Begins check-ins: eligibility first, then the seat, then the row (CHK-4).

The seat service confirms the seat before the check-in is written (docs/decisions/0015).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.error_reason_pb2 import ErrorReason

from checkin_service import records, refusals
from checkin_service.check_ins import eligibility, start, timer_names
from checkin_service.check_ins.fares import Fare
from checkin_service.manifests.entitlements import Entitlements
from checkin_service.peers import Peers, Seat
from services import db, timers
from services.auth import Role
from services.db import Conn, GuardMissed, Pool
from services.errors import DeadlineExceeded, Refusal
from services.idempotency import RequestKey
from services.transitions import Transitions

ALREADY_CHECKED_IN: Final = ErrorReason.Name(ErrorReason.ALREADY_CHECKED_IN)


@dataclass(frozen=True, slots=True)
class StartRequest:
    """A request to check a passenger in.

    `pnr` limits the caller to passengers of that locator; None means all.
    """

    flight_id: str
    passenger_id: str
    hold_id: UUID | None
    pnr: str | None
    role: Role
    actor: str
    request_key: RequestKey | None


class Starting:
    """Begins check-ins."""

    def __init__(
        self,
        pool: Pool,
        peers: Peers,
        entitlements: Entitlements,
        transitions: Transitions,
        *,
        fares: Mapping[str, Fare],
    ) -> None:
        self._pool = pool
        self._peers = peers
        self._entitlements = entitlements
        self._transitions = transitions
        self._fares = fares

    async def start(self, request: StartRequest) -> pb.CheckIn:
        """Begins a check-in: (nothing) → INITIATED. Raises the errors of StartCheckIn.

        The seat is confirmed before the check-in is written. If the process dies in between, the passenger has a
        confirmed seat and no check-in, which is a valid state, and a retry continues from there.
        """
        known = await self._transitions.known(request.request_key, pb.CheckIn)
        if known is not None:
            return known
        try:
            async with db.transaction(self._pool) as conn:
                infant = (await self._check_rules(conn, request)).adult is not None
        except Refusal:
            # The first attempt of this same request may have caused the refusal; its response is then returned.
            known = await self._transitions.known(request.request_key, pb.CheckIn)
            if known is None:
                raise
            return known
        seat, was_confirmed = (None, False) if infant else await self._seat(request)
        write = partial(self._write, request, seat, was_confirmed)
        return await self._transitions.run(request.request_key, pb.CheckIn, write)

    async def _check_rules(self, conn: Conn, request: StartRequest) -> eligibility.Situation:
        situation = await eligibility.situation(
            conn, request.flight_id, request.passenger_id, pnr=request.pnr, role=request.role
        )
        if in_the_way := eligibility.refusals_of(situation):
            raise in_the_way[0]
        return situation

    async def _seat(self, request: StartRequest) -> tuple[Seat, bool]:
        """Returns the passenger's confirmed seat, and whether this request has confirmed it."""
        # By this the seat service releases a seat that does not fit the passenger's current manifest entry.
        await self._entitlements.send_of(request.flight_id, request.passenger_id)
        if request.hold_id is not None:
            return await self._peers.confirm_hold(request.hold_id, request.flight_id, request.passenger_id)
        seat = await self._peers.confirmed_seat(request.flight_id, request.passenger_id)
        if seat is None:
            # The cause of the release may also have ended the passenger's eligibility after the first check.
            async with db.transaction(self._pool) as conn:
                await self._check_rules(conn, request)
            raise refusals.seat_required()
        return seat, False

    async def _write(self, request: StartRequest, seat: Seat | None, was_confirmed: bool, conn: Conn) -> pb.CheckIn:
        await _lock(conn, request)
        try:
            situation = await self._check_rules(conn, request)
        except Refusal as refusal:
            if not was_confirmed:
                raise
            if refusal.reason == ALREADY_CHECKED_IN:
                return await _follow(conn, UUID(refusal.metadata["checkin_id"]))
            # A refusal would say that nothing has changed (rule 11.15). A retry is refused for this reason at once.
            raise DeadlineExceeded from refusal
        checkin_id = await start.start(
            conn,
            flight_id=request.flight_id,
            passenger_id=request.passenger_id,
            pnr=situation.pnr,
            allowance_grams=self._fares[situation.fare].allowance_grams,
            seat=seat,
            actor=request.actor,
        )
        if checkin_id is None:
            if seat is not None and await _had_seat_before(conn, request, seat):
                raise refusals.seat_required()
            # Since the last check, another caller began the check-in or check-in closed; the request is evaluated
            # again.
            raise GuardMissed
        return (await records.find(conn, checkin_id)).message()


async def _follow(conn: Conn, checkin_id: UUID) -> pb.CheckIn:
    """Returns the check-in that another request began after this one had confirmed its hold.

    A refusal would say that nothing has changed (rule 11.15), but the passenger has the hold's seat. A timer asks the
    seat service for the seat and records it.
    """
    await timers.set_timer(conn, timer_names.CHECK_SEAT, str(checkin_id))
    return (await records.find(conn, checkin_id)).message()


async def _lock(conn: Conn, request: StartRequest) -> None:
    """Locks the passenger's manifest entry, and the check-in of an infant's adult.

    The entry stays as it is, and the adult checked in, until the new check-in is written.
    """
    await conn.execute(
        "SELECT FROM passengers WHERE flight_id = $1 AND passenger_id = $2 FOR SHARE",
        request.flight_id,
        request.passenger_id,
    )
    await conn.execute(
        """
        SELECT FROM passengers JOIN check_ins AS adult
            ON adult.flight_id = passengers.flight_id AND adult.passenger_id = accompanying_passenger_id
        WHERE passengers.flight_id = $1 AND passengers.passenger_id = $2 AND adult.state = 'COMPLETED'
        FOR SHARE OF adult
        """,
        request.flight_id,
        request.passenger_id,
    )


async def _had_seat_before(conn: Conn, request: StartRequest, seat: Seat) -> bool:
    """Returns whether an earlier check-in of the passenger had this seat.

    Its cancellation releases the seat, so no other check-in can begin with it. A seat of a confirmed booking is not
    released and can be used again.
    """
    given_up: bool = await conn.fetchval(
        """
        SELECT EXISTS (SELECT FROM check_ins
                       WHERE hold_id = $3 AND flight_id || '' = $1 AND passenger_id = $2 AND state = 'CANCELLED')
               AND NOT EXISTS (SELECT FROM passengers
                               WHERE flight_id = $1 AND passenger_id = $2 AND booking IS NOT NULL)
        """,
        request.flight_id,
        request.passenger_id,
        seat.hold_id,
    )
    return given_up
