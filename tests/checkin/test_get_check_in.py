"""GetCheckIn: the check-in, and each transition with actor and reason (CHK-5)."""

from __future__ import annotations

from uuid import uuid4

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.callers import refused
from tests.checkin.airport import Airport, Traveller


async def history(traveller: Traveller) -> list[tuple[str, str, str, str]]:
    name = pb.CheckIn.State.Name
    found = await traveller.get()
    times = [each.time.ToDatetime() for each in found.history]
    assert times == sorted(times)
    assert found.history[-1].to_state == found.state
    return [(name(each.from_state), name(each.to_state), each.actor, each.reason) for each in found.history]


async def test_a_check_in_without_a_fee(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.completed(10)
    me = f"passenger:{traveller.pnr}"
    assert await history(traveller) == [
        ("STATE_UNSPECIFIED", "INITIATED", me, "STARTED"),
        ("INITIATED", "BAGGAGE_VALIDATED", me, "BAGGAGE_ACCEPTED"),
        ("BAGGAGE_VALIDATED", "COMPLETED", me, "COMPLETED"),
    ]


async def test_a_paid_and_refunded_fee_is_shown(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting(30)
    await traveller.declare(31)
    await traveller.pay()
    await traveller.becomes(pb.CheckIn.COMPLETED)
    traveller.desk, me = airport.agent, traveller.desk.name
    await traveller.cancel(reason="ILL")
    assert await history(traveller) == [
        ("STATE_UNSPECIFIED", "INITIATED", me, "STARTED"),
        ("INITIATED", "WAITING_FOR_PAYMENT", me, "FEE_DUE"),
        ("WAITING_FOR_PAYMENT", "WAITING_FOR_PAYMENT", me, "FEE_DUE"),
        ("WAITING_FOR_PAYMENT", "COMPLETED", "payment", "COMPLETED"),
        ("COMPLETED", "CANCELLED", airport.agent.name, "ILL"),
    ]


async def test_a_lighter_declaration_after_a_fee(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.waiting(30)
    await traveller.declare(10)
    states = [(before, after) for before, after, _, _ in await history(traveller)]
    assert states[2:] == [("WAITING_FOR_PAYMENT", "BAGGAGE_VALIDATED"), ("BAGGAGE_VALIDATED", "COMPLETED")]


async def test_a_foreign_check_in_is_not_found(airport: Airport) -> None:
    traveller = await airport.traveller("P1")
    stranger = await airport.traveller("P2")
    await traveller.start()
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as foreign:
        await stranger.desk.GetCheckIn(pb.GetCheckInRequest(checkin_id=traveller.checkin_id))
    with refused("NOT_FOUND", "CHECK_IN_NOT_FOUND") as missing:
        await stranger.desk.GetCheckIn(pb.GetCheckInRequest(checkin_id=str(uuid4())))
    assert foreign.status == missing.status
    found = await airport.operations.GetCheckIn(pb.GetCheckInRequest(checkin_id=traveller.checkin_id))
    assert found == await traveller.get()
