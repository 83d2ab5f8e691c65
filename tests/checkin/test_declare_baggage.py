"""DeclareBaggage: within the allowance the check-in completes (CHK-6, CHK-7).

Above it, the fee must be paid first.
"""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2

from checkin_service.check_ins import declared_bags
from tests.callers import refused
from tests.checkin.airport import HOUR, Airport, outcomes, seconds

Intent = payment_service_pb2.PaymentIntent


async def test_bags_within_the_allowance_complete_the_check_in(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    declared = await traveller.declare(20, 5)
    assert declared.state == pb.CheckIn.COMPLETED
    assert [bag.weight_grams for bag in declared.bags] == [20_000, 5_000]
    assert (declared.excess_grams, declared.allowance_grams, declared.sequence_number) == (0, 25_000, 1)
    assert not declared.HasField("fee")
    assert airport.payments.of(traveller.checkin_id) == []


async def test_no_bags_are_declared_without_the_scales(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    airport.scales.away = True
    assert (await traveller.declare()).state == pb.CheckIn.COMPLETED


async def test_excess_kilograms_cost_a_fee_and_wait_for_payment(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    declared = await traveller.declare(30.001)
    assert declared.state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert declared.excess_grams == 5_001
    assert (declared.fee.currency_code, declared.fee.units, declared.fee.nanos) == ("USD", 90, 0)
    patience = declared.payment_deadline.ToDatetime() - declared.update_time.ToDatetime()
    assert patience.total_seconds() == 1800
    (intent,) = airport.payments.of(traveller.checkin_id)
    assert declared.payment_intent_id == str(intent.intent_id)
    assert (intent.amount, intent.owner) == (declared.fee, f"passenger:{traveller.pnr}")


async def test_the_payment_deadline_is_never_after_the_departure(airport: Airport) -> None:
    await airport.set_flight(departs_in_seconds=600, check_in_closes_before=seconds(60))
    traveller = await airport.traveller()
    await traveller.start()
    trip = await traveller.desk.GetTrip(pb.GetTripRequest(pnr=traveller.pnr))
    assert (await traveller.declare(30)).payment_deadline == trip.passengers[0].segments[0].departure_time


async def test_the_scales_override_the_declared_weight(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    airport.scales.measured = {10_000: 27_000}
    declared = await traveller.declare(10)
    assert [bag.weight_grams for bag in declared.bags] == [27_000]
    assert declared.fee.units == 30


@pytest.mark.parametrize(("fare", "free_kilograms"), [("BASIC", 15), ("STANDARD", 25), ("FLEX", 32), ("BUSINESS", 40)])
async def test_the_fare_sets_the_free_allowance(airport: Airport, fare: str, free_kilograms: int) -> None:
    light, heavy = await airport.travellers("P1", "P2", fare=fare)
    await light.start()
    assert (await light.declare(free_kilograms - 10, 10)).state == pb.CheckIn.COMPLETED
    await heavy.start()
    declared = await heavy.declare(free_kilograms - 10, 10.001)
    assert declared.fee.units == 15
    assert declared.allowance_grams == free_kilograms * 1000


async def test_a_bag_over_the_limit_is_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    with refused("FAILED_PRECONDITION", "BAG_TOO_HEAVY") as refusal:
        await traveller.declare(10, 32.001)
    assert dict(refusal.info.metadata) == {"index": "1", "weight_grams": "32001", "limit_grams": "32000"}
    assert (await airport.row(traveller)).version == 1
    assert (await traveller.declare(32)).state == pb.CheckIn.WAITING_FOR_PAYMENT


async def test_seven_pieces_are_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await traveller.declare(*[1] * 7)
    assert refusal.fields == ["bags"]


async def test_a_heavier_declaration_replaces_the_unpaid_intent(airport: Airport) -> None:
    traveller = await airport.traveller()
    first = await traveller.waiting(30)
    second = await traveller.declare(31)
    assert second.state == pb.CheckIn.WAITING_FOR_PAYMENT
    assert second.fee.units == 90
    assert second.payment_intent_id != first.payment_intent_id
    assert second.payment_deadline.ToDatetime() > first.payment_deadline.ToDatetime()
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [
        Intent.CANCELLED,
        Intent.REQUIRES_PAYMENT,
    ]


async def test_a_lighter_declaration_completes_and_cancels_the_intent(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting(30)
    declared = await traveller.declare(10)
    assert declared.state == pb.CheckIn.COMPLETED
    assert (declared.payment_intent_id, declared.HasField("fee"), declared.HasField("payment_deadline")) == (
        "",
        False,
        False,
    )
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.CANCELLED]


async def test_no_bags_can_be_declared_during_a_payment(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting(30)
    airport.payments.begin(waiting.payment_intent_id)
    before = await airport.row(traveller)
    for kilograms in (10, 31):
        with refused("FAILED_PRECONDITION", "PAYMENT_IN_PROGRESS"):
            await traveller.declare(kilograms)
    assert await airport.row(traveller) == before
    abandoned = airport.payments.of(traveller.checkin_id)[1:]
    assert [each.state for each in abandoned] == [Intent.CANCELLED]


async def test_a_just_paid_fee_prevents_another_declaration(airport: Airport) -> None:
    traveller = await airport.traveller()
    waiting = await traveller.waiting(30)
    airport.payments.begin(waiting.payment_intent_id)
    succeeded = airport.payments.succeed(waiting.payment_intent_id)
    with refused("FAILED_PRECONDITION", "FEE_PAID"):
        await traveller.declare(10)
    await airport.tell("payment.succeeded.v1", succeeded)
    assert (await traveller.becomes(pb.CheckIn.COMPLETED)).fee.units == 75


async def test_a_completed_check_in_accepts_no_bags(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    with refused("FAILED_PRECONDITION", "CHECK_IN_COMPLETED"):
        await traveller.declare(12)


async def test_a_cancelled_check_in_accepts_no_bags(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    await traveller.cancel(reason="CHANGED_MIND")
    with refused("FAILED_PRECONDITION", "CHECK_IN_CANCELLED") as refusal:
        await traveller.declare(12)
    assert dict(refusal.info.metadata) == {"reason": "CHANGED_MIND"}


async def test_no_bags_can_be_declared_after_check_in_closed(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    await airport.set_flight(departs_in_seconds=HOUR - 10)
    with refused("FAILED_PRECONDITION", "CHECK_IN_CLOSED") as refusal:
        await traveller.declare(10)
    assert "close_time" in refusal.info.metadata


async def test_no_bags_can_be_declared_without_a_seat(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    await traveller.lose_seat()
    await traveller.has_seat("")
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.declare(10)


async def test_a_declaration_changes_nothing_while_the_scales_are_down(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting(30)
    before = await airport.row(traveller)
    airport.scales.away = True
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
        await traveller.declare(10)
    assert refusal.retry_after_seconds is not None
    assert await airport.row(traveller) == before
    assert [each.state for each in airport.payments.of(traveller.checkin_id)] == [Intent.REQUIRES_PAYMENT]
    airport.scales.away = False
    assert (await traveller.declare(10)).state == pb.CheckIn.COMPLETED


async def test_a_declaration_changes_nothing_while_payments_are_down(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    airport.payments.away = True
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await traveller.declare(30)
    assert (await airport.row(traveller)).version == 1
    airport.payments.away = False
    waiting = await traveller.declare(30)
    before = await airport.row(traveller)
    airport.payments.away = True
    for kilograms in (10, 31):
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await traveller.declare(kilograms)
    airport.payments.away = False
    assert await airport.row(traveller) == before
    assert airport.payments.begin(waiting.payment_intent_id)


async def test_a_weight_list_of_wrong_length_is_unavailable(airport: Airport, monkeypatch: pytest.MonkeyPatch) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    airport.scales.measured = {10_000: 0}
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
        await traveller.declare(10)


async def test_a_repeat_returns_the_first_response_without_other_calls(airport: Airport, request_id: str) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    first = await traveller.declare(30, request_id=request_id)
    airport.scales.calls.clear()
    assert await traveller.declare(30, request_id=request_id) == first
    assert airport.scales.calls == []
    assert len(airport.payments.of(traveller.checkin_id)) == 1
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await traveller.declare(31, request_id=request_id)


async def test_concurrent_repeats_create_one_payable_intent(airport: Airport, request_id: str) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    answers = await asyncio.gather(*(traveller.declare(30, request_id=request_id) for _ in range(8)))
    assert len({answer.payment_intent_id for answer in answers}) == 1
    states = [each.state for each in airport.payments.of(traveller.checkin_id)]
    assert states.count(Intent.REQUIRES_PAYMENT) == 1
    assert set(states) <= {Intent.REQUIRES_PAYMENT, Intent.CANCELLED}


async def test_of_concurrent_declarations_one_applies(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    results = await asyncio.gather(*(traveller.declare(30 + n) for n in range(3)), return_exceptions=True)
    assert set(outcomes(results)) <= {"OK", "DEPENDENCY_UNAVAILABLE"}
    row = await airport.row(traveller)
    payable = [each for each in airport.payments.of(traveller.checkin_id) if each.state == Intent.REQUIRES_PAYMENT]
    assert [each.intent_id for each in payable] == [row.payment_intent_id]
    assert row.fee_cents == payable[0].amount.units * 100


async def test_declare_and_cancel_at_once_leave_one_result(airport: Airport) -> None:
    for traveller in await airport.travellers("P1", "P2", "P3", "P4"):
        await traveller.start()
        await asyncio.gather(traveller.declare(30), traveller.cancel(), return_exceptions=True)
        await airport.at_rest(traveller)
        assert (await airport.row(traveller)).state == "CANCELLED"
        assert {each.state for each in airport.payments.of(traveller.checkin_id)} <= {Intent.CANCELLED}
        assert await traveller.seat() == ""


async def test_a_declaration_killed_before_its_commit_is_repeatable(
    airport: Airport, monkeypatch: pytest.MonkeyPatch, request_id: str
) -> None:
    traveller = await airport.traveller()
    first = await traveller.waiting(30)

    async def die(*_: object, **__: object) -> bool:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, refused("INTERNAL", "INTERNAL"):
        patch.setattr(declared_bags, "wait_for_payment", die)
        await traveller.declare(31, request_id=request_id)
    assert (await traveller.get()).payment_intent_id == first.payment_intent_id
    second = await traveller.declare(31, request_id=request_id)
    assert second.fee.units == 90
    assert airport.payments.begin(second.payment_intent_id)
    assert not airport.payments.begin(first.payment_intent_id)


async def test_an_agent_declares_for_the_passenger(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    traveller.desk = airport.agent
    await traveller.declare(30)
    assert airport.payments.of(traveller.checkin_id)[0].owner == f"passenger:{traveller.pnr}"


async def test_a_foreign_check_in_accepts_no_declaration(airport: Airport) -> None:
    traveller = await airport.traveller()
    stranger = await airport.traveller("P2")
    await traveller.start()
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as foreign:
        stranger.checkin_id = traveller.checkin_id
        await stranger.declare(10)
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as missing:
        stranger.checkin_id = str(uuid4())
        await stranger.declare(10)
    assert foreign.status == missing.status
    assert (await airport.row(traveller)).version == 1
