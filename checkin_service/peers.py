"""Calls to other services, and the meaning of their errors for check-in."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from functools import partial
from typing import Any, Final
from uuid import UUID

from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub
from skyhigh.weight.v1 import weight_service_pb2 as weight
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceStub

from checkin_service import refusals
from checkin_service.settings import CheckInSettings
from services.clients import Meanings, PeerRefusal, ask, channel
from services.errors import Refusal, Unauthenticated, Unavailable
from services.money import Amount, money_of
from services.running_call import running
from services.time_limits import FACTOR
from services.tokens import OwnToken

# A declaration normally makes at most three calls, and has to respond within five seconds whatever the other services
# do.
TIMEOUT_SECONDS: Final = 1.4 * FACTOR
PASSENGERS_PER_CALL: Final = 200

# A passenger of a flight: (flight_id, passenger_id).
Place = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Seat:
    """A passenger's seat by the seat service.

    `confirm_time` is None while the seat is only held.
    """

    seat_number: str
    hold_id: UUID
    confirm_time: datetime | None


class Withdrawal(Enum):
    """The result of an attempt to cancel a payment intent."""

    WITHDRAWN = auto()
    """The intent can't be paid any more, or its payment is being refunded."""
    RUNNING = auto()
    """A payment attempt is running; its outcome decides."""
    PAID = auto()
    """The intent is paid; its event has arrived or will arrive."""


class Peers:
    """Calls to the seat service, the payment service and the scales.

    Every call raises Unavailable if the service is down or does not respond in time.
    """

    def __init__(self, settings: CheckInSettings) -> None:
        token = OwnToken(settings.token_file)
        seat_service, payment_service = "skyhigh.seat.v1.SeatService", "skyhigh.payment.v1.PaymentService"
        peer = partial(channel, identity=settings.identity, timeout_seconds=TIMEOUT_SECONDS)
        ours = peer(settings.seat_address, service=seat_service, token=token)
        callers = peer(settings.seat_address, service=seat_service)
        payments = peer(settings.payment_address, service=payment_service, token=token)
        # The scales belong to another operator: they get neither our token nor our certificate.
        scales = channel(
            settings.weight_address, service="skyhigh.weight.v1.WeightService", timeout_seconds=TIMEOUT_SECONDS
        )
        self._channels = (ours, callers, payments, scales)
        self._seats = SeatServiceStub(ours)
        self._seats_as_caller = SeatServiceStub(callers)
        self._payments = PaymentServiceStub(payments)
        self._scales = WeightServiceStub(scales)

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(each.close() for each in self._channels))

    async def seats_of(
        self, passengers: Sequence[Place], *, timeout_seconds: float = TIMEOUT_SECONDS
    ) -> Mapping[Place, list[Seat]]:
        """Returns the seats of passengers: at most one held and one confirmed for each."""
        found: dict[Place, list[Seat]] = {place: [] for place in passengers}
        for first in range(0, len(passengers), PASSENGERS_PER_CALL):
            request = seat.FindPassengerSeatsRequest()
            for flight_id, passenger_id in passengers[first : first + PASSENGERS_PER_CALL]:
                request.passengers.add(flight_id=flight_id, passenger_id=passenger_id)
            answer = await ask(self._seats.FindPassengerSeats(request, timeout=timeout_seconds))
            for each in answer.seats:
                confirm_time = each.confirm_time.ToDatetime(UTC) if each.state == seat.Seat.CONFIRMED else None
                found[(each.flight_id, each.passenger_id)].append(
                    Seat(each.seat_number, UUID(each.hold_id), confirm_time)
                )
        return found

    async def confirmed_seat(self, flight_id: str, passenger_id: str) -> Seat | None:
        """Returns the passenger's confirmed seat, or None."""
        seats = (await self.seats_of([(flight_id, passenger_id)]))[(flight_id, passenger_id)]
        return next((each for each in seats if each.confirm_time is not None), None)

    async def sync_passengers(self, request: seat.SyncPassengersRequest) -> tuple[Mapping[Place, Seat], set[Place]]:
        """Updates the seat service's copy of the manifests.

        Returns the seats that passengers lost by the update, and the passengers who have to be sent again.
        """
        answer = await ask(self._seats.SyncPassengers(request, timeout=TIMEOUT_SECONDS))
        freed = {
            (each.flight_id, each.passenger_id): Seat(
                each.seat_number,
                UUID(each.hold_id),
                each.confirm_time.ToDatetime(UTC) if each.state == seat.Seat.CONFIRMED else None,
            )
            for each in answer.freed_seats
        }
        return freed, {(each.flight_id, each.passenger_id) for each in answer.undecided}

    async def confirm_hold(self, hold_id: UUID, flight_id: str, passenger_id: str) -> tuple[Seat, bool]:
        """Confirms the seat of the caller's hold for the passenger.

        Returns the seat, and whether it was unconfirmed before. A repeat succeeds. Raises HOLD_NOT_FOUND, HOLD_EXPIRED,
        HOLD_CANCELLED, HOLD_MISMATCH, FLIGHT_CANCELLED, FLIGHT_DEPARTED, PASSENGER_NOT_FOUND, or SEAT_REQUIRED for a
        seat that no longer fits. Then no seat was confirmed, with one exception: HOLD_MISMATCH if the owner changed the
        hold at the same time and left the passenger out.
        """
        seats = (await self.seats_of([(flight_id, passenger_id)]))[(flight_id, passenger_id)]
        meant = next((each for each in seats if each.hold_id == hold_id), None)
        named, as_caller = str(hold_id), _as_caller()
        if meant is None:
            look = self._seats_as_caller.GetHold(seat.GetHoldRequest(hold_id=named), **as_caller)
            raise _unusable((await ask(look, _OF_HOLDS)).state)
        if meant.confirm_time is None:
            confirm = self._seats_as_caller.ConfirmHold(seat.ConfirmHoldRequest(hold_id=named), **as_caller)
            confirmed = await ask(confirm, _OF_HOLDS)
            # The owner may have changed the hold's seats since they were read.
            for each in confirmed.seats:
                if (each.flight_id, each.passenger_id) == (flight_id, passenger_id):
                    return replace(meant, seat_number=each.seat_number), True
            raise refusals.hold_mismatch()
        return meant, False

    async def release_seat(self, flight_id: str, passenger_id: str, hold_id: UUID, *, reason: str) -> None:
        """Releases the passenger's seat of this hold, and no other. A repeat succeeds."""
        try:
            await ask(
                self._seats.ReleasePassengerSeat(
                    seat.ReleasePassengerSeatRequest(
                        hold_id=str(hold_id), flight_id=flight_id, passenger_id=passenger_id, reason=reason
                    ),
                    timeout=TIMEOUT_SECONDS,
                )
            )
        except PeerRefusal as refusal:
            if refusal.reason != "HOLD_NOT_FOUND":
                raise

    async def weigh(self, checkin_id: UUID, declared_grams: Collection[int]) -> list[int]:
        """Returns the measured weight of each bag, in grams.

        Raises Unavailable if the scales' response makes no sense.
        """
        if not declared_grams:
            return []
        answer = await ask(
            self._scales.WeighBags(
                weight.WeighBagsRequest(reference=f"checkin/{checkin_id}", declared_grams=declared_grams),
                timeout=TIMEOUT_SECONDS,
            )
        )
        measured = list(answer.measured_grams)
        if len(measured) != len(declared_grams) or any(grams <= 0 for grams in measured):
            raise Unavailable("the scales returned an invalid weight; retry")
        return measured

    async def create_intent(self, reference: str, *, pnr: str, cents: int, currency: str) -> UUID:
        """Creates a payment intent that the locator's passengers can pay.

        A repeat with the same reference returns the same intent. `cents` is in minor units of the currency.
        """
        intent = await ask(
            self._payments.CreatePaymentIntent(
                payment.CreatePaymentIntentRequest(
                    reference=reference, amount=money_of(Amount(currency, cents)), owner=f"passenger:{pnr}"
                ),
                timeout=TIMEOUT_SECONDS,
            )
        )
        return UUID(intent.intent_id)

    async def intent(self, intent_id: UUID) -> payment.PaymentIntent:
        """Returns the current state of an intent."""
        request = payment.GetPaymentIntentRequest(intent_id=str(intent_id))
        return await ask(self._payments.GetPaymentIntent(request, timeout=TIMEOUT_SECONDS))

    async def withdraw_intent(self, intent_id: UUID, *, reason: str) -> Withdrawal:
        """Cancels an intent unless it is paid or being paid. A repeat succeeds."""
        try:
            await ask(
                self._payments.CancelPaymentIntent(
                    payment.CancelPaymentIntentRequest(intent_id=str(intent_id), reason=reason),
                    timeout=TIMEOUT_SECONDS,
                )
            )
        except PeerRefusal as refusal:
            match refusal.reason:
                case "PAYMENT_IN_PROGRESS":
                    return Withdrawal.RUNNING
                case "INTENT_PAID":
                    given_back = refusal.metadata.get("state") in ("REFUNDING", "REFUNDED")
                    return Withdrawal.WITHDRAWN if given_back else Withdrawal.PAID
            raise
        return Withdrawal.WITHDRAWN

    async def refund(self, intent_id: UUID, *, reason: str) -> None:
        """Refunds a paid intent in full. A repeat succeeds."""
        request = payment.RefundPaymentRequest(intent_id=str(intent_id), reason=reason)
        await ask(self._payments.RefundPayment(request))


def _as_caller() -> Any:
    """Returns call arguments with the caller's own token.

    So the seat service alone decides whether the hold is the caller's.
    """
    token = running().header("authorization") or ""
    return {"metadata": (("authorization", token),), "timeout": TIMEOUT_SECONDS}


def _unusable(state: seat.Hold.State.ValueType) -> Refusal:
    match state:
        case seat.Hold.EXPIRED:
            return refusals.hold_expired()
        case seat.Hold.CANCELLED:
            return refusals.hold_cancelled()
    return refusals.hold_mismatch()


_OF_HOLDS: Final[Meanings] = {
    # The caller's token ended between our check and the seat service's, or the two clocks differ.
    "UNAUTHENTICATED": lambda _: Unauthenticated(),
    "HOLD_NOT_FOUND": lambda _: refusals.hold_not_found(),
    "HOLD_EXPIRED": lambda _: refusals.hold_expired(),
    "HOLD_CANCELLED": lambda _: refusals.hold_cancelled(),
    # A booking manages this hold, so check-in confirms it for no caller.
    "HOLD_MANAGED": lambda _: refusals.hold_not_found(),
    "FLIGHT_CANCELLED": lambda refusal: refusals.flight_cancelled(refusal.metadata["flight_id"]),
    "FLIGHT_DEPARTED": lambda refusal: refusals.flight_departed(
        refusal.metadata["flight_id"], datetime.fromisoformat(refusal.metadata["departure_time"])
    ),
    # The passenger is not on the manifest, or not any more.
    "PASSENGER_NOT_FOUND": lambda _: refusals.passenger_not_found(),
    "PASSENGER_NOT_ENTITLED": lambda _: refusals.passenger_not_found(),
    "LAP_INFANT_HAS_NO_SEAT": lambda _: refusals.hold_mismatch(),
    # The passenger's cabin or needs changed after the seat was held.
    "CABIN_NOT_ALLOWED": lambda _: refusals.seat_required(),
    "EXIT_ROW_NOT_ALLOWED": lambda _: refusals.seat_required(),
    "INFANT_NOT_ALLOWED": lambda _: refusals.seat_required(),
}
