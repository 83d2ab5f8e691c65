"""After departure nothing cancels a check-in (CHK-9).

Money for a check-in that was not completed is refunded.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.flight.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2
from skyhigh.seat.v1 import events_pb2 as seat_events
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from checkin_service.check_ins import completion, timer_names
from services import db
from services.timers import set_timer
from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, Traveller
from tests.checkin.parties import booked, party
from tests.instances import Database
from tests.waiting import eventually

Intent = payment_service_pb2.PaymentIntent


async def leaves(
    airport: Airport, database: Database, *, ago: timedelta = timedelta(seconds=1), told: bool = True
) -> None:
    """Makes the flight depart: its departure is `ago` by the database's clock.

    With told=False the seat service never learns of it, and still releases seats.
    """
    await database.execute(
        """
        UPDATE flights SET departure_time = now() - $2::interval, arrival_time = now() + interval '1 h',
                           known_times_revision = CASE WHEN $3 THEN known_times_revision ELSE times_revision + 1 END
        WHERE flight_id = $1
        """,
        airport.flight_id,
        ago,
        told,
    )


async def look(airport: Airport, traveller: Traveller) -> None:
    """Makes check-in look up the passenger's seat; waits until it has."""
    async with db.transaction(airport.pool) as conn:
        await set_timer(conn, timer_names.CHECK_SEAT, traveller.checkin_id)
    await airport.at_rest(traveller)


async def stays_completed(airport: Airport, traveller: Traveller) -> None:
    """Fails unless a check-in with a paid fee is still COMPLETED and paid."""
    await airport.at_rest(traveller)
    assert (await traveller.get()).state == pb.CheckIn.COMPLETED
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.SUCCEEDED]


async def test_a_released_seat_cancels_no_departed_check_in(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await leaves(airport, checkin_database, told=False)
    # Check-in learns in this way of every release, also of the passenger's own CancelHold.
    await traveller.lose_seat()
    await look(airport, traveller)
    await stays_completed(airport, traveller)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED"):
        await traveller.cancel()


async def test_a_hold_cancelled_before_departure_cancels_the_check_in(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await traveller.lose_seat()
    await look(airport, traveller)
    assert (await traveller.becomes(pb.CheckIn.CANCELLED)).cancel_reason == "SEAT_RELEASED"


async def test_a_cancelled_booking_keeps_departed_passengers(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    adult = its.traveller(airport, 0)
    await adult.completed(30)
    await leaves(airport, checkin_database)
    its.cancelled.cancel_time.GetCurrentTime()
    await airport.tell("booking.cancelled.v1", its.cancelled)
    await stays_completed(airport, adult)
    # A passenger who missed the flight stays on its manifest too.
    listed = "SELECT count(*) FROM passengers WHERE flight_id = $1"
    assert await checkin_database.fetchval(listed, airport.flight_id) == 3


async def test_late_event_of_a_cancelled_booking_cancels(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    adult = its.traveller(airport, 0)
    await adult.completed(30)
    its.cancelled.cancel_time.GetCurrentTime()
    its.cancelled.cancel_time.seconds -= 2 * HOUR
    await leaves(airport, checkin_database, ago=timedelta(hours=1))
    await airport.tell("booking.cancelled.v1", its.cancelled)
    assert (await adult.becomes(pb.CheckIn.CANCELLED)).cancel_reason == "BOOKING_CANCELLED"
    await airport.at_rest(adult)
    assert [each.state for each in airport.payments.of(adult.checkin_id)] == [Intent.REFUNDED]
    # The child of the booking never began a check-in.
    listed = "SELECT array_agg(passenger_id) FROM passengers WHERE flight_id = $1"
    left = await checkin_database.fetchval(listed, airport.flight_id) or []
    assert its.confirmed.passengers[2].passenger_id not in left


async def test_late_event_of_a_released_seat_cancels(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    done = await traveller.completed(30)
    hold_id = await checkin_database.fetchval(
        "SELECT hold_id FROM check_ins WHERE checkin_id = $1", UUID(traveller.checkin_id)
    )
    await traveller.lose_seat()
    await leaves(airport, checkin_database, ago=timedelta(hours=1))
    # Without the time of the release it could have been after the departure.
    await look(airport, traveller)
    await stays_completed(airport, traveller)
    event = seat_events.SeatReleased(flight_id=airport.flight_id)
    event.seats.add(
        seat_number=done.seat_number,
        state=seat_pb.Seat.AVAILABLE,
        hold_id=str(hold_id),
        passenger_id=traveller.passenger_id,
        reason="CHANGED_MIND",
    )
    event.release_time.GetCurrentTime()
    event.release_time.seconds -= 2 * HOUR
    await airport.tell("seat.released.v1", event)
    assert (await traveller.becomes(pb.CheckIn.CANCELLED)).cancel_reason == "SEAT_RELEASED"
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]


async def test_a_flight_cancelled_after_departure_cancels_nothing(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await leaves(airport, checkin_database)
    event = events_pb2.FlightCancelled(flight_id=airport.flight_id, reason="STRIKE")
    event.cancel_time.GetCurrentTime()
    await airport.tell("flight.cancelled.v1", event)
    await stays_completed(airport, traveller)


async def test_a_late_event_of_an_earlier_cancellation_applies(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    event = events_pb2.FlightCancelled(flight_id=airport.flight_id, reason="STRIKE")
    event.cancel_time.GetCurrentTime()
    event.cancel_time.seconds -= 2 * HOUR
    await leaves(airport, checkin_database, ago=timedelta(hours=1))
    await airport.tell("flight.cancelled.v1", event)
    await traveller.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(traveller)
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]


async def test_a_manifest_imported_after_departure_cancels_nothing(
    airport: Airport, checkin_database: Database
) -> None:
    traveller = await airport.traveller()
    await traveller.completed(30)
    await leaves(airport, checkin_database, told=False)
    await airport.imported(
        pb.ManifestPassenger(
            passenger_id="P1",
            pnr=traveller.pnr,
            given_name="Zoë",
            last_name="Müller",
            special_services=["WCHR"],
        )
    )
    await traveller.lose_seat()
    await look(airport, traveller)
    await stays_completed(airport, traveller)


async def test_a_fee_without_a_seat_is_refunded_at_departure(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    await traveller.lose_seat()
    await traveller.has_seat("")
    await traveller.pay()
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    await leaves(airport, checkin_database)

    async def refunded() -> bool:
        return [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]

    await eventually(refunded)
    await airport.at_rest(traveller)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert await airport.mails(traveller) == ["Your payment is refunded: SH101"]
    # If the departure moves into the future again, the refunded fee completes no check-in.
    await airport.set_flight()
    async with db.transaction(airport.pool) as conn:
        await conn.execute(
            "UPDATE check_ins SET seat_number = '30A', hold_id = checkin_id WHERE checkin_id = $1",
            UUID(traveller.checkin_id),
        )
        assert not await completion.complete(conn, UUID(traveller.checkin_id), actor="test")


async def test_a_payment_event_after_departure_is_refunded(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    airport.payments.begin(waiting.payment_intent_id)
    succeeded = airport.payments.succeed(waiting.payment_intent_id)
    await leaves(airport, checkin_database)
    await airport.tell("payment.succeeded.v1", succeeded)

    async def refunded() -> bool:
        return [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REFUNDED]

    await eventually(refunded)
    assert (await traveller.get()).state != pb.CheckIn.COMPLETED


async def test_an_unpaid_fee_ends_at_an_earlier_departure(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting()
    await leaves(airport, checkin_database)
    await traveller.becomes(pb.CheckIn.CANCELLED)
    await airport.at_rest(traveller)
    assert not airport.payments.begin(waiting.payment_intent_id)
    # A seat of a departed flight is not released, because no other passenger can use it.
    assert await traveller.seat() != ""


async def test_only_completed_check_ins_keep_fees_at_departure(airport: Airport, checkin_database: Database) -> None:
    travellers = await airport.travellers(*(f"P{n}" for n in range(6)))
    for each in travellers:
        await each.waiting()
    await asyncio.gather(*(each.pay() for each in travellers), leaves(airport, checkin_database))

    async def settled() -> bool:
        for each in travellers:
            completed = (await each.get()).state == pb.CheckIn.COMPLETED
            if airport.payments.money_kept(each.checkin_id) != completed:
                return False
        return True

    await eventually(settled)


async def test_cancel_hold_after_departure_changes_no_check_in(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    await traveller.start(hold_id=hold.hold_id)
    await traveller.declare(30)
    await traveller.pay()
    await traveller.becomes(pb.CheckIn.COMPLETED)
    await leaves(airport, checkin_database)

    async def left() -> bool:
        async with db.transaction(airport.pool) as conn:
            return bool(
                await conn.fetchval(
                    "SELECT known_times_revision = times_revision FROM flights WHERE flight_id = $1", airport.flight_id
                )
            )

    await eventually(left)
    with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED"):
        await traveller.seats.CancelHold(seat_pb.CancelHoldRequest(hold_id=hold.hold_id, reason="CHANGED_MIND"))
    await look(airport, traveller)
    await stays_completed(airport, traveller)
