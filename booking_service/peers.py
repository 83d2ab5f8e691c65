"""Calls to the flight, seat, payment and check-in services."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import Final
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.flight.v1.flight_service_pb2_grpc import FlightServiceStub
from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceStub
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from booking_service import refusals
from booking_service.bookings import Hold
from booking_service.locators import LocatorTaken
from booking_service.records import Booking, Leg, SeatOf
from booking_service.settings import BookingSettings
from services.clients import PeerRefusal, ask, channel
from services.money import Amount, amount_of, money_of
from services.time_limits import FACTOR
from services.tokens import OwnToken

# A booking makes three or four calls, and must respond within 5 s however slow the other services are.
TIMEOUT_SECONDS: Final = 1.4 * FACTOR


@dataclass(frozen=True, slots=True)
class Journey:
    """The flights to book, with the fare of one adult in the requested cabin."""

    legs: Sequence[Leg]
    currency: str


class Peers:
    """Calls to the other services.

    All raise Unavailable if the service is down. All raise PeerRefusal for the reasons that their docstrings do not
    name.
    """

    def __init__(self, settings: BookingSettings) -> None:
        token = OwnToken(settings.token_file)
        peer = partial(channel, identity=settings.identity, timeout_seconds=TIMEOUT_SECONDS)
        # Reading the schedule needs no token.
        flights = peer(settings.flight_address, service="skyhigh.flight.v1.FlightService")
        seats = peer(settings.seat_address, service="skyhigh.seat.v1.SeatService", token=token)
        payments = peer(settings.payment_address, service="skyhigh.payment.v1.PaymentService", token=token)
        checkin_desk = peer(settings.checkin_address, service="skyhigh.checkin.v1.CheckInService", token=token)
        self._channels = (flights, seats, payments, checkin_desk)
        self._flights = FlightServiceStub(flights)
        self._seats = SeatServiceStub(seats)
        self._payments = PaymentServiceStub(payments)
        self._checkin = CheckInServiceStub(checkin_desk)

    async def close(self) -> None:
        """Closes the channels."""
        await asyncio.gather(*(each.close() for each in self._channels))

    async def flight(self, flight_id: str, *, cabin: str) -> Journey:
        """Returns the journey of one flight.

        Raises FLIGHT_NOT_FOUND, FLIGHT_CANCELLED or SEATS_UNAVAILABLE.
        """
        # The flight service refuses a malformed id as INVALID_FIELD; no flight can have that id.
        missing = dict.fromkeys(("FLIGHT_NOT_FOUND", "INVALID_FIELD"), lambda _: refusals.flight_not_found(flight_id))
        found = await ask(self._flights.GetFlight(flight.GetFlightRequest(flight_id=flight_id)), missing)
        return _journey([found], cabin)

    async def itinerary(self, itinerary_id: str, *, cabin: str) -> Journey:
        """Returns the journey of an itinerary.

        Raises ITINERARY_NOT_FOUND, FLIGHT_CANCELLED or SEATS_UNAVAILABLE.
        """
        request = flight.GetItineraryRequest(itinerary_id=itinerary_id, cabin=flight.Cabin.Value(cabin))
        missing = dict.fromkeys(
            ("ITINERARY_NOT_FOUND", "FLIGHT_NOT_FOUND", "INVALID_FIELD"), lambda _: refusals.itinerary_not_found()
        )
        found = await ask(self._flights.GetItinerary(request), missing)
        return _journey(list(found.flights), cabin)

    async def suggestions(
        self,
        flight_id: str,
        *,
        party_size: int,
        children: int,
        infants: int,
        cabin: str,
        excluded: Collection[str],
    ) -> list[list[str]]:
        """Returns the best free seats for a party, the best suggestion first.

        Each suggestion lists the adults' seats before the children's. The list is empty if the flight has no room.
        """
        answer = await ask(
            self._seats.SuggestSeats(
                seat.SuggestSeatsRequest(
                    flight_id=flight_id,
                    party_size=party_size,
                    children=children,
                    infants=infants,
                    cabin=seat.Seat.Cabin.Value(cabin),
                    excluded_seats=sorted(excluded),
                )
            )
        )
        return [list(each.seat_numbers) for each in answer.suggestions]

    async def hold(self, booking: Booking, seats: Sequence[SeatOf], *, owner: str, request_id: UUID) -> Hold:
        """Holds seats on all flights or on none. A repeat returns the same hold.

        Only the booking service can confirm the hold.
        """
        answer = await ask(
            self._seats.HoldSeats(
                seat.HoldSeatsRequest(
                    seats=_assignments(booking, seats),
                    purpose=seat.Hold.BOOKING,
                    owner=owner,
                    managed=True,
                    request_id=str(request_id),
                )
            )
        )
        return _hold(answer, seats)

    async def change(self, booking: Booking, seats: Sequence[SeatOf], *, request_id: UUID) -> Hold:
        """Replaces all seats of the booking's hold, which gets its full time again.

        A repeat changes nothing.
        """
        answer = await ask(
            self._seats.ChangeHoldSeats(
                seat.ChangeHoldSeatsRequest(
                    hold_id=str(booking.hold_id), seats=_assignments(booking, seats), request_id=str(request_id)
                )
            )
        )
        return _hold(answer, seats)

    async def extend(self, booking: Booking, *, request_id: UUID) -> Hold:
        """Extends the booking's hold to its full time. A repeat changes nothing."""
        request = seat.ExtendHoldRequest(hold_id=str(booking.hold_id), request_id=str(request_id))
        return _hold(await ask(self._seats.ExtendHold(request)), booking.seats)

    async def confirm(self, hold_id: UUID, seats: Sequence[SeatOf]) -> Hold:
        """Confirms a hold. A repeat succeeds."""
        return _hold(await ask(self._seats.ConfirmHold(seat.ConfirmHoldRequest(hold_id=str(hold_id)))), seats)

    async def find_hold(self, booking: Booking) -> Hold:
        """Returns the booking's hold: HELD, CONFIRMED, CANCELLED or EXPIRED."""
        return _hold(await ask(self._seats.GetHold(seat.GetHoldRequest(hold_id=str(booking.hold_id)))), booking.seats)

    async def cancel_hold(self, hold_id: UUID, *, reason: str) -> None:
        """Cancels a hold. A repeat succeeds, also after the hold has lapsed."""
        try:
            # The decision was made in time, even if this call comes after the departure.
            request = seat.CancelHoldRequest(hold_id=str(hold_id), reason=reason, after_departure=True)
            await ask(self._seats.CancelHold(request))
        except PeerRefusal as refusal:
            if refusal.reason not in ("HOLD_EXPIRED", "HOLD_NOT_FOUND"):
                raise

    async def confirmed_seats(self, booking: Booking) -> list[SeatOf]:
        """Returns the passengers' confirmed seats on the flights that are not cancelled."""
        return [
            SeatOf(found.flight_id, found.passenger_id, found.seat_number)
            for found in await self._seats_of(booking, booking.live_legs)
            if found.state == seat.Seat.CONFIRMED
        ]

    async def _seats_of(
        self, booking: Booking, legs: Sequence[Leg]
    ) -> Sequence[seat.FindPassengerSeatsResponse.PassengerSeat]:
        request = seat.FindPassengerSeatsRequest()
        for leg in legs:
            for traveller in booking.seated:
                request.passengers.add(flight_id=leg.flight_id, passenger_id=traveller.passenger_id)
        return (await ask(self._seats.FindPassengerSeats(request))).seats if request.passengers else ()

    async def release_passengers(self, booking: Booking, legs: Sequence[Leg], *, reason: str) -> None:
        """Releases the passengers' seats on these flights, whichever hold has them."""
        for found in await self._seats_of(booking, legs):
            release = seat.ReleasePassengerSeatRequest(
                hold_id=found.hold_id,
                flight_id=found.flight_id,
                passenger_id=found.passenger_id,
                reason=reason,
                after_departure=True,
            )
            await ask(self._seats.ReleasePassengerSeat(release))

    async def intent(self, booking: Booking) -> payment.PaymentIntent:
        """Creates the booking's payment intent, which its owner can pay.

        A repeat returns the same intent.
        """
        return await ask(
            self._payments.CreatePaymentIntent(
                payment.CreatePaymentIntentRequest(
                    reference=f"booking/{booking.booking_id}", amount=money_of(booking.total), owner=booking.owner
                )
            )
        )

    async def reserve_locator(self, booking_id: UUID, pnr: str) -> None:
        """Reserves a locator for a booking. A repeat succeeds.

        Raises LocatorTaken.
        """
        request = checkin.ReserveLocatorRequest(pnr=pnr, booking_id=str(booking_id))
        await ask(self._checkin.ReserveLocator(request), {"LOCATOR_TAKEN": lambda _: LocatorTaken()})

    async def submit(self, intent_id: UUID, *, payment_code: str, request_id: UUID) -> None:
        """Submits the payment code of an intent.

        A repeat changes nothing, and neither does a call for an intent that is paid or being paid.
        """
        request = payment.SubmitPaymentCodeRequest(
            intent_id=str(intent_id), payment_code=payment_code, request_id=str(request_id)
        )
        try:
            await ask(self._payments.SubmitPaymentCode(request))
        except PeerRefusal as refusal:
            if refusal.reason not in ("PAYMENT_IN_PROGRESS", "INTENT_PAID"):
                raise

    async def payment(self, intent_id: UUID) -> payment.PaymentIntent:
        """Returns the present state of an intent."""
        return await ask(self._payments.GetPaymentIntent(payment.GetPaymentIntentRequest(intent_id=str(intent_id))))

    async def refund(self, intent_id: UUID, *, reason: str, total: Amount) -> None:
        """Refunds a paid intent until `total` is refunded, earlier refunds included.

        A repeat succeeds.
        """
        await ask(
            self._payments.RefundPayment(
                payment.RefundPaymentRequest(intent_id=str(intent_id), reason=reason, total_refund=money_of(total))
            )
        )


def _journey(flights: Sequence[flight.Flight], cabin: str) -> Journey:
    prices = []
    for each in flights:
        if each.status == flight.Flight.CANCELLED:
            raise refusals.flight_cancelled(each.flight_id)
        fare = next((fare for fare in each.cabins if flight.Cabin.Name(fare.cabin) == cabin), None)
        if fare is None:
            raise refusals.of_seats("SEATS_UNAVAILABLE", {"flight_id": each.flight_id})
        prices.append(amount_of(fare.price))
    legs = [_leg(each, price.minor_units) for each, price in zip(flights, prices, strict=True)]
    return Journey(legs, prices[0].currency)


def _leg(one: flight.Flight, price_minor_units: int) -> Leg:
    return Leg(
        flight_id=one.flight_id,
        flight_number=one.flight_number,
        origin=one.origin,
        destination=one.destination,
        departure_time=one.departure_time.ToDatetime(UTC),
        arrival_time=one.arrival_time.ToDatetime(UTC),
        departure_date=one.departure_date,
        check_in_opens_before=one.check_in_opens_before.ToTimedelta(),
        check_in_closes_before=one.check_in_closes_before.ToTimedelta(),
        boarding_before=one.boarding_before.ToTimedelta(),
        gate=one.gate,
        price_minor_units=price_minor_units,
    )


def _assignments(booking: Booking, seats: Sequence[SeatOf]) -> list[seat.SeatAssignment]:
    """Returns the seats with what the seat rules need to know of the passengers."""
    types = {traveller.passenger_id: traveller.type for traveller in booking.travellers}
    return [
        seat.SeatAssignment(
            flight_id=each.flight_id,
            seat_number=each.seat_number,
            passenger_id=each.passenger_id,
            profile=seat.PassengerProfile(
                type=seat.PassengerProfile.Type.Value(types[each.passenger_id]),
                special_services=booking.needs(each.passenger_id),
                cabin=seat.Seat.Cabin.Value(booking.cabin),
            ),
        )
        for each in seats
    ]


def _hold(answer: seat.Hold, asked: Sequence[SeatOf]) -> Hold:
    named = {(each.flight_id, each.seat_number) for each in asked if each.named}
    return Hold(
        hold_id=UUID(answer.hold_id),
        state=seat.Hold.State.Name(answer.state),
        expire_time=answer.expire_time.ToDatetime(UTC),
        seats=[
            SeatOf(
                flight_id=each.flight_id,
                passenger_id=each.passenger_id,
                seat_number=each.seat_number,
                named=(each.flight_id, each.seat_number) in named,
            )
            for each in answer.seats
        ],
    )
