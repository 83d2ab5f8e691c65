"""SyncPassengers: check-in ends entitlements; each RPC obeys (SEAT-17, CHK-9)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from services.proto import timestamp
from tests.callers import Caller, Callers, listed_passenger, refused, seat
from tests.dates import new_flight_id
from tests.instances import Database
from tests.seat.rules import OTHER_PNR, PNR, at_once, outcomes, rows, sync, violations
from tests.waiting import eventually

# In the A320, row 12 is an exit row, and row 20 has no rule.
ORDINARY, EXIT_ROW = "20A", "12B"
INFANT: Final = pb.PassengerProfile(type=pb.PassengerProfile.INFANT)


async def depart(callers: Callers, flight: str, *, after: timedelta, revision: int = 1) -> datetime:
    """Syncs a departure this long after now; returns the time of departure."""
    departure_time = datetime.now(UTC) + after
    times = pb.SyncPassengersRequest.FlightTimes(
        flight_id=flight, departure_time=timestamp(departure_time), revision=revision
    )
    await callers.service("checkin").SyncPassengers(pb.SyncPassengersRequest(flights=[times]))
    return departure_time


async def live_seats(database: Database, flight: str) -> list[tuple[str, str]]:
    """Returns the seats of a flight that have a hold, with their states."""
    taken = await database.fetch(
        "SELECT seat_number, state::text FROM seats WHERE flight_id = $1 AND hold_id IS NOT NULL ORDER BY 1", flight
    )
    return [(row["seat_number"], row["state"]) for row in taken]


def seats(response: pb.SyncPassengersResponse) -> list[tuple[str, str]]:
    """Returns passenger id and seat number of each freed seat."""
    return [(each.passenger_id, each.seat_number) for each in response.freed_seats]


async def test_a_session_acts_for_the_passengers_of_its_locator(callers: Callers, flight: str) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR), listed_passenger(flight, "P2", OTHER_PNR))
    session = callers.session(PNR)
    hold = await session.hold(flight, ORDINARY, "P1")
    for stranger in ("P2", "P3"):
        with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
            await session.hold(flight, "21A", stranger)
        with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
            await session.ChangeHoldSeats(
                pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, ORDINARY, stranger)])
            )
    assert (await session.confirm(hold)).state == pb.Hold.CONFIRMED


async def test_claims_of_an_old_token_give_no_access(callers: Callers, flight: str) -> None:
    token = callers.passenger(f"P1:{flight}").token
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await callers.anybody(token).hold(flight, ORDINARY, "P1")


async def test_an_ended_passenger_loses_held_and_confirmed_seats(
    callers: Callers, flight: str, database: Database
) -> None:
    session = callers.passenger(f"P1:{flight}", f"P2:{flight}", pnr=PNR)
    await session.confirm(await session.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))
    held = await session.hold(flight, "21A", "P1")
    response = await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    assert sorted(seats(response)) == [("P1", "20A"), ("P1", "21A")]
    assert await live_seats(database, flight) == [("20B", "CONFIRMED")]
    assert (await session.get(held)).state == pb.Hold.CANCELLED
    ledger = await database.fetch(
        "SELECT actor, reason, transaction::text FROM seat_events WHERE flight_id = $1 AND to_state = 'AVAILABLE'",
        flight,
    )
    assert {(row["actor"], row["reason"]) for row in ledger} == {("service:checkin", "ENTITLEMENT_ENDED")}
    assert len({row["transaction"] for row in ledger}) == 1
    assert await violations(database, flight) == []


async def test_an_ended_passenger_cannot_get_a_seat(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    hold = await session.hold(flight, "20A", "P1")
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    before = await rows(database, flight)
    claim = pb.ClaimSeatRequest(flight_id=flight, seat_number="21A", passenger_id="P1", owner=f"passenger:{PNR}")
    by_way: dict[str, Callable[[], Awaitable[Any]]] = {
        "session": lambda: session.hold(flight, "21A", "P1"),
        "agent": lambda: agent.hold(flight, "21A", "P1"),
        "service": lambda: service.hold_seats(seat(flight, "21A", "P1"), seat(flight, "21B")),
        "claim": lambda: service.ClaimSeat(claim),
        "extend": lambda: session.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id)),
        "confirm": lambda: session.confirm(hold),
        "confirm by an agent": lambda: agent.confirm(hold),
        "change": lambda: session.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[seat(flight, "21A", "P1")])
        ),
    }
    for way, take in by_way.items():
        with refused("FAILED_PRECONDITION", "PASSENGER_NOT_ENTITLED") as refusal:
            await take()
        assert refusal.info.metadata == {"flight_id": flight, "passenger_id": "P1"}, way
    assert await rows(database, flight) == before


async def test_a_released_seat_is_offered_to_the_waitlist(callers: Callers, service: Caller, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    await session.confirm(await session.hold(flight, ORDINARY, "P1"))
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    assert (await session.states(flight))[ORDINARY] == "OFFERED"


async def test_an_older_revision_is_ignored(callers: Callers, flight: str, database: Database) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, revision=5))
    session = callers.session(PNR)
    await session.confirm(await session.hold(flight, ORDINARY, "P1"))
    for revision in (4, 5):
        response = await sync(callers, listed_passenger(flight, "P1", PNR, ended=True, revision=revision))
        assert seats(response) == []
    assert await live_seats(database, flight) == [(ORDINARY, "CONFIRMED")]
    # If a request has two rows of a passenger, the newer revision counts, in either order.
    newest = [listed_passenger(flight, "P1", PNR, ended=revision == 7, revision=revision) for revision in (7, 6)]
    assert seats(await sync(callers, *newest)) == [("P1", ORDINARY)]
    assert seats(await sync(callers, *newest)) == []


async def test_an_ended_passenger_can_be_entitled_again(callers: Callers, flight: str) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    await sync(callers, listed_passenger(flight, "P1", PNR))
    await callers.session(PNR).hold(flight, ORDINARY, "P1")


@pytest.mark.parametrize(
    "change",
    [
        (ORDINARY, {"cabin": "BUSINESS"}, True),
        (ORDINARY, {"cabin": "ECONOMY", "special_services": ["WCHR"]}, False),
        (EXIT_ROW, {"cabin": "ECONOMY", "special_services": ["WCHR"]}, True),
        (EXIT_ROW, {"cabin": "ECONOMY", "special_services": ["VGML"]}, False),
        (EXIT_ROW, {"type": "CHILD"}, True),
        (ORDINARY, {"type": "INFANT"}, True),
    ],
)
@pytest.mark.parametrize("confirmed", [False, True])
async def test_a_seat_that_no_longer_fits_is_released(
    callers: Callers,
    flight: str,
    database: Database,
    change: tuple[str, dict[str, Any], bool],
    confirmed: bool,
) -> None:
    seat_number, profile, lost = change
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    hold = await session.hold(flight, seat_number, "P1")
    if confirmed:
        await session.confirm(hold)
    response = await sync(callers, listed_passenger(flight, "P1", PNR, **profile))
    assert seats(response) == ([("P1", seat_number)] if lost else [])
    reasons = await database.fetch(
        "SELECT reason FROM seat_events WHERE flight_id = $1 AND to_state = 'AVAILABLE'", flight
    )
    assert [row["reason"] for row in reasons] == (["SEAT_NO_LONGER_FITS"] if lost else [])
    assert await violations(database, flight) == []


async def test_the_manifest_overrides_the_profile_of_the_request(callers: Callers, agent: Caller, flight: str) -> None:
    await sync(
        callers, listed_passenger(flight, "P1", PNR, type="CHILD"), listed_passenger(flight, "P2", PNR, cabin="ECONOMY")
    )
    with refused("FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"):
        await agent.hold(flight, EXIT_ROW, "P1", profile=pb.PassengerProfile(type=pb.PassengerProfile.ADULT))
    await agent.hold(flight, EXIT_ROW, "P2", profile=pb.PassengerProfile(special_services=["WCHR"]))


async def test_a_lap_infant_cannot_get_a_seat(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P3", PNR, type="INFANT"))
    claim = pb.ClaimSeatRequest(
        flight_id=flight, seat_number=ORDINARY, passenger_id="P3", owner=f"passenger:{PNR}", confirm=True
    )
    held = await agent.hold(flight, "21A", "P4")
    by_way: dict[str, Callable[[], Awaitable[Any]]] = {
        "session": lambda: callers.session(PNR).hold(flight, ORDINARY, "P3"),
        "agent": lambda: agent.hold(flight, ORDINARY, "P3"),
        "claim": lambda: service.ClaimSeat(claim),
        "profile of an agent": lambda: agent.hold(flight, ORDINARY, profile=INFANT),
        "profile of a guest": lambda: callers.customer().hold(flight, ORDINARY, profile=INFANT),
        "change": lambda: agent.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(hold_id=held.hold_id, seats=[seat(flight, "21A", "P3")])
        ),
    }
    for way, take in by_way.items():
        with refused("FAILED_PRECONDITION", "LAP_INFANT_HAS_NO_SEAT") as refusal:
            await take()
        assert set(refusal.info.metadata) == {"passenger_id"}, way
    assert await live_seats(database, flight) == [("21A", "HELD")]


async def test_a_guest_cannot_hold_for_a_listed_passenger(callers: Callers, flight: str) -> None:
    # Otherwise the passenger would be refused with PASSENGER_HOLDS_SEAT for as long as the guest has the hold.
    await sync(callers, listed_passenger(flight, "P1", PNR))
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await callers.customer().hold(flight, ORDINARY, "P1")
    await callers.session(PNR).hold(flight, ORDINARY, "P1")


async def test_a_session_loses_a_passenger_with_a_new_locator(
    callers: Callers, flight: str, database: Database
) -> None:
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    confirmed = await session.confirm(await session.hold(flight, ORDINARY, "P1"))
    held = await session.hold(flight, "21A", "P1")
    assert seats(await sync(callers, listed_passenger(flight, "P1", OTHER_PNR))) == [("P1", "21A")]
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.confirm(held)
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.cancel(confirmed)
    assert await live_seats(database, flight) == [(ORDINARY, "CONFIRMED")]


async def test_a_departed_flight_accepts_no_hold(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR))
    elsewhere = new_flight_id()
    await callers.operations().provision(elsewhere)
    held, other = await agent.hold(flight, "20A", "P1"), await agent.hold(elsewhere, "20A", "P1")
    departure_time = await depart(callers, flight, after=timedelta(seconds=-1))
    claim = pb.ClaimSeatRequest(flight_id=flight, seat_number="21A", passenger_id="P2", owner=f"passenger:{PNR}")
    by_way: dict[str, Callable[[], Awaitable[Any]]] = {
        "session": lambda: callers.session(PNR).hold(flight, "21A", "P1"),
        "guest": lambda: callers.customer().hold(flight, "21A", purpose=pb.Hold.BOOKING),
        "several": lambda: agent.hold_seats(seat(elsewhere, "21B"), seat(flight, "21B")),
        "claim": lambda: service.ClaimSeat(claim),
        "extend": lambda: agent.ExtendHold(pb.ExtendHoldRequest(hold_id=held.hold_id)),
        "confirm": lambda: agent.confirm(held),
        "change": lambda: agent.ChangeHoldSeats(
            pb.ChangeHoldSeatsRequest(hold_id=other.hold_id, seats=[seat(flight, "21C", "P1")])
        ),
    }
    for way, take in by_way.items():
        with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED") as refusal:
            await take()
        assert refusal.info.metadata["flight_id"] == flight, way
        assert datetime.fromisoformat(refusal.info.metadata["departure_time"]) == departure_time, way

    async def lapsed() -> bool:
        return await live_seats(database, flight) == []

    await eventually(lapsed)
    assert await live_seats(database, elsewhere) == [("20A", "HELD")]
    assert await violations(database, flight, elsewhere) == []


async def test_a_confirmed_seat_stays_after_departure(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    hold = await session.confirm(await session.hold(flight, ORDINARY, "P1"))
    await depart(callers, flight, after=timedelta(seconds=-1))
    before = await rows(database, flight)
    release = pb.ReleasePassengerSeatRequest(hold_id=hold.hold_id, flight_id=flight, passenger_id="P1")
    for take_away in (
        lambda: session.cancel(hold),
        lambda: agent.cancel(hold),
        lambda: service.cancel(hold),
        lambda: service.ReleasePassengerSeat(release),
    ):
        with refused("FAILED_PRECONDITION", "FLIGHT_DEPARTED"):
            await take_away()
    forced = pb.CancelHoldRequest(hold_id=hold.hold_id, after_departure=True)
    for caller in (session, agent):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.CancelHold(forced)
    assert seats(await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))) == []
    assert await rows(database, flight) == before
    assert (await service.CancelHold(forced)).state == pb.Hold.CANCELLED


async def test_a_service_may_release_a_seat_after_departure(
    callers: Callers, agent: Caller, service: Caller, flight: str, database: Database
) -> None:
    hold = await agent.confirm(await agent.hold(flight, ORDINARY, "P1"))
    await service.SetWaitlistOpen(pb.SetWaitlistOpenRequest(flight_id=flight, open=True))
    await depart(callers, flight, after=timedelta(seconds=-1))
    await service.ReleasePassengerSeat(
        pb.ReleasePassengerSeatRequest(hold_id=hold.hold_id, flight_id=flight, passenger_id="P1", after_departure=True)
    )
    # A seat of a departed flight is not offered to the waitlist.
    assert (await agent.states(flight))[ORDINARY] == "AVAILABLE"


async def test_a_hold_ends_at_the_departure(callers: Callers, agent: Caller, flight: str) -> None:
    elsewhere = new_flight_id()
    await callers.operations().provision(elsewhere)
    departure_time = await depart(callers, flight, after=timedelta(seconds=60))
    departure = timestamp(departure_time)
    hold = await agent.hold_seats(seat(flight, "20A"), seat(elsewhere, "20A"), purpose=pb.Hold.BOOKING)
    assert hold.expire_time == departure
    assert (await agent.get(hold)).expire_time == departure
    assert (await agent.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id))).expire_time == departure
    later = await agent.hold(elsewhere, "21A", "P1", purpose=pb.Hold.BOOKING)
    assert later.expire_time.seconds > departure.seconds
    change = pb.ChangeHoldSeatsRequest(hold_id=later.hold_id, seats=[seat(flight, "21A", "P1")])
    changed = await agent.ChangeHoldSeats(change)
    assert changed.expire_time == departure
    assert await agent.get(changed) == changed


async def test_an_earlier_departure_shortens_holds(callers: Callers, agent: Caller, flight: str) -> None:
    await depart(callers, flight, after=timedelta(hours=2))
    hold = await agent.hold(flight, ORDINARY, purpose=pb.Hold.BOOKING)
    departure_time = await depart(callers, flight, after=timedelta(seconds=60), revision=2)
    await depart(callers, flight, after=timedelta(hours=3), revision=1)

    async def shortened() -> bool:
        return (await agent.get(hold)).expire_time == timestamp(departure_time)

    await eventually(shortened)


@pytest.mark.parametrize("delay", [timedelta(hours=2), timedelta(days=2)], ids=["hours", "days"])
async def test_a_delay_releases_seats_of_passengers_who_ended(
    callers: Callers, flight: str, database: Database, delay: timedelta
) -> None:
    session = callers.passenger(f"P1:{flight}", f"P2:{flight}", pnr=PNR)
    await session.confirm(await session.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))
    await depart(callers, flight, after=timedelta(seconds=-1))
    assert seats(await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))) == []
    await depart(callers, flight, after=delay, revision=2)

    async def released() -> bool:
        return await live_seats(database, flight) == [("20B", "CONFIRMED")]

    await eventually(released)
    assert await violations(database, flight) == []


async def test_a_manifest_can_precede_the_seats(callers: Callers) -> None:
    early = new_flight_id()
    await sync(callers, listed_passenger(early, "P1", PNR, ended=True), listed_passenger(early, "P2", PNR))
    departure_time = await depart(callers, early, after=timedelta(seconds=60))
    await callers.operations().ProvisionSeats(
        pb.ProvisionSeatsRequest(
            flight_id=early, layout_id="A320-180Y", departure_time=timestamp(departure_time + timedelta(hours=1))
        )
    )
    with refused("FAILED_PRECONDITION", "PASSENGER_NOT_ENTITLED"):
        await callers.session(PNR).hold(early, ORDINARY, "P1")
    assert (await callers.session(PNR).hold(early, ORDINARY, "P2")).expire_time == timestamp(departure_time)


async def test_a_flight_is_provisioned_with_its_departure(callers: Callers, agent: Caller) -> None:
    flight = new_flight_id()
    departure = timestamp(datetime.now(UTC) + timedelta(seconds=60))
    await callers.operations().ProvisionSeats(
        pb.ProvisionSeatsRequest(flight_id=flight, layout_id="A320-180Y", departure_time=departure)
    )
    assert (await agent.hold(flight, ORDINARY)).expire_time == departure


async def test_many_passengers_are_synced_at_once(callers: Callers, agent: Caller, flight: str) -> None:
    numbers = [f"{row}{letter}" for row in range(15, 24) for letter in "ABCDEF"]
    for n, number in enumerate(numbers):
        await agent.hold(flight, number, f"P{n}")
    response = await sync(callers, *(listed_passenger(flight, f"P{n}", PNR, ended=n % 2 == 0) for n in range(500)))
    assert sorted(seats(response)) == sorted((f"P{n}", number) for n, number in enumerate(numbers) if n % 2 == 0)


async def test_a_suggestion_fits_the_passengers_of_the_manifest(
    callers: Callers, agent: Caller, operations: Caller
) -> None:
    flight = new_flight_id()
    await operations.provision(flight, "A321-16C")
    await sync(
        callers,
        listed_passenger(flight, "P1", PNR, cabin="BUSINESS"),
        listed_passenger(flight, "P2", OTHER_PNR, cabin="ECONOMY", special_services=["WCHR"]),
        listed_passenger(flight, "P3", OTHER_PNR, type="INFANT"),
    )
    described = {
        each.seat_number: each for each in (await agent.GetSeatMap(pb.GetSeatMapRequest(flight_id=flight))).seats
    }

    async def suggested(caller: Caller, **more: Any) -> list[pb.Seat]:
        response = await caller.SuggestSeats(pb.SuggestSeatsRequest(flight_id=flight, party_size=1, **more))
        return [described[number] for each in response.suggestions for number in each.seat_numbers]

    business = await suggested(callers.session(PNR))
    assert business
    assert {each.cabin for each in business} == {pb.Seat.BUSINESS}
    assert not await suggested(callers.session(PNR), cabin=pb.Seat.ECONOMY)
    for economy in (await suggested(callers.session(OTHER_PNR)), await suggested(agent, passenger_ids=["P2"])):
        assert economy
        assert {each.cabin for each in economy} == {pb.Seat.ECONOMY}
        assert not any("E" in each.characteristics for each in economy)
    for passenger_ids in (["P1"], ["P2", "P9"]):
        with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
            await suggested(callers.session(OTHER_PNR), passenger_ids=passenger_ids)


async def test_hold_and_entitlement_end_at_once_leave_no_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    numbers = [f"{row}{letter}" for row in range(15, 24) for letter in "ABCD"]
    await sync(callers, *(listed_passenger(flight, f"P{n}", PNR) for n in range(len(numbers))))
    ways: tuple[Callable[[int, str], Any], ...] = (
        lambda n, number: callers.session(PNR).hold(flight, number, f"P{n}"),
        lambda n, number: second.agent().hold(flight, number, f"P{n}"),
        lambda n, number: callers.service("waitlist").ClaimSeat(
            pb.ClaimSeatRequest(
                flight_id=flight, seat_number=number, passenger_id=f"P{n}", owner=f"passenger:{PNR}", confirm=n % 2 == 0
            )
        ),
    )
    results = await at_once(
        *(
            call
            for n, number in enumerate(numbers)
            for call in (
                ways[n % len(ways)](n, number),
                sync((callers, second)[n % 2], listed_passenger(flight, f"P{n}", PNR, ended=True)),
            )
        )
    )
    assert outcomes(results).keys() <= {"OK", "PASSENGER_NOT_ENTITLED", "TOO_MANY_HELD_SEATS"}, outcomes(results)
    assert await live_seats(database, flight) == []
    assert await violations(database, flight) == []


async def test_confirm_and_entitlement_end_at_once_leave_no_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    numbers = [f"{row}{letter}" for row in range(15, 24) for letter in "ABCD"]
    agent, waitlist = callers.agent(), second.service("waitlist")
    # Each passenger already has a confirmed seat, which is released when the new hold is confirmed.
    for n, number in enumerate(numbers):
        await agent.confirm(await agent.hold(flight, f"{1 + n // 4}{'ABCD'[n % 4]}", f"P{n}"))
        if n % 2:
            await agent.hold(flight, number, f"P{n}")
    holds = {
        row["passenger_id"]: pb.Hold(hold_id=str(row["hold_id"]))
        for row in await database.fetch("SELECT * FROM hold_seats WHERE flight_id = $1 AND state = 'HELD'", flight)
    }

    def take(n: int, number: str) -> Any:
        if n % 2:
            return agent.confirm(holds[f"P{n}"])
        return waitlist.ClaimSeat(
            pb.ClaimSeatRequest(
                flight_id=flight, seat_number=number, passenger_id=f"P{n}", owner=f"passenger:{PNR}", confirm=True
            )
        )

    results = await at_once(
        *(
            call
            for n, number in enumerate(numbers)
            for call in (
                take(n, number),
                sync((callers, second)[n % 2], listed_passenger(flight, f"P{n}", PNR, ended=True)),
            )
        )
    )
    assert outcomes(results).keys() <= {"OK", "PASSENGER_NOT_ENTITLED"}, outcomes(results)
    assert await live_seats(database, flight) == []
    assert await violations(database, flight) == []


async def test_only_a_service_may_sync(callers: Callers, flight: str) -> None:
    request = pb.SyncPassengersRequest(passengers=[listed_passenger(flight, "P1", PNR)])
    for caller in (callers.agent(), callers.operations(), callers.customer(), callers.session(PNR)):
        with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
            await caller.SyncPassengers(request)
