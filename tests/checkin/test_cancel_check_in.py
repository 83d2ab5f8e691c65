"""CancelCheckIn before departure, from any state (CHK-9).

The seat is released; the fee is cancelled or refunded.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, outcomes
from tests.waiting import eventually

Intent = payment_service_pb2.PaymentIntent


async def test_a_cancelled_check_in_releases_its_seat(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start(seat_number="12A")
    cancelled = await traveller.cancel(reason="CHANGED_MIND")
    assert (cancelled.state, cancelled.cancel_reason, cancelled.seat_number) == (
        pb.CheckIn.CANCELLED,
        "CHANGED_MIND",
        "",
    )
    await airport.at_rest(traveller)
    assert await traveller.seat() == ""
    assert (await traveller.seats.states(airport.flight_id))["12A"] == "AVAILABLE"


async def test_the_reason_is_cancelled_by_default(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    assert (await traveller.cancel()).cancel_reason == "CANCELLED"


async def test_a_companion_of_the_same_hold_keeps_the_seat(airport: Airport) -> None:
    first, second = await airport.travellers("P1", "P2")
    family = airport.seats.passenger(f"P1:{airport.flight_id}", f"P2:{airport.flight_id}", pnr=first.pnr)
    hold = await family.hold_seats(
        *(
            seat_pb.SeatAssignment(flight_id=airport.flight_id, seat_number=number, passenger_id=passenger_id)
            for number, passenger_id in (("10A", "P1"), ("10B", "P2"))
        )
    )
    for each in (first, second):
        await each.start(hold_id=hold.hold_id)
    await first.cancel()
    await airport.at_rest(first)
    assert (await first.seat(), await second.seat()) == ("", "10B")
    assert (await second.declare(10)).state == pb.CheckIn.COMPLETED


async def test_the_unpaid_intent_is_cancelled(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    await traveller.cancel()
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]
    assert not airport.payments.begin(waiting.payment_intent_id)


async def test_a_paid_fee_is_refunded(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await traveller.cancel()
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert await traveller.seat() == ""


async def test_a_payment_in_progress_is_refunded_after_success(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    await traveller.cancel()
    await airport.tell("payment.succeeded.v1", airport.payments.succeed(waiting.payment_intent_id))
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert (await airport.row(traveller)).fee_pay_time is not None


async def test_a_payment_in_progress_cannot_be_retried_after_failure(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    await traveller.cancel()
    await airport.tell("payment.failed.v1", airport.payments.fail(waiting.payment_intent_id))
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]


async def test_the_steps_are_retried_while_a_service_is_down(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    airport.payments.away = True
    assert (await traveller.cancel()).state == pb.CheckIn.CANCELLED

    async def tried() -> bool:
        return airport.payments.calls.count("CancelPaymentIntent") >= 3

    await eventually(tried)
    airport.payments.away = False
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]


async def test_the_event_is_published_once(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    await traveller.cancel(reason="ILL")
    (completed,) = await airport.told(traveller, "checkin.completed.v1", events_pb2.CheckInCompleted)
    (cancelled,) = await airport.told(traveller, "checkin.cancelled.v1", events_pb2.CheckInCancelled)
    assert (completed.passenger_id, completed.sequence_number) == ("P1", 1)
    assert (cancelled.passenger_id, cancelled.reason) == ("P1", "ILL")
    assert cancelled.cancel_time.ToDatetime() > completed.complete_time.ToDatetime()


async def test_the_infants_check_in_is_cancelled_too(airport: Airport) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    await adult.completed(10)
    await infant.start(hold_id="")
    await infant.declare(30)
    await adult.cancel(reason="ILL")
    found = await infant.get()
    assert (found.state, found.cancel_reason) == (pb.CheckIn.CANCELLED, "ILL")
    await airport.at_rest(infant)
    assert [each.state for each in airport.payments.of(infant.checkin_id)] == [Intent.CANCELLED]


async def test_adult_cancelled_and_infant_started_leave_no_lone_infant(airport: Airport) -> None:
    for n in range(4):
        adult = await airport.traveller(f"A{n}")
        infant = await airport.traveller(f"I{n}", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id=f"A{n}")
        await adult.completed(10)
        results = await asyncio.gather(adult.cancel(), infant.start(hold_id=""), return_exceptions=True)
        assert outcomes(results[:1]) == {"OK": 1}
        assert infant.checkin_id == "" or (await infant.get()).state == pb.CheckIn.CANCELLED


async def test_a_repeat_changes_nothing(airport: Airport, request_id: str) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    first = await traveller.cancel(reason="ILL", request_id=request_id)
    before = await airport.row(traveller)
    assert await traveller.cancel(reason="ILL", request_id=request_id) == first
    assert await traveller.cancel(reason="AGAIN") == first
    assert await airport.row(traveller) == before


async def test_concurrent_cancellations_cancel_once(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    results = await asyncio.gather(*(traveller.cancel() for _ in range(10)), return_exceptions=True)
    assert outcomes(results) == {"OK": 10}
    assert len((await traveller.get()).history) == 4


async def test_it_can_be_cancelled_until_departure(airport: Airport) -> None:
    first, second = await airport.travellers("P1", "P2")
    await first.start()
    await second.start()
    await airport.set_flight(departs_in_seconds=HOUR / 2)
    assert (await first.cancel()).state == pb.CheckIn.CANCELLED
    await airport.set_flight(departs_in_seconds=-1)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED") as refusal:
        await second.cancel()
    assert set(refusal.info.metadata) == {"departure_time"}
    assert (await first.cancel()).state == pb.CheckIn.CANCELLED


async def test_a_just_moved_passengers_seat_is_released(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start(seat_number="12A")
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.cancel()
    await airport.at_rest(traveller)
    assert await traveller.seat() == ""


async def test_a_foreign_check_in_is_not_cancelled(airport: Airport) -> None:
    traveller, stranger = await airport.traveller("P1"), await airport.traveller("P2")
    await traveller.start()
    stranger.checkin_id = traveller.checkin_id
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as foreign:
        await stranger.cancel()
    stranger.checkin_id = str(uuid4())
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as missing:
        await stranger.cancel()
    assert foreign.status == missing.status
    assert (await traveller.get()).state == pb.CheckIn.INITIATED


@pytest.mark.parametrize("reason", ["x" * 121, "\n"])
async def test_a_malformed_reason_is_refused(airport: Airport, reason: str) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await traveller.cancel(reason=reason)
    assert refusal.fields == ["reason"]
    assert (await traveller.get()).state == pb.CheckIn.INITIATED
