"""StartCheckIn: once per passenger and flight (CHK-3, CHK-4).

A hold is confirmed, or the confirmed seat is used.
"""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

from checkin_service import peers
from checkin_service.check_ins import start
from checkin_service.peers import Peers
from tests.callers import refused, seat
from tests.checkin.airport import HOUR, Airport, outcomes


async def test_the_hold_is_confirmed_and_the_check_in_starts(airport: Airport) -> None:
    traveller = await airport.traveller()
    started = await traveller.start(seat_number="12A")
    assert started.state == pb.CheckIn.INITIATED
    assert (started.seat_number, started.allowance_grams, len(started.bags)) == ("12A", 25_000, 0)
    assert await traveller.seat() == "12A"


async def test_the_confirmed_seat_is_used_without_a_hold(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.seats.confirm(await traveller.hold("14C"))
    assert (await traveller.start(hold_id="")).seat_number == "14C"


async def test_a_confirmed_hold_is_accepted(airport: Airport) -> None:
    traveller = await airport.traveller()
    hold = await traveller.seats.confirm(await traveller.hold("14C"))
    assert (await traveller.start(hold_id=hold.hold_id)).seat_number == "14C"


@pytest.mark.parametrize("left_out", [False, True])
async def test_a_changed_hold_gives_the_confirmed_seat(
    airport: Airport, monkeypatch: pytest.MonkeyPatch, left_out: bool
) -> None:
    traveller, companion = await airport.travellers("P1", "P2")
    family = airport.seats.passenger(f"P1:{airport.flight_id}", f"P2:{airport.flight_id}", pnr=traveller.pnr)
    hold, read = await family.hold(airport.flight_id, "14C", "P1"), Peers.seats_of

    async def read_before_the_change(self: Peers, *places: Any, **more: Any) -> Any:
        found = await read(self, *places, **more)
        new = seat(airport.flight_id, "15D", (companion if left_out else traveller).passenger_id)
        await family.ChangeHoldSeats(seat_pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[new]))
        return found

    monkeypatch.setattr(Peers, "seats_of", read_before_the_change)
    if left_out:
        with refused("FAILED_PRECONDITION", "HOLD_MISMATCH"):
            await traveller.start(hold_id=hold.hold_id)
    else:
        assert (await traveller.start(hold_id=hold.hold_id)).seat_number == "15D"


async def test_a_new_hold_moves_the_passenger(airport: Airport) -> None:
    traveller = await airport.traveller()
    await traveller.seats.confirm(await traveller.hold("14C"))
    assert (await traveller.start(seat_number="15D")).seat_number == "15D"
    assert await traveller.seat() == "15D"


async def test_a_family_hold_serves_each_passenger(airport: Airport) -> None:
    first, second = await airport.travellers("P1", "P2")
    family = airport.seats.passenger(f"P1:{airport.flight_id}", f"P2:{airport.flight_id}", pnr=first.pnr)
    hold = await family.hold_seats(seat(airport.flight_id, "10A", "P1"), seat(airport.flight_id, "10B", "P2"))
    assert (await first.start(hold_id=hold.hold_id)).seat_number == "10A"
    assert (await second.start(hold_id=hold.hold_id)).seat_number == "10B"


async def test_a_start_without_a_seat_is_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.start(hold_id="")
    await traveller.hold()
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.start(hold_id="")


async def test_an_unknown_passenger_is_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    traveller.passenger_id = "P9"
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await traveller.start(hold_id="")


async def test_a_foreign_passenger_cannot_be_checked_in(airport: Airport) -> None:
    traveller = await airport.traveller()
    stranger = await airport.traveller("P2")
    stranger.passenger_id = traveller.passenger_id
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await stranger.start(hold_id=(await traveller.hold()).hold_id)
    assert await traveller.seat() == ""


async def test_an_agent_starts_for_the_passenger(airport: Airport) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold("12A")
    traveller.desk = airport.agent
    await traveller.start(hold_id=hold.hold_id)
    assert (await airport.row(traveller)).pnr == traveller.pnr
    (begun,) = (await traveller.get()).history
    assert begun.actor == airport.agent.name


@pytest.mark.parametrize(
    ("departs_in_seconds", "reason", "told"),
    [(25 * HOUR, "CHECK_IN_NOT_OPEN", "open_time"), (HOUR - 5, "CHECK_IN_CLOSED", "close_time")],
)
async def test_a_start_outside_the_window_is_refused(
    airport: Airport, departs_in_seconds: float, reason: str, told: str
) -> None:
    traveller = await airport.traveller()
    await airport.set_flight(departs_in_seconds=departs_in_seconds)
    with refused("FAILED_PRECONDITION", reason) as refusal:
        await traveller.start()
    assert set(refusal.info.metadata) == {told}
    assert await traveller.seat() == ""


async def test_a_second_check_in_is_refused_naming_the_first(airport: Airport) -> None:
    traveller = await airport.traveller()
    first = await traveller.start()
    with refused("FAILED_PRECONDITION", "ALREADY_CHECKED_IN") as refusal:
        await traveller.start(hold_id="")
    assert dict(refusal.info.metadata) == {"checkin_id": first.checkin_id, "state": "INITIATED"}


async def test_of_concurrent_starts_one_succeeds(airport: Airport) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    results = await asyncio.gather(*(traveller.start(hold_id=hold.hold_id) for _ in range(12)), return_exceptions=True)
    # Those that also confirmed the hold get the check-in that one of them began.
    assert outcomes(results).keys() <= {"OK", "ALREADY_CHECKED_IN"}
    assert len({each.checkin_id for each in results if isinstance(each, pb.CheckIn)}) == 1


async def test_a_slower_request_returns_the_faster_ones_check_in(
    airport: Airport, monkeypatch: pytest.MonkeyPatch
) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    confirm, begun = Peers.confirm_hold, list[pb.CheckIn]()

    async def confirm_and_wait(self: Peers, *asked: Any) -> Any:
        confirmed = await confirm(self, *asked)
        begun.append(await traveller.start(hold_id=""))
        return confirmed

    monkeypatch.setattr(Peers, "confirm_hold", confirm_and_wait)
    assert (await traveller.start(hold_id=hold.hold_id)).checkin_id == begun[0].checkin_id


async def test_a_token_that_ends_during_the_start_is_unauthenticated(
    airport: Airport, monkeypatch: pytest.MonkeyPatch
) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    with monkeypatch.context() as ended:
        ended.setattr(peers, "_as_caller", lambda: {"metadata": (("authorization", "Bearer ended"),)})
        with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
            await traveller.start(hold_id=hold.hold_id)
    assert (await traveller.start(hold_id=hold.hold_id)).seat_number == hold.seats[0].seat_number


async def test_a_close_after_confirmation_leaves_the_outcome_unknown(
    airport: Airport, monkeypatch: pytest.MonkeyPatch
) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    confirm = Peers.confirm_hold

    async def confirm_and_close(self: Peers, *asked: Any) -> Any:
        confirmed = await confirm(self, *asked)
        await airport.set_flight(departs_in_seconds=600)
        return confirmed

    monkeypatch.setattr(Peers, "confirm_hold", confirm_and_close)
    with refused("DEADLINE_EXCEEDED", "DEADLINE_EXCEEDED"):
        await traveller.start(hold_id=hold.hold_id)
    with refused("FAILED_PRECONDITION", "CHECK_IN_CLOSED"):
        await traveller.start(hold_id=hold.hold_id)
    assert await traveller.seat() == hold.seats[0].seat_number


async def test_a_repeat_returns_the_first_response(airport: Airport, request_id: str) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    first = await traveller.start(hold_id=hold.hold_id, request_id=request_id)
    await traveller.declare(10)
    assert await traveller.start(hold_id=hold.hold_id, request_id=request_id) == first
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await traveller.start(hold_id="", request_id=request_id)


async def test_concurrent_repeats_return_one_response(airport: Airport, request_id: str) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()
    answers = await asyncio.gather(*(traveller.start(hold_id=hold.hold_id, request_id=request_id) for _ in range(8)))
    assert len({answer.checkin_id for answer in answers}) == 1


async def test_an_unknown_and_a_foreign_hold_look_the_same(airport: Airport) -> None:
    traveller = await airport.traveller()
    foreign = await (await airport.traveller("P2")).hold()
    with refused("NOT_FOUND", "HOLD_NOT_FOUND") as missing:
        await traveller.start(hold_id=str(uuid4()))
    with refused("NOT_FOUND", "HOLD_NOT_FOUND") as somebody_elses:
        await traveller.start(hold_id=foreign.hold_id)
    assert missing.status == somebody_elses.status


async def test_a_foreign_hold_for_the_own_passenger_is_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    agents = await airport.seats.agent().hold(airport.flight_id, "20C", traveller.passenger_id)
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await traveller.start(hold_id=agents.hold_id)
    assert await traveller.seat() == ""


async def test_a_cancelled_hold_is_refused(airport: Airport) -> None:
    traveller = await airport.traveller()
    hold = await traveller.seats.cancel(await traveller.hold())
    with refused("FAILED_PRECONDITION", "HOLD_CANCELLED"):
        await traveller.start(hold_id=hold.hold_id)


async def test_a_hold_for_another_passenger_is_a_mismatch(airport: Airport) -> None:
    traveller, companion = await airport.travellers("P1", "P2")
    both = airport.seats.passenger(f"P2:{airport.flight_id}", pnr=traveller.pnr)
    hold = await both.hold(airport.flight_id, "20C", "P2")
    with refused("FAILED_PRECONDITION", "HOLD_MISMATCH"):
        await traveller.start(hold_id=hold.hold_id)
    assert await companion.seat() == ""


@pytest.mark.parametrize("service", ["UMNR", "MEDA", "STCR"])
async def test_a_passenger_who_needs_care_requires_an_agent(airport: Airport, service: str) -> None:
    traveller = await airport.traveller(special_services=["VGML", service])
    hold = await traveller.hold()
    with refused("FAILED_PRECONDITION", "AGENT_REQUIRED") as refusal:
        await traveller.start(hold_id=hold.hold_id)
    assert dict(refusal.info.metadata) == {"special_service": service}
    traveller.desk = airport.agent
    assert (await traveller.start(hold_id=hold.hold_id)).state == pb.CheckIn.INITIATED


async def test_an_infant_gets_the_adults_lap(airport: Airport) -> None:
    adult = await airport.traveller("P1")
    infant = await airport.traveller("P2", pnr=adult.pnr, type=pb.INFANT, accompanying_passenger_id="P1")
    with refused("FAILED_PRECONDITION", "ADULT_REQUIRED") as refusal:
        await infant.start(hold_id="")
    assert dict(refusal.info.metadata) == {"passenger_id": "P1"}
    await adult.start()
    with refused("FAILED_PRECONDITION", "ADULT_REQUIRED"):
        await infant.start(hold_id="")
    await adult.declare(10)
    assert (await infant.start(hold_id="")).seat_number == "INF"
    completed = await infant.declare()
    assert (completed.state, completed.sequence_number) == (pb.CheckIn.COMPLETED, 2)


async def test_a_start_killed_after_confirmation_is_repeatable(
    airport: Airport, monkeypatch: pytest.MonkeyPatch
) -> None:
    traveller = await airport.traveller()
    hold = await traveller.hold()

    async def die(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch, refused("INTERNAL", "INTERNAL"):
        patch.setattr(start, "start", die)
        await traveller.start(hold_id=hold.hold_id)
    assert await traveller.seat() != ""
    assert (await traveller.start(hold_id=hold.hold_id)).state == pb.CheckIn.INITIATED


async def test_another_check_in_can_start_after_a_cancelled_one(airport: Airport) -> None:
    traveller = await airport.traveller()
    first = await traveller.start(seat_number="12A")
    await traveller.cancel()
    with refused("FAILED_PRECONDITION", "SEAT_REQUIRED"):
        await traveller.start(hold_id="")
    traveller.checkin_id = first.checkin_id
    await airport.at_rest(traveller)
    second = await traveller.start(seat_number="12A")
    assert second.checkin_id != first.checkin_id
    assert second.seat_number == "12A"
    await airport.at_rest(traveller)
    assert await traveller.seat() == "12A"
