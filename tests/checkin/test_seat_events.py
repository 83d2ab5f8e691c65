"""After seat.confirmed or seat.released, check-in looks up the passenger's seat.

The content of the event does not count.
"""

from __future__ import annotations

import asyncio

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.seat.v1 import events_pb2 as seat_events

from tests.callers import refused
from tests.checkin.airport import Airport

Intent = payment_service_pb2.PaymentIntent


async def test_a_check_in_follows_the_passengers_new_seat(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start(seat_number="12A")
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.has_seat("14C")
    assert (await traveller.declare(10)).seat_number == "14C"


async def test_a_started_check_in_without_a_seat_waits(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    await traveller.lose_seat()
    await traveller.has_seat("")
    assert (await traveller.get()).state == pb.CheckIn.INITIATED
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.declare(10)
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.has_seat("14C")
    assert (await traveller.declare(10)).state == pb.CheckIn.COMPLETED


async def test_a_completed_check_in_without_a_seat_is_cancelled(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await traveller.lose_seat()
    cancelled = await traveller.becomes(pb.CheckIn.CANCELLED)
    assert (cancelled.cancel_reason, cancelled.history[-1].actor) == ("SEAT_RELEASED", "seat")
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]
    assert await airport.mails(traveller) == ["Your check-in was cancelled: SH101"]


async def test_a_seat_released_during_the_start_is_detected(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.seats.confirm(await traveller.hold())
    started, _ = await asyncio.gather(traveller.start(hold_id=""), traveller.lose_seat(), return_exceptions=True)
    if isinstance(started, pb.CheckIn):
        await traveller.has_seat("")


async def test_an_old_event_changes_nothing(airport: Airport) -> None:
    traveller = await airport.traveller()
    first = await traveller.hold("12A")
    await traveller.start(hold_id=first.hold_id)
    await traveller.seats.confirm(await traveller.hold("14C"))
    await traveller.has_seat("14C")
    await airport.at_rest(traveller)
    before = await airport.row(traveller)
    released = seat_events.SeatReleased(flight_id=airport.flight_id)
    released.seats.add(seat_number="12A", hold_id=first.hold_id, passenger_id="P1", reason="MOVED")
    confirmed = seat_events.SeatConfirmed(flight_id=airport.flight_id)
    confirmed.seats.add(seat_number="12A", hold_id=first.hold_id, passenger_id="P1")
    blocked = seat_events.SeatReleased(flight_id=airport.flight_id)
    blocked.seats.add(seat_number="30F", reason="UNBLOCKED")
    for routing_key, event in (
        ("seat.released.v1", released),
        ("seat.confirmed.v1", confirmed),
        ("seat.released.v1", blocked),
    ):
        await airport.tell(routing_key, event)
    await airport.at_rest(traveller)
    assert await airport.row(traveller) == before


async def test_an_infants_seat_ignores_seat_events(airport: Airport) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    await adult.completed()
    await infant.start(hold_id="")
    confirmed = seat_events.SeatConfirmed(flight_id=airport.flight_id)
    confirmed.seats.add(seat_number="12A", hold_id="5b0e0b4e-0000-4000-8000-000000000000", passenger_id="P2")
    await airport.tell("seat.confirmed.v1", confirmed)
    await airport.at_rest(infant)
    assert (await infant.get()).seat_number == "INF"
