"""ReleasePassengerSeat and FindPassengerSeats: one passenger's seat, whoever else is in the same hold."""

from __future__ import annotations

from uuid import uuid4

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database
from tests.seat.rules import at_once, lapse, new_flight_id, outcomes, rows, violations


def release(hold: pb.Hold, flight: str, passenger_id: str, **more: str) -> pb.ReleasePassengerSeatRequest:
    return pb.ReleasePassengerSeatRequest(hold_id=hold.hold_id, flight_id=flight, passenger_id=passenger_id, **more)


async def seats_of(service: Caller, flight: str, *passengers: str) -> dict[str, tuple[str, str]]:
    """Seat number and state by passenger."""
    answer = await service.FindPassengerSeats(
        pb.FindPassengerSeatsRequest(
            passengers=[
                pb.FindPassengerSeatsRequest.FlightPassenger(flight_id=flight, passenger_id=passenger)
                for passenger in passengers
            ]
        )
    )
    return {s.passenger_id: (s.seat_number, pb.Seat.State.Name(s.state)) for s in answer.seats}


@pytest.fixture
async def family(agent: Caller, flight: str) -> pb.Hold:
    """Two passengers in one confirmed hold."""
    return await agent.confirm(await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))


async def test_one_passengers_seat_is_freed_and_the_other_stays(
    service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    answer = await service.ReleasePassengerSeat(release(family, flight, "P1", reason="CHECK_IN_CANCELLED"))
    assert answer.state == pb.Hold.CONFIRMED
    assert [s.seat_number for s in answer.seats] == ["20B"]
    states = await service.states(flight)
    assert (states["20A"], states["20B"]) == ("AVAILABLE", "CONFIRMED")
    assert await seats_of(service, flight, "P1", "P2") == {"P2": ("20B", "CONFIRMED")}
    body = await database.fetchval(
        """
        SELECT body FROM seat_events JOIN outbox USING (event_id)
        WHERE flight_id = $1 AND seat_number = '20A' AND to_state = 'AVAILABLE'
        """,
        flight,
    )
    (released,) = events_pb2.SeatReleased.FromString(body).seats
    assert (released.passenger_id, released.reason) == ("P1", "CHECK_IN_CANCELLED")
    assert await violations(database, flight) == []


async def test_a_hold_ends_with_its_last_seat(
    service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    await service.ReleasePassengerSeat(release(family, flight, "P1"))
    assert (await service.ReleasePassengerSeat(release(family, flight, "P2"))).state == pb.Hold.CANCELLED
    assert (await service.get(family)).state == pb.Hold.CANCELLED
    assert await violations(database, flight) == []


async def test_a_repeat_changes_nothing(service: Caller, flight: str, family: pb.Hold, database: Database) -> None:
    await service.ReleasePassengerSeat(release(family, flight, "P1"))
    before = await rows(database, flight)
    await service.ReleasePassengerSeat(release(family, flight, "P1"))
    assert await rows(database, flight) == before


async def test_who_sits_elsewhere_by_now_keeps_that(
    agent: Caller, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    await agent.confirm(await agent.hold(flight, "21A", "P1"))
    await service.ReleasePassengerSeat(release(family, flight, "P1"))
    assert await seats_of(service, flight, "P1") == {"P1": ("21A", "CONFIRMED")}
    assert await violations(database, flight) == []


async def test_a_seat_that_is_only_held_stays(agent: Caller, service: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "22A", "P3")
    assert (await service.ReleasePassengerSeat(release(hold, flight, "P3"))).state == pb.Hold.HELD
    assert await seats_of(service, flight, "P3") == {"P3": ("22A", "HELD")}
    assert await violations(database, flight) == []


async def test_a_strange_passenger_and_a_strange_hold(service: Caller, flight: str, family: pb.Hold) -> None:
    answer = await service.ReleasePassengerSeat(release(family, flight, "P9"))
    assert [s.seat_number for s in answer.seats] == ["20A", "20B"]
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await service.ReleasePassengerSeat(release(pb.Hold(hold_id=str(uuid4())), flight, "P1"))


async def test_release_and_cancel_at_once_free_each_seat_once(
    agent: Caller, service: Caller, flight: str, family: pb.Hold, database: Database
) -> None:
    results = await at_once(
        *(service.ReleasePassengerSeat(release(family, flight, f"P{1 + n % 2}")) for n in range(10)),
        *(agent.cancel(family) for _ in range(5)),
    )
    assert set(outcomes(results)) == {"OK"}
    assert await violations(database, flight) == []
    freed = await database.fetchval(
        "SELECT count(*) FROM seat_events WHERE flight_id = $1 AND to_state = 'AVAILABLE'", flight
    )
    assert freed == 2


async def test_a_freed_seat_goes_to_the_waitlist_first(service: Caller, flight: str, family: pb.Hold) -> None:
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await service.ReleasePassengerSeat(release(family, flight, "P1"))
    assert (await service.states(flight))["20A"] == "OFFERED"


async def test_a_lapsed_hold_is_no_seat(brief: Callers) -> None:
    flight = new_flight_id()
    await brief.operations().provision(flight)
    await lapse(await brief.agent().hold(flight, "20A", "P1"))
    assert await seats_of(brief.service(), flight, "P1") == {}


async def test_the_waitlists_newer_word_is_not_overtaken(service: Caller, flight: str) -> None:
    async def say(*, is_open: bool, revision: int) -> bool:
        answer = await service.SetWaitlistOpen(
            pb.SetWaitlistOpenRequest(flight_id=flight, open=is_open, revision=revision)
        )
        opened: bool = answer.open
        return opened

    assert await say(is_open=True, revision=5)
    assert await say(is_open=False, revision=4), "the older word comes late"
    assert await say(is_open=False, revision=5), "a repeat of the same revision changes nothing"
    assert not await say(is_open=False, revision=6)
    assert await say(is_open=True, revision=0)


async def test_a_claim_lasts_as_long_as_it_asks(service: Caller, flight: str) -> None:
    claim = pb.ClaimSeatRequest(flight_id=flight, seat_number="20A", passenger_id="W1", owner="passenger:XK4T7Q")
    claim.ttl.FromSeconds(300)
    hold = await service.ClaimSeat(claim)
    assert hold.expire_time.ToMilliseconds() - hold.create_time.ToMilliseconds() == 300_000


async def test_who_acts_for_an_owner_reaches_only_its_holds(callers: Callers, service: Caller, flight: str) -> None:
    hold = await callers.passenger(f"P1:{flight}", pnr="XK4T7Q").hold(flight, "20A", "P1")
    with refused("NOT_FOUND", "HOLD_NOT_FOUND"):
        await service.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner="passenger:AAAAAA"))
    with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
        await callers.customer().ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner="passenger:XK4T7Q"))
    confirmed = await service.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, owner="passenger:XK4T7Q"))
    assert confirmed.state == pb.Hold.CONFIRMED


async def test_a_claim_for_a_passenger_who_holds_a_seat_says_so(agent: Caller, service: Caller, flight: str) -> None:
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await agent.cancel(await agent.hold(flight, "20A", "P1"))
    await agent.hold(flight, "21A", "W1")
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await service.ClaimSeat(
            pb.ClaimSeatRequest(flight_id=flight, seat_number="20A", passenger_id="W1", owner="passenger:XK4T7Q")
        )
