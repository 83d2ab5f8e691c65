"""flight.cancelled.v1: check-in closes, check-ins end, and fees are refunded."""

from __future__ import annotations

import asyncio

from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1 import events_pb2 as checkin_events
from skyhigh.flight.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2

from checkin_service import handlers
from services import db
from tests.callers import refused
from tests.checkin.airport import Airport, facts, outcomes
from tests.checkin.parties import booked, log_in, party
from tests.dates import NEXT_DAY, new_flight_id
from tests.instances import Database
from tests.waiting import eventually, pause

Intent = payment_service_pb2.PaymentIntent


def cancelled(flight_id: str, reason: str = "STRIKE") -> events_pb2.FlightCancelled:
    """Returns the event that the flight service publishes."""
    event = events_pb2.FlightCancelled(flight_id=flight_id, reason=reason)
    event.cancel_time.GetCurrentTime()
    return event


async def nobody_left(database: Database, flight_id: str) -> None:
    """Waits until all check-ins of the flight are CANCELLED."""

    async def gone() -> bool:
        live = "SELECT count(*) FROM check_ins WHERE flight_id = $1 AND state <> 'CANCELLED'"
        return not await database.fetchval(live, flight_id)

    await eventually(gone)


async def test_every_check_in_is_cancelled_settled_and_notified(airport: Airport, checkin_database: Database) -> None:
    paid, owing, begun = await airport.strangers(3)
    await paid.completed(30)
    waiting = await owing.waiting()
    await begun.start()
    await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id))
    await nobody_left(checkin_database, airport.flight_id)
    for each in (paid, owing, begun):
        row = await airport.row(each)
        assert (row.state, row.cancel_reason) == ("CANCELLED", "FLIGHT_CANCELLED")
        (told,) = await airport.told(each, "checkin.cancelled.v1", checkin_events.CheckInCancelled)
        assert told.reason == "FLIGHT_CANCELLED"
        assert await airport.mails(each) == ["Your flight is cancelled: SH101"]
        await airport.at_rest(each)
        assert await each.seat() == ""
    assert [each.state for each in airport.payments.of(paid.checkin_id)] == [Intent.REFUNDED]
    assert [each.state for each in airport.payments.of(owing.checkin_id)] == [Intent.CANCELLED]
    assert not airport.payments.begin(waiting.payment_intent_id)


async def test_no_check_in_can_start(airport: Airport) -> None:
    traveller = await airport.traveller()
    await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id))
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await traveller.start(hold_id="00000000-0000-4000-8000-000000000000")
    verdict = await traveller.desk.GetEligibility(
        pb.GetEligibilityRequest(flight_id=airport.flight_id, passenger_id="P1")
    )
    assert [each.reason for each in verdict.reasons] == ["FLIGHT_CANCELLED"]


async def test_adult_and_infant_are_cancelled_with_one_mail(airport: Airport, checkin_database: Database) -> None:
    its = party(booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    adult, infant = its.traveller(airport, 0), its.traveller(airport, 1)
    await adult.completed(10)
    await infant.start(hold_id="")
    await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id))
    await nobody_left(checkin_database, airport.flight_id)
    assert (await airport.row(infant)).cancel_reason == "FLIGHT_CANCELLED"
    mails = "SELECT count(*) FROM outbox WHERE routing_key = 'checkin.mail.v1' AND position($1::bytea IN body) > 0"
    assert await checkin_database.fetchval(mails, its.confirmed.contact_email.encode()) == 1


async def test_an_unknown_flight_is_cancelled_too(airport: Airport) -> None:
    ahead, imported = (new_flight_id(on=NEXT_DAY) for _ in range(2))
    for flight_id in (ahead, imported):
        await airport.tell("flight.cancelled.v1", cancelled(flight_id))
    its = party(booked(ahead), booked(airport.flight_id))
    await airport.tell("booking.confirmed.v1", its.confirmed)
    passenger = pb.ManifestPassenger(passenger_id="P1", pnr="XK4T7Q", given_name="Zoë", last_name="Müller")
    await airport.operations.ImportManifest(
        pb.ImportManifestRequest(flight_id=imported, flight=facts(), passengers=[passenger])
    )
    for flight_id, passenger_id in ((ahead, its.confirmed.passengers[2].passenger_id), (imported, "P1")):
        verdict = await airport.checkin.agent().GetEligibility(
            pb.GetEligibilityRequest(flight_id=flight_id, passenger_id=passenger_id)
        )
        assert [each.reason for each in verdict.reasons] == ["FLIGHT_CANCELLED"]
    # The party's other flight is not affected, and the party still sees both flights.
    trip = await log_in(airport, its.confirmed.pnr, "Müller")
    assert len(trip.passengers[0].segments) == 2
    await its.traveller(airport, 0).start()


async def test_a_repeated_event_changes_nothing(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id))
    await nobody_left(checkin_database, airport.flight_id)
    await airport.at_rest(traveller)
    query = "SELECT reason, cancel_time FROM cancelled_flights WHERE flight_id = $1"
    first, before = await checkin_database.fetchrow(query, airport.flight_id), await airport.row(traveller)
    await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id, "FOG"))
    assert await checkin_database.fetchrow(query, airport.flight_id) == first
    assert await airport.row(traveller) == before
    assert len(await airport.mails(traveller)) == 1


async def test_a_concurrent_start_waits_for_the_cancellation(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    await traveller.seats.confirm(await traveller.hold("14C"))
    async with airport.in_the_middle_of(handlers.on_flight_cancelled, cancelled(airport.flight_id)):
        started = asyncio.ensure_future(traveller.start(hold_id=""))
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await started
    assert await checkin_database.fetchval("SELECT count(*) FROM check_ins WHERE pnr = $1", traveller.pnr) == 0


async def test_an_import_waits_for_the_cancellation(airport: Airport) -> None:
    flight_id = new_flight_id(on=NEXT_DAY)
    async with airport.in_the_middle_of(handlers.on_flight_cancelled, cancelled(flight_id)):
        imported = asyncio.ensure_future(
            airport.operations.ImportManifest(pb.ImportManifestRequest(flight_id=flight_id, flight=facts()))
        )
    await imported
    async with db.transaction(airport.pool) as conn:
        assert await conn.fetchval("SELECT cancel_time IS NOT NULL FROM flights WHERE flight_id = $1", flight_id)


async def test_a_start_during_the_cancellation_is_cancelled_or_refused(
    airport: Airport, checkin_database: Database
) -> None:
    travellers = await airport.strangers(20)
    holds = [await each.hold() for each in travellers]

    async def cancel() -> None:
        # Roughly in the middle of the starts.
        await pause(0.03)
        await airport.tell("flight.cancelled.v1", cancelled(airport.flight_id))

    results = await asyncio.gather(
        *(each.start(hold_id=hold.hold_id) for each, hold in zip(travellers, holds, strict=True)),
        cancel(),
        return_exceptions=True,
    )
    assert outcomes(results).keys() <= {"OK", "FLIGHT_CANCELLED", "HOLD_CANCELLED"}
    await nobody_left(checkin_database, airport.flight_id)
    for each in travellers:
        if each.checkin_id:
            await airport.at_rest(each)

    async def empty() -> bool:
        return set((await airport.seats.agent().states(airport.flight_id)).values()) == {"AVAILABLE"}

    await eventually(empty)
