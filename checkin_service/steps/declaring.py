"""Baggage declarations: bags are weighed, checked and charged (CHK-6, CHK-7).

The other services are asked first: the scales for the weights, then the payment service to create a new intent and to
cancel the former one. One guarded write comes last. An intent that no check-in names can't be paid, because no
passenger learns its id.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final
from uuid import UUID, uuid4

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import records, refusals
from checkin_service.check_ins import cancel_reasons, completion, declared_bags
from checkin_service.check_ins.declared_bags import Bags
from checkin_service.check_ins.fares import Fare
from checkin_service.peers import Peers, Withdrawal
from checkin_service.records import CheckIn
from checkin_service.steps.seating import Seating
from services import db, telemetry
from services.clients import PeerFault, PeerRefusal
from services.db import Conn, GuardMissed, Pool
from services.errors import Refusal, Unavailable
from services.idempotency import RequestKey
from services.transitions import Transitions

# After this number of conflicts in a row, the caller gets UNAVAILABLE and has to retry.
ATTEMPTS: Final = 3
DECLARED_AGAIN: Final = "DECLARED_AGAIN"

_log = telemetry.log("baggage")


@dataclass(frozen=True, slots=True)
class Declaration:
    """A request to declare bags.

    `pnr` limits the caller to check-ins of that locator; None means all.
    """

    checkin_id: UUID
    declared_grams: Sequence[int]
    pnr: str | None
    actor: str
    request_key: RequestKey | None


class Superseded(Exception):
    """Raised if the check-in changed while the other services were asked.

    The declaration is then evaluated again.
    """


class SeatDisputed(Superseded):
    """Raised if the seat may belong to another passenger.

    The seat service is then asked whose seat it is, before the check-in can complete.
    """


class Baggage:
    """Executes baggage declarations. `patience` is how long a fee may stay unpaid."""

    def __init__(
        self,
        pool: Pool,
        peers: Peers,
        seating: Seating,
        transitions: Transitions,
        *,
        fares: Mapping[str, Fare],
        patience: timedelta,
    ) -> None:
        self._pool = pool
        self._peers = peers
        self._seating = seating
        self._transitions = transitions
        self._fares = fares
        self._patience = patience

    async def declare(self, declaration: Declaration) -> pb.CheckIn:
        """Declares the bags of a check-in; without a fee this completes the check-in.

        INITIATED or WAITING_FOR_PAYMENT → COMPLETED without a fee, else → WAITING_FOR_PAYMENT. Raises the errors of
        DeclareBaggage, and Unavailable after ATTEMPTS conflicts.
        """
        for _ in range(ATTEMPTS):
            try:
                return await self._attempt(declaration)
            except SeatDisputed:
                # A check-in that changed meanwhile is evaluated again, as after Superseded.
                with contextlib.suppress(GuardMissed):
                    await self._seating.correct_conflicts(declaration.checkin_id)
            except Superseded:
                continue
        raise Unavailable("another request is changing this check-in; retry")

    async def _attempt(self, declaration: Declaration) -> pb.CheckIn:
        try:
            async with db.transaction(self._pool) as conn:
                standing, fare = await _check_declarable(conn, declaration)
        except Refusal:
            # The first attempt of this same request may have caused the refusal; its response is then returned.
            known = await self._transitions.known(declaration.request_key, pb.CheckIn)
            if known is None:
                raise
            return known
        # Read after the check-in: if a concurrent request with the same key has committed, `standing` names the intent
        # of that request, which must not be cancelled as a former intent.
        known = await self._transitions.known(declaration.request_key, pb.CheckIn)
        if known is not None:
            return known
        bags = await self._weigh(declaration, self._fares[fare])
        if not bags.fee_cents:
            await self._correct_seat(standing)
        intent_id = await self._create_intent(standing, bags) if bags.fee_cents else None
        try:
            if standing.payment_intent_id is not None:
                await self._withdraw(standing.payment_intent_id)
            answer = await self._transitions.run(
                declaration.request_key, pb.CheckIn, partial(self._write, declaration, standing, bags, intent_id)
            )
        except (Superseded, Refusal) as error:
            # Unavailable may be raised after the commit; then the check-in names the intent, which must stay payable.
            if intent_id is not None and not isinstance(error, Unavailable):
                await self._abandon(intent_id)
            raise
        if intent_id is not None and answer.payment_intent_id != str(intent_id):
            # A concurrent request with the same key committed first. Its response is returned; this intent is not used.
            await self._abandon(intent_id)
        return answer

    async def _correct_seat(self, standing: CheckIn) -> None:
        """Asks the seat service whose seat it is, and corrects the check-in.

        Needed because this declaration completes the check-in. Raises Superseded if the check-in changes meanwhile.
        """
        try:
            await self._seating.correct(standing.checkin_id)
        except GuardMissed as error:
            raise Superseded from error

    async def _weigh(self, declaration: Declaration, fare: Fare) -> Bags:
        weights = await self._peers.weigh(declaration.checkin_id, declaration.declared_grams)
        verdict = fare.assess(weights)
        if verdict.too_heavy_index is not None:
            n = verdict.too_heavy_index
            raise refusals.bag_too_heavy(n, weights[n], fare.piece_limit_grams)
        return Bags(
            weights_grams=weights,
            allowance_grams=fare.allowance_grams,
            excess_grams=verdict.excess_grams,
            fee_cents=verdict.fee_minor_units,
            fee_currency=fare.currency,
        )

    async def _create_intent(self, standing: CheckIn, bags: Bags) -> UUID:
        # Each attempt has its own reference. If only this call is repeated, the payment service returns the same
        # intent.
        return await self._peers.create_intent(
            f"checkin/{standing.checkin_id}/{uuid4()}",
            pnr=standing.pnr,
            cents=bags.fee_cents,
            currency=bags.fee_currency,
        )

    async def _withdraw(self, intent_id: UUID) -> None:
        match await self._peers.withdraw_intent(intent_id, reason=DECLARED_AGAIN):
            case Withdrawal.RUNNING:
                raise refusals.payment_in_progress()
            case Withdrawal.PAID:
                raise refusals.fee_paid()

    async def _abandon(self, intent_id: UUID) -> None:
        try:
            await self._peers.withdraw_intent(intent_id, reason=DECLARED_AGAIN)
        except (Unavailable, PeerRefusal, PeerFault) as error:
            _log.info(
                "payment intent not cancelled; no check-in uses it, so it stays unpaid",
                intent_id=str(intent_id),
                error=repr(error),
            )

    async def _write(
        self, declaration: Declaration, standing: CheckIn, bags: Bags, intent_id: UUID | None, conn: Conn
    ) -> pb.CheckIn:
        if intent_id is not None:
            done = await declared_bags.wait_for_payment(
                conn, standing, bags, intent_id=intent_id, patience=self._patience, actor=declaration.actor
            )
        else:
            done = await declared_bags.validate_baggage(conn, standing, bags, actor=declaration.actor)
            if done and not await completion.complete(conn, standing.checkin_id, actor=declaration.actor):
                raise SeatDisputed
        if not done:
            raise Superseded
        return (await records.find(conn, standing.checkin_id)).message()


async def _check_declarable(conn: Conn, declaration: Declaration) -> tuple[CheckIn, str]:
    """Returns the check-in and the passenger's fare code if bags can be declared.

    Raises the first of these that applies: CHECK_IN_NOT_FOUND, CHECK_IN_CANCELLED, CHECK_IN_COMPLETED, FEE_PAID,
    CHECK_IN_CLOSED, SEAT_REQUIRED.
    """
    standing = await records.find(conn, declaration.checkin_id, pnr=declaration.pnr)
    if standing.state == "CANCELLED":
        raise refusals.check_in_cancelled(standing.cancel_reason or "")
    if standing.state == "COMPLETED":
        raise refusals.check_in_completed()
    if standing.fee_pay_time is not None:
        raise refusals.fee_paid()
    row = await conn.fetchrow(
        """
        SELECT fare, departure_time - closes_before AS close_time,
               statement_timestamp() >= departure_time - closes_before AS closed
        FROM passengers JOIN flights USING (flight_id) WHERE flight_id = $1 AND passenger_id = $2
        """,
        standing.flight_id,
        standing.passenger_id,
    )
    if row is None:
        # The transaction that removes a passenger from the manifest cancels the check-in.
        raise refusals.check_in_cancelled(cancel_reasons.BOOKING_CANCELLED)
    if row["closed"]:
        raise refusals.check_in_closed(row["close_time"])
    if standing.seat_number is None:
        raise refusals.seat_required()
    return standing, row["fare"]
