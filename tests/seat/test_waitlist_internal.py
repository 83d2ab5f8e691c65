"""ClaimSeat, ReturnSeat, SetWaitlistOpen (SEAT-2, SEAT-3, WL-2).

A seat that is freed while passengers wait is first offered to the waitlist.
"""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from uuid import uuid4

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services.proto import timestamp
from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused
from tests.dates import flight_id
from tests.instances import Database, Instance
from tests.seat.rules import at_once, new_flight_id, outcomes, rows, violations
from tests.waiting import eventually, until


def claim(flight: str, seat_number: str = "20A", **more: object) -> pb.ClaimSeatRequest:
    asked = {"passenger_id": "W1", "owner": "passenger:XK4T7Q", **more}
    return pb.ClaimSeatRequest(flight_id=flight, seat_number=seat_number, **asked)  # type: ignore[arg-type]


def give_back(flight: str, seat_number: str = "20A") -> pb.ReturnSeatRequest:
    return pb.ReturnSeatRequest(flight_id=flight, seat_number=seat_number)


async def set_open(caller: Caller, flight: str, *, is_open: bool, revision: int = 0) -> bool:
    answer = await caller.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=is_open, revision=revision))
    assert answer.flight_id == flight
    standing: bool = answer.open
    return standing


async def open_waitlist(caller: Caller, flight: str, *, is_open: bool = True) -> None:
    assert await set_open(caller, flight, is_open=is_open) == is_open


@pytest.fixture
async def offered(agent: Caller, service: Caller, flight: str) -> str:
    """A flight whose seat 20A was released while passengers wait."""
    await open_waitlist(service, flight)
    await agent.cancel(await agent.hold(flight, "20A", "P1"))
    return flight


async def state(database: Database, flight: str) -> str:
    found: str = await database.fetchval(
        "SELECT state::text FROM seats WHERE flight_id = $1 AND seat_number = '20A'", flight
    )
    return found


async def offer_end(database: Database, flight: str) -> datetime:
    """Returns the end of the offer of 20A."""
    end: datetime = await database.fetchval(
        "SELECT expire_time FROM offers WHERE flight_id = $1 AND seat_number = '20A'", flight
    )
    return end


async def test_a_released_seat_is_offered_to_an_open_waitlist(
    callers: Callers, agent: Caller, offered: str, database: Database
) -> None:
    assert await state(database, offered) == "OFFERED"
    for nobody in (callers.customer(), agent, callers.service("booking")):
        with refused("ABORTED", "SEAT_TAKEN") as refusal:
            await nobody.hold(offered, "20A")
        assert refusal.info.metadata["state"] == "OFFERED"
    assert await violations(database, offered) == []


async def test_an_offered_seat_publishes_an_event(offered: str, database: Database) -> None:
    body = await database.fetchval(
        """
        SELECT body FROM seat_events JOIN outbox USING (event_id)
        WHERE flight_id = $1 AND to_state = 'OFFERED' AND routing_key = 'seat.released.v1'
        """,
        offered,
    )
    event = events_pb2.SeatReleased.FromString(body)
    (released,) = event.seats
    assert (released.seat_number, released.state, released.passenger_id) == ("20A", pb.Seat.OFFERED, "P1")
    assert event.offer_expire_time == timestamp(await offer_end(database, offered))


async def test_an_unblocked_seats_event_has_the_offers_end(agent: Caller, offered: str, database: Database) -> None:
    await agent.BlockSeat(pb.BlockSeatRequest(flight_id=offered, seat_number="20A", reason="BROKEN"))
    await agent.UnblockSeat(pb.UnblockSeatRequest(flight_id=offered, seat_number="20A"))
    body = await database.fetchval(
        """
        SELECT body FROM seat_events JOIN outbox USING (event_id)
        WHERE flight_id = $1 AND from_state = 'BLOCKED' AND routing_key = 'seat.released.v1'
        """,
        offered,
    )
    event = events_pb2.SeatReleased.FromString(body)
    assert event.offer_expire_time == timestamp(await offer_end(database, offered))


async def test_a_claimed_seat_is_held_for_its_new_owner(
    callers: Callers, service: Caller, offered: str, database: Database
) -> None:
    hold = await service.ClaimSeat(claim(offered))
    assert hold.state == pb.Hold.HELD
    assert (await database.fetchval("SELECT owner FROM holds WHERE hold_id = $1", hold.hold_id)) == "passenger:XK4T7Q"
    owner = callers.passenger(f"W1:{offered}", pnr="XK4T7Q")
    assert (await owner.confirm(hold)).state == pb.Hold.CONFIRMED
    assert await violations(database, offered) == []


async def test_of_many_claims_one_gets_the_seat(
    callers: Callers, second: Callers, offered: str, database: Database
) -> None:
    results = await at_once(
        *((callers, second)[n % 2].service().ClaimSeat(claim(offered, passenger_id=f"W{n}")) for n in range(40))
    )
    assert outcomes(results) == {"OK": 1, "SEAT_TAKEN": 39}
    assert await violations(database, offered) == []


async def test_a_free_seat_can_be_claimed_too(service: Caller, flight: str) -> None:
    assert (await service.ClaimSeat(claim(flight))).state == pb.Hold.HELD


async def test_the_rules_of_holds_apply_to_claims(service: Caller, offered: str) -> None:
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"):
        await service.ClaimSeat(claim(offered, "12A", profile=pb.PassengerProfile(type=pb.PassengerProfile.CHILD)))
    with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
        await service.ClaimSeat(claim(offered, "31A"))
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await service.ClaimSeat(claim(flight_id("SH000")))
    await service.ClaimSeat(claim(offered))
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await service.ClaimSeat(claim(offered, "21A"))
    with refused("ABORTED", "SEAT_TAKEN"):
        await service.ClaimSeat(claim(offered, passenger_id="W2"))


async def test_a_returned_seat_is_available(
    callers: Callers, service: Caller, offered: str, database: Database
) -> None:
    returned = await service.ReturnSeat(give_back(offered))
    assert returned.state == pb.Seat.AVAILABLE
    before = await rows(database, offered)
    assert await service.ReturnSeat(give_back(offered)) == returned
    assert await rows(database, offered) == before
    await callers.customer().hold(offered, "20A")
    assert await violations(database, offered) == []


async def test_a_held_or_confirmed_seat_is_not_returned(service: Caller, offered: str, database: Database) -> None:
    await service.ClaimSeat(claim(offered))
    before = await rows(database, offered)
    with refused("ABORTED", "SEAT_OCCUPIED"):
        await service.ReturnSeat(give_back(offered))
    assert await rows(database, offered) == before
    with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
        await service.ReturnSeat(give_back(offered, "31A"))
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await service.ReturnSeat(give_back(flight_id("SH000")))


async def test_claim_and_return_at_once_leave_one_winner(
    callers: Callers, second: Callers, agent: Caller, flight: str, database: Database
) -> None:
    await open_waitlist(callers.service(), flight)
    numbers = [f"{row}{letter}" for row in range(14, 20) for letter in "ABC"]
    for number in numbers:
        await agent.cancel(await agent.hold(flight, number))
    results = await at_once(
        *(
            call
            for n, number in enumerate(numbers)
            for call in (
                callers.service().ClaimSeat(claim(flight, number, passenger_id=f"W{n}")),
                second.service().ReturnSeat(give_back(flight, number)),
            )
        )
    )
    assert outcomes(results).keys() <= {"OK", "SEAT_OCCUPIED"}
    assert outcomes(results[::2]) == {"OK": len(numbers)}
    assert await violations(database, flight) == []


async def test_an_unclaimed_offer_expires(brief_offers: Instance) -> None:
    flight = new_flight_id()
    callers = brief_offers.callers
    await callers.operations().provision(flight)
    await open_waitlist(callers.service(), flight)
    agent = callers.agent()
    await agent.cancel(await agent.hold(flight, "20A"))

    async def free() -> bool:
        return await state(brief_offers.database, flight) == "AVAILABLE"

    await eventually(free)
    (last,) = (await rows(brief_offers.database, flight))["events"][-1:]
    assert (last["actor"], last["reason"], last["to_state"]) == ("sweeper", "OFFER_LAPSED", "AVAILABLE")
    offered = await brief_offers.database.fetchval(
        "SELECT event_time FROM seat_events WHERE flight_id = $1 AND to_state = 'OFFERED'", flight
    )
    assert (last["event_time"] - offered).total_seconds() >= 0.3
    assert await violations(brief_offers.database, flight) == []


async def test_a_released_seat_is_available_with_a_closed_waitlist(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    await open_waitlist(service, flight)
    await open_waitlist(service, flight, is_open=False)
    await agent.cancel(await agent.hold(flight, "20A"))
    assert await state(database, flight) == "AVAILABLE"


async def test_opening_the_waitlist_offers_no_available_seat(agent: Caller, service: Caller, flight: str) -> None:
    await open_waitlist(service, flight)
    await agent.hold(flight, "20A")


async def test_a_moving_passengers_former_seat_is_offered(
    agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    await agent.confirm(await agent.hold(flight, "20A", "P1"))
    await open_waitlist(service, flight)
    await agent.confirm(await agent.hold(flight, "21A", "P1"))
    assert await state(database, flight) == "OFFERED"
    assert await violations(database, flight) == []


async def test_a_lapsed_seat_is_offered_to_an_open_waitlist(unswept: Instance, unswept_flight: str) -> None:
    callers, flight = unswept.callers, unswept_flight
    lapsed = await callers.customer().hold(flight, "20A")
    await open_waitlist(callers.service(), flight)
    await lapse_holds(unswept.database, lapsed)
    # This call records the lapse, and the seat is then offered to the waitlist, not to the caller.
    with refused("ABORTED", "SEAT_TAKEN") as refusal:
        await callers.customer().hold(flight, "20A")
    assert refusal.info.metadata["state"] == "OFFERED"
    hold = await callers.service().ClaimSeat(claim(flight))
    assert hold.state == pb.Hold.HELD
    states = [event["to_state"] for event in (await rows(unswept.database, flight))["events"]]
    assert states == ["HELD", "OFFERED", "HELD"]
    assert await violations(unswept.database, flight) == []


async def test_a_lapsed_seat_can_be_claimed_at_once(unswept: Instance, unswept_flight: str) -> None:
    callers, flight = unswept.callers, unswept_flight
    lapsed = await callers.customer().hold(flight, "20A")
    await open_waitlist(callers.service(), flight)
    await lapse_holds(unswept.database, lapsed)
    assert (await callers.service().ClaimSeat(claim(flight))).state == pb.Hold.HELD
    assert await violations(unswept.database, flight) == []


@pytest.mark.parametrize("revision", [0, 1])
async def test_an_unknown_flight_has_no_waitlist(service: Caller, revision: int) -> None:
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await set_open(service, flight_id("SH000"), is_open=True, revision=revision)


async def test_an_older_revision_does_not_override_a_newer(service: Caller, flight: str, database: Database) -> None:
    assert await set_open(service, flight, is_open=True, revision=5)
    before = await rows(database, flight)
    assert await set_open(service, flight, is_open=False, revision=4), "an older word that comes late"
    assert await set_open(service, flight, is_open=False, revision=5), "another word of the same revision"
    assert await rows(database, flight) == before
    assert not await set_open(service, flight, is_open=False, revision=6)
    assert not await set_open(service, flight, is_open=True, revision=5)


async def test_a_request_without_revision_always_applies(service: Caller, flight: str) -> None:
    assert await set_open(service, flight, is_open=True, revision=5)
    assert not await set_open(service, flight, is_open=False)
    assert not await set_open(service, flight, is_open=True, revision=5)
    assert await set_open(service, flight, is_open=True, revision=6)


async def test_the_newest_revision_wins_in_any_order(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    newest = 60
    revisions = random.Random(5).sample(range(1, newest + 1), k=newest)
    # Odd revisions open the waitlist, so that the newest revision closes it.
    results = await at_once(
        *(
            set_open((callers, second)[n % 2].service(), flight, is_open=revision % 2 == 1, revision=revision)
            for n, revision in enumerate(revisions)
        )
    )
    assert all(isinstance(result, bool) for result in results), results
    (row,) = (await rows(database, flight))["flight"]
    assert (row["waitlist_open"], row["waitlist_revision"]) == (False, newest)


async def test_a_claim_has_the_requested_ttl(service: Caller, offered: str) -> None:
    hold = await service.ClaimSeat(claim(offered, ttl=timedelta(seconds=300)))
    assert hold.expire_time.ToMicroseconds() - hold.create_time.ToMicroseconds() == 300_000_000
    extended = await service.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id))
    assert extended.expire_time.ToMicroseconds() >= hold.expire_time.ToMicroseconds(), "its own time again"


async def test_a_claim_without_ttl_has_that_of_its_purpose(service: Caller, flight: str) -> None:
    for number, purpose, seconds in (("20A", pb.Hold.CHECK_IN, 120), ("21A", pb.Hold.BOOKING, 900)):
        hold = await service.ClaimSeat(claim(flight, number, passenger_id=f"P{number}", purpose=purpose))
        assert hold.expire_time.ToSeconds() - hold.create_time.ToSeconds() == seconds


async def test_a_claim_expires_after_its_ttl(
    callers: Callers, service: Caller, offered: str, database: Database
) -> None:
    hold = await service.ClaimSeat(claim(offered, ttl=timedelta(seconds=0.1)))
    await until(hold.expire_time)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await callers.passenger(f"W1:{offered}", pnr="XK4T7Q").confirm(hold)
    following = await service.ClaimSeat(claim(offered, passenger_id="W2"))
    assert following.state == pb.Hold.HELD
    assert await violations(database, offered) == []


@pytest.mark.parametrize("seconds", [0, -1, 86_401])
async def test_a_claim_ttl_is_at_most_a_day(service: Caller, offered: str, seconds: int) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await service.ClaimSeat(claim(offered, ttl=timedelta(seconds=seconds)))
    assert refusal.fields == ["ttl"]


async def test_passenger_holds_seat_comes_before_seat_taken(
    agent: Caller, service: Caller, offered: str, database: Database
) -> None:
    """The passenger's other held seat is the reason of the refusal.

    The seat itself is offered, so the waitlist may claim it.
    """
    await agent.hold(offered, "21A", "W1")
    before = await rows(database, offered)
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await service.ClaimSeat(claim(offered))
    assert await rows(database, offered) == before
    with refused("ABORTED", "SEAT_TAKEN"):
        await agent.hold(offered, "20A", "W1")


async def test_a_repeated_claim_returns_the_same_hold(service: Caller, offered: str, database: Database) -> None:
    request = claim(offered, request_id=str(uuid4()))
    assert await service.ClaimSeat(request) == await service.ClaimSeat(request)
    assert await violations(database, offered) == []


async def test_a_claim_with_confirm_is_confirmed_at_once(
    agent: Caller, service: Caller, offered: str, database: Database
) -> None:
    former = await agent.confirm(await agent.hold(offered, "21A", "W1"))
    key = str(uuid4())
    hold = await service.ClaimSeat(claim(offered, confirm=True, request_id=key))
    assert (hold.state, hold.seats[0].seat_number) == (pb.Hold.CONFIRMED, "20A")
    assert (await service.get(former)).state == pb.Hold.CANCELLED
    assert await service.ClaimSeat(claim(offered, confirm=True, request_id=key)) == hold
    assert await violations(database, offered) == []


async def test_claims_with_and_without_confirm_share_a_batch(service: Caller, offered: str, database: Database) -> None:
    results = await at_once(
        *(
            service.ClaimSeat(claim(offered, f"{row}A", passenger_id=f"W{row}", confirm=row % 2 == 0))
            for row in range(13, 30)
        ),
        *(service.ClaimSeat(claim(offered, "20A", passenger_id=f"V{n}", confirm=True)) for n in range(10)),
    )
    assert outcomes(results) == {"OK": 17, "SEAT_TAKEN": 10}
    assert await violations(database, offered) == []
