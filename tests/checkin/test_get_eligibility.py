"""GetEligibility: all reasons for which StartCheckIn would be refused (CHK-3)."""

from __future__ import annotations

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from services import db
from tests.callers import Caller, refused
from tests.checkin.airport import HOUR, Airport, Traveller


async def verdict(traveller: Traveller, caller: Caller | None = None) -> pb.Eligibility:
    answer: pb.Eligibility = await (caller or traveller.desk).GetEligibility(
        pb.GetEligibilityRequest(flight_id=traveller.airport.flight_id, passenger_id=traveller.passenger_id)
    )
    return answer


def reasons(answer: pb.Eligibility) -> list[str]:
    assert answer.eligible == (not answer.reasons)
    return [each.reason for each in answer.reasons]


async def test_a_passenger_without_a_seat_can_be_eligible(airport: Airport) -> None:
    assert reasons(await verdict(await airport.traveller())) == []


async def test_every_reason_equals_its_refusal(airport: Airport) -> None:
    traveller = await airport.traveller(special_services=["UMNR"])
    await airport.set_flight(departs_in_seconds=HOUR - 5)
    async with db.transaction(airport.pool) as conn:
        await conn.execute("UPDATE flights SET cancel_time = now() WHERE flight_id = $1", airport.flight_id)
    answer = await verdict(traveller)
    assert reasons(answer) == ["FLIGHT_CANCELLED", "CHECK_IN_CLOSED", "AGENT_REQUIRED"]
    assert dict(answer.reasons[2].metadata) == {"special_service": "UMNR"}
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
        await traveller.start(hold_id="")
    assert answer.reasons[0].message == refusal.message


async def test_a_live_check_in_is_a_reason(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    answer = await verdict(traveller)
    assert reasons(answer) == ["ALREADY_CHECKED_IN"]
    assert answer.reasons[0].metadata["checkin_id"] == traveller.checkin_id
    await traveller.cancel()
    assert reasons(await verdict(traveller)) == []


async def test_agent_required_is_no_reason_for_an_agent(airport: Airport) -> None:
    traveller = await airport.traveller(special_services=["MEDA"])
    assert reasons(await verdict(traveller)) == ["AGENT_REQUIRED"]
    assert reasons(await verdict(traveller, airport.checkin.service("waitlist"))) == ["AGENT_REQUIRED"]
    assert reasons(await verdict(traveller, airport.agent)) == []


async def test_an_infant_is_eligible_after_its_adult(airport: Airport) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    assert reasons(await verdict(infant)) == ["ADULT_REQUIRED"]
    await adult.completed()
    assert reasons(await verdict(infant)) == []


async def test_a_foreign_and_a_missing_passenger_look_the_same(airport: Airport) -> None:
    traveller = await airport.traveller()
    stranger = await airport.traveller("P2")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND") as foreign:
        await verdict(traveller, stranger.desk)
    traveller.passenger_id = "P9"
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND") as missing:
        await verdict(traveller)
    assert foreign.status == missing.status
