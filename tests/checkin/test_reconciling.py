"""The reconciler applies the payment service's state if an event was lost."""

from __future__ import annotations

from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.checkin.airport import Airport
from tests.checkin.test_after_departure import leaves
from tests.instances import Database
from tests.waiting import eventually

VARIABLES: Final = {"SKYHIGH_RECONCILE_SECONDS": "0.2"}


def asked(airport: Airport) -> int:
    """Counts the calls to the payment service that read an intent."""
    return airport.payments.calls.count("GetPaymentIntent")


async def test_a_paid_fee_with_lost_event_completes(airport: Airport) -> None:
    traveller = await airport.traveller()
    check_in = await traveller.waiting()
    assert airport.payments.begin(check_in.payment_intent_id)
    assert airport.payments.succeed(check_in.payment_intent_id) is not None
    await traveller.becomes(pb.CheckIn.COMPLETED)
    assert airport.payments.money_kept(check_in.checkin_id) == 1


async def test_a_failure_with_a_lost_event_is_recorded_once(airport: Airport) -> None:
    traveller = await airport.traveller()
    check_in = await traveller.waiting()
    assert airport.payments.begin(check_in.payment_intent_id)
    assert airport.payments.fail(check_in.payment_intent_id) is not None

    async def shown() -> bool:
        return (await airport.row(traveller)).payment_error == "DECLINED"

    await eventually(shown)
    version = (await airport.row(traveller)).version
    arrived = asked(airport)

    async def looked_twice_more() -> bool:
        return asked(airport) >= arrived + 2

    await eventually(looked_twice_more)
    assert (await airport.row(traveller)).version == version


async def test_a_cancelled_check_ins_fee_is_refunded_without_event(airport: Airport) -> None:
    traveller = await airport.traveller()
    check_in = await traveller.waiting()
    assert airport.payments.begin(check_in.payment_intent_id)
    await traveller.cancel()
    assert airport.payments.succeed(check_in.payment_intent_id) is not None

    async def settled() -> bool:
        row = await airport.row(traveller)
        return row.fee_pay_time is not None and row.fee_refund_time is not None

    await eventually(settled)
    assert airport.payments.money_kept(check_in.checkin_id) == 0


async def test_a_refund_after_departure_is_recorded_without_event(airport: Airport, checkin_database: Database) -> None:
    traveller = await airport.traveller()
    check_in = await traveller.waiting()
    # Once paid, the check-in waits for a seat until its flight departs.
    await traveller.lose_seat()
    await traveller.has_seat("")
    assert airport.payments.begin(check_in.payment_intent_id)
    assert airport.payments.succeed(check_in.payment_intent_id) is not None
    await leaves(airport, checkin_database)

    async def noted() -> bool:
        row = await airport.row(traveller)
        return row.fee_pay_time is not None and row.fee_refund_time is not None

    await eventually(noted)
    assert (await traveller.get()).state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert airport.payments.money_kept(check_in.checkin_id) == 0
