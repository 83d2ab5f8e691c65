"""Two passengers never hold valid passes for one seat (CHK-8).

Also if events about the seats were lost.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

from checkin_service import handlers
from checkin_service.check_ins import timer_names
from checkin_service.service import CHECKIN_SERVICE
from services import db, timers
from tests.callers import refused
from tests.checkin.airport import Airport, Traveller
from tests.instances import Database, running
from tests.waiting import eventually

if TYPE_CHECKING:
    from tests.conftest import World


@pytest.fixture
def unheard(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes check-in ignore the events about confirmed and released seats."""

    async def lose(*args: Any, **more: Any) -> None:
        pass

    monkeypatch.setattr(handlers, "_check_seat_later", lose)


def asked(traveller: Traveller) -> pb.GetBoardingPassRequest:
    """Returns a request for a traveller's boarding pass."""
    return pb.GetBoardingPassRequest(checkin_id=traveller.checkin_id)


async def shown(traveller: Traveller) -> str:
    """Returns the seat on a traveller's boarding pass."""
    boarding_pass: pb.BoardingPass = await traveller.desk.GetBoardingPass(asked(traveller))
    return boarding_pass.seat_number


async def checked_in(traveller: Traveller, seat_number: str) -> None:
    """Checks a traveller in on a seat; waits until check-in looks at no seat any more."""
    await traveller.start(seat_number=seat_number)
    assert (await traveller.declare()).state == pb.CheckIn.COMPLETED
    await traveller.airport.at_rest(traveller)


async def moves(traveller: Traveller, seat_number: str) -> None:
    """Confirms another seat for a traveller."""
    await traveller.seats.confirm(await traveller.hold(seat_number))


async def test_a_reassigned_seat_cancels_the_former_passengers_check_in(airport: Airport, unheard: None) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await checked_in(alpha, "5A")
    await alpha.lose_seat()
    await checked_in(beta, "5A")
    assert (await alpha.get()).state == pb.CheckIn.CANCELLED
    assert await shown(beta) == "5A"
    with refused("FAILED_PRECONDITION", "CHECK_IN_NOT_COMPLETED"):
        await alpha.desk.GetBoardingPass(asked(alpha))


async def test_a_reassigned_seat_moves_the_former_passengers_check_in(airport: Airport, unheard: None) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await checked_in(alpha, "5A")
    await moves(alpha, "6A")
    await checked_in(beta, "5A")
    assert ((await alpha.get()).seat_number, await shown(alpha), await shown(beta)) == ("6A", "6A", "5A")


async def test_no_pass_is_issued_for_a_released_seat(airport: Airport, unheard: None) -> None:
    alpha = await airport.traveller("P1")
    await checked_in(alpha, "5A")
    await alpha.lose_seat()
    for method in ("GetBoardingPass", "GetBoardingPassSvg", "GetBoardingPassPng"):
        request = (
            asked(alpha)
            if method == "GetBoardingPass"
            else pb.GetBoardingPassBarcodeRequest(checkin_id=alpha.checkin_id)
        )
        with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
            await getattr(alpha.desk, method)(request)
    # The check-in whose event was lost is cancelled too.
    await alpha.becomes(pb.CheckIn.CANCELLED)


async def test_repeated_pass_requests_do_not_postpone_the_correction(airport: Airport, unheard: None) -> None:
    alpha = await airport.traveller("P1")
    await checked_in(alpha, "5A")
    await alpha.lose_seat()

    async def cancelled() -> bool:
        with refused("FAILED_PRECONDITION", "SEAT_REQUIRED") as refusal:
            await alpha.desk.GetBoardingPass(asked(alpha))
        return refusal.reason == "CHECK_IN_NOT_COMPLETED"

    async def asks_until_cancelled() -> bool:
        try:
            return await cancelled()
        except AssertionError:
            return (await alpha.get()).state == pb.CheckIn.CANCELLED

    await eventually(asks_until_cancelled)


async def test_a_pass_shows_the_passengers_current_seat(airport: Airport, unheard: None) -> None:
    alpha = await airport.traveller("P1")
    await checked_in(alpha, "5A")
    await moves(alpha, "6A")
    assert await shown(alpha) == "6A"
    assert (await alpha.get()).seat_number == "6A"


async def test_two_passengers_who_swap_seats_get_each_others(airport: Airport, unheard: None) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await checked_in(alpha, "5A")
    await checked_in(beta, "5B")
    await moves(alpha, "30A")
    await moves(beta, "5A")
    await moves(alpha, "5B")
    assert [await shown(alpha), await shown(beta)] == ["5B", "5A"]
    await airport.at_rest(alpha)
    await airport.at_rest(beta)
    assert [(await each.get()).seat_number for each in (alpha, beta)] == ["5B", "5A"]
    assert [(await each.get()).state for each in (alpha, beta)] == [pb.CheckIn.COMPLETED] * 2
    assert not (await airport.row(alpha)).seat_disputed
    assert not (await airport.row(beta)).seat_disputed


async def test_a_paid_check_in_completes_on_a_reassigned_seat(airport: Airport, unheard: None) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await checked_in(alpha, "5A")
    await alpha.lose_seat()
    await beta.start(seat_number="5A")
    await beta.declare(30)
    await beta.pay()
    await beta.becomes(pb.CheckIn.COMPLETED)
    assert (await alpha.get()).state == pb.CheckIn.CANCELLED


async def test_a_released_seat_prevents_the_completion(airport: Airport, unheard: None) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await alpha.start(seat_number="5A")
    await beta.start(seat_number="5B")
    await beta.declare(30)
    await airport.at_rest(alpha)
    await airport.at_rest(beta)
    for each in (alpha, beta):
        await each.lose_seat()
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await alpha.declare()
    await beta.pay()
    await airport.at_rest(beta)
    paid = await airport.row(beta)
    assert (paid.state, paid.seat_number, paid.fee_pay_time is None) == ("WAITING_FOR_PAYMENT", None, False)
    await moves(beta, "6B")
    await checkin_looks(airport, beta)
    await beta.becomes(pb.CheckIn.COMPLETED)


async def checkin_looks(airport: Airport, traveller: Traveller) -> None:
    """Makes check-in look up a traveller's seat, as an event would."""
    async with db.transaction(airport.pool) as conn:
        await timers.set_timer(conn, timer_names.CHECK_SEAT, traveller.checkin_id)


async def test_an_infants_pass_requires_the_adults_seat(airport: Airport, unheard: None) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    await checked_in(adult, "5A")
    await infant.start(hold_id="")
    await infant.declare()
    assert await shown(infant) == "INF"
    await adult.lose_seat()
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await infant.desk.GetBoardingPass(asked(infant))


async def test_no_pass_is_issued_without_the_seat_service(
    airport: Airport, world: World, variables: dict[str, str]
) -> None:
    alpha = await airport.traveller("P1")
    await checked_in(alpha, "5A")
    nowhere = variables | {"SKYHIGH_SEAT_ADDRESS": "127.0.0.1:1"}
    async with running(world, CHECKIN_SERVICE, CheckInServiceStub, **nowhere) as alone:
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await alone.agent().GetBoardingPass(asked(alpha))


async def test_many_passengers_on_one_seat_leave_one_completed(airport: Airport, unheard: None) -> None:
    """Each passenger takes the seat of the one before.

    Each check-in completes while the earlier passengers request their passes.
    """
    travellers = await airport.strangers(6)
    done: list[Traveller] = []
    for each in travellers:
        if done:
            await done[-1].lose_seat()
        passes = (other.desk.GetBoardingPass(asked(other)) for other in done)
        await each.start(seat_number="5A")
        declared, *issued = await asyncio.gather(each.declare(), *passes, return_exceptions=True)
        assert isinstance(declared, pb.CheckIn)
        assert declared.state == pb.CheckIn.COMPLETED
        # The earlier passengers lost the seat before these calls.
        assert not [one for one in issued if isinstance(one, pb.BoardingPass)]
        done.append(each)
    states = [(await each.get()).state for each in travellers]
    assert states == [pb.CheckIn.CANCELLED] * 5 + [pb.CheckIn.COMPLETED]


async def test_the_schema_refuses_two_completed_check_ins_per_seat(
    airport: Airport, checkin_database: Database
) -> None:
    alpha, beta = await airport.traveller("P1"), await airport.traveller("P2")
    await checked_in(alpha, "5A")
    await checked_in(beta, "5B")
    take = "UPDATE check_ins SET seat_number = '5A' WHERE checkin_id = $1"
    with pytest.raises(asyncpg.UniqueViolationError) as refusal:
        await checkin_database.execute(take, UUID(beta.checkin_id))
    assert refusal.value.constraint_name == "one_completed_check_in_per_seat"
    async with db.transaction(airport.pool) as conn:
        assert (
            await conn.fetchval(
                "SELECT count(*) FROM check_ins WHERE seat_number = '5A' AND flight_id = $1", airport.flight_id
            )
            == 1
        )
