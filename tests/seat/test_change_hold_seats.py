"""ChangeHoldSeats: new seats and a full TTL, or no change (SEAT-5, -9, -11)."""

from __future__ import annotations

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import lapse_holds
from tests.callers import Caller, Callers, refused, seat
from tests.instances import Database, Instance
from tests.seat.rules import (
    a_foreign_hold_is_as_a_missing_one,
    at_once,
    new_flight_id,
    outcomes,
    rows,
    violations,
)


def change(hold_id: str, *seats: pb.SeatAssignment) -> pb.ChangeHoldSeatsRequest:
    return pb.ChangeHoldSeatsRequest(hold_id=hold_id, seats=seats)


async def states(database: Database, flight: str) -> dict[str, str]:
    """Returns the states of the seats that are not AVAILABLE, by seat number.

    Read from Postgres, because a seat map may be out of date for a moment.
    """
    return {
        row["seat_number"]: row["state"]
        for row in await database.fetch("SELECT * FROM seats WHERE flight_id = $1 AND state <> 'AVAILABLE'", flight)
    }


async def test_the_new_seat_is_held_and_the_old_available(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    changed = await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "21B", "P1")))
    assert (changed.hold_id, changed.state) == (hold.hold_id, pb.Hold.HELD)
    assert list(changed.seats) == [seat(flight, "21B", "P1")]
    assert changed.expire_time.ToDatetime() > hold.expire_time.ToDatetime()
    assert changed.extensions_left == hold.extensions_left - 1
    assert await agent.get(hold) == changed
    assert await states(database, flight) == {"21B": "HELD"}
    assert await violations(database, flight) == []


async def test_a_change_writes_both_seats_with_one_transaction(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "21B", "P1")))
    events = await database.fetch("SELECT * FROM seat_events WHERE flight_id = $1 AND reason = 'CHANGED'", flight)
    assert {(event["seat_number"], event["to_state"]) for event in events} == {("20A", "AVAILABLE"), ("21B", "HELD")}
    assert len({event["transaction"] for event in events}) == 1


async def test_an_unchanged_seat_is_never_available_in_between(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20A", "P1"), seat(flight, "20C", "P2")))
    assert (
        await database.fetchval("SELECT count(*) FROM seat_events WHERE flight_id = $1 AND seat_number = '20A'", flight)
        == 1
    )
    assert await states(database, flight) == {"20A": "HELD", "20C": "HELD"}


async def test_two_passengers_of_a_hold_exchange_seats(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    changed = await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20A", "P2"), seat(flight, "20B", "P1")))
    assert await agent.get(hold) == changed
    assert {(each.seat_number, each.passenger_id) for each in changed.seats} == {("20A", "P2"), ("20B", "P1")}
    assert await violations(database, flight) == []


async def test_a_change_may_add_and_remove_seats_and_flights(
    operations: Caller, agent: Caller, flight: str, database: Database
) -> None:
    onward = new_flight_id()
    await operations.provision(onward)
    hold = await agent.hold(flight, "20A", "P1")
    await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20A", "P1"), seat(onward, "3C", "P1")))
    await agent.ChangeHoldSeats(change(hold.hold_id, seat(onward, "3C", "P1")))
    assert (await states(database, flight), await states(database, onward)) == ({}, {"3C": "HELD"})
    assert await violations(database, flight, onward) == []


@pytest.mark.parametrize(
    "refusal",
    [
        ("21A", "ABORTED", "SEAT_TAKEN"),
        ("31A", "NOT_FOUND", "SEAT_NOT_FOUND"),
        ("12A", "FAILED_PRECONDITION", "EXIT_ROW_NOT_ALLOWED"),
        ("14A", "FAILED_PRECONDITION", "INFANT_NOT_ALLOWED"),
    ],
)
async def test_a_refused_change_leaves_the_hold_unchanged(
    callers: Callers, agent: Caller, flight: str, database: Database, refusal: tuple[str, str, str]
) -> None:
    wanted, code, reason = refusal
    session = callers.passenger(f"P1:{flight}:ECONOMY:ADULT+INFT")
    hold = await session.hold(flight, "20A", "P1")
    await agent.hold(flight, "21A")
    before = await rows(database, flight)
    with refused(code, reason):
        await session.ChangeHoldSeats(change(hold.hold_id, seat(flight, wanted, "P1")))
    assert await rows(database, flight) == before
    assert await session.get(hold) == hold


async def test_a_passenger_with_another_seat_gets_no_second(agent: Caller, flight: str, database: Database) -> None:
    await agent.hold(flight, "20A", "P1")
    hold = await agent.hold(flight, "21A", "P2")
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "PASSENGER_HOLDS_SEAT"):
        await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "21A", "P2"), seat(flight, "21B", "P1")))
    assert await rows(database, flight) == before


async def test_a_session_changes_only_to_its_own_passengers(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}")
    hold = await session.hold(flight, "20A", "P1")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20A", "P2")))


async def test_changes_count_against_the_limit_of_extensions(agent: Caller, flight: str) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    for left in reversed(range(1, hold.extensions_left)):
        changed = await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, f"20{'BA'[left % 2]}", "P1")))
        assert changed.extensions_left == left
    await agent.ExtendHold(pb.ExtendHoldRequest(hold_id=hold.hold_id))
    with refused("FAILED_PRECONDITION", "HOLD_LIMIT_REACHED"):
        await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20C", "P1")))


async def test_a_lapsed_hold_cannot_be_changed(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    hold = await customer.hold(flight, "20A", "P1")
    await lapse_holds(database, hold)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await customer.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20B", "P1")))


async def test_a_lapsed_hold_does_not_prevent_a_change(unswept: Instance, unswept_flight: str) -> None:
    agent = unswept.callers.agent()
    lapsed = await agent.hold(unswept_flight, "21A", "P2")
    await lapse_holds(unswept.database, lapsed)
    hold = await agent.hold(unswept_flight, "20A", "P1")
    await agent.ChangeHoldSeats(change(hold.hold_id, seat(unswept_flight, "21A", "P1")))
    assert await states(unswept.database, unswept_flight) == {"21A": "HELD"}
    assert (await agent.get(lapsed)).state == pb.Hold.EXPIRED
    assert await violations(unswept.database, unswept_flight) == []


@pytest.mark.parametrize("end", ["confirm", "cancel"])
async def test_a_confirmed_or_cancelled_hold_cannot_be_changed(
    agent: Caller, flight: str, database: Database, end: str
) -> None:
    hold = await agent.hold(flight, "20A", "P1")
    await (agent.confirm(hold) if end == "confirm" else agent.cancel(hold))
    before = await rows(database, flight)
    with refused("FAILED_PRECONDITION", "HOLD_CONFIRMED" if end == "confirm" else "HOLD_CANCELLED"):
        await agent.ChangeHoldSeats(change(hold.hold_id, seat(flight, "20B", "P1")))
    assert await rows(database, flight) == before


async def test_a_foreign_hold_is_not_changed(callers: Callers, flight: str, database: Database) -> None:
    hold = await callers.passenger(f"P1:{flight}").hold(flight, "20A", "P1")
    for stranger in (callers.passenger(f"P1:{flight}"), callers.customer()):
        await a_foreign_hold_is_as_a_missing_one(
            database, stranger, "ChangeHoldSeats", lambda hold_id: change(hold_id, seat(flight, "22A", "P1")), hold
        )


async def test_holds_that_change_to_each_others_seats_stay_consistent(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    pairs = [
        (await callers.agent().hold(flight, f"{row}A"), await second.agent().hold(flight, f"{row}B"))
        for row in range(14, 24)
    ]
    # Both holds of a pair try to change to the third seat, and then each to the seat of the other.
    results = await at_once(
        *(
            each.agent().ChangeHoldSeats(change(hold.hold_id, seat(flight, f"{row}C", hold.seats[0].passenger_id)))
            for row, pair in zip(range(14, 24), pairs, strict=True)
            for each, hold in zip((callers, second), pair, strict=True)
        )
    )
    assert outcomes(results) == {"OK": 10, "SEAT_TAKEN": 10}
    results = await at_once(
        *(
            each.agent().ChangeHoldSeats(change(hold.hold_id, seat(flight, wanted)))
            for row, (one, two) in zip(range(14, 24), pairs, strict=True)
            for each, hold, wanted in ((callers, one, f"{row}B"), (second, two, f"{row}A"))
        )
    )
    assert outcomes(results)["OK"] >= 10, outcomes(results)
    assert await violations(database, flight) == []
    assert set((await states(database, flight)).values()) == {"HELD"}
    assert len(await states(database, flight)) == 20
