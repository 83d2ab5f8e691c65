"""CancelHold releases the seats of a hold, with a reason (SEAT-8, CHK-9).

It never releases a seat of another hold, and no seat that the passenger's booking includes.
"""

from __future__ import annotations

from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.aging import lapse_holds
from tests.callers import Caller, Callers, listed_passenger, refused, seat
from tests.instances import Database, Instance
from tests.seat.rules import (
    OTHER_PNR,
    PNR,
    a_cancelled_hold_touches_nobody,
    a_foreign_hold_is_as_a_missing_one,
    a_seat_of_a_booking_stays,
    at_once,
    outcomes,
    rows,
    sync,
    violations,
)
from tests.waiting import eventually


def cancel(hold_id: str) -> pb.CancelHoldRequest:
    return pb.CancelHoldRequest(hold_id=hold_id)


async def test_a_cancelled_held_seat_is_available(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    cancelled = await agent.cancel(hold)
    assert cancelled.state == pb.Hold.CANCELLED
    assert cancelled.seats == hold.seats

    async def free() -> bool:
        return (await agent.states(flight))["20A"] == "AVAILABLE"

    await eventually(free)
    assert await violations(database, flight) == []


async def test_a_cancelled_confirmed_seat_is_available(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    await agent.confirm(hold)
    assert (await agent.cancel(hold)).state == pb.Hold.CANCELLED
    await agent.hold(flight, "20A")
    assert await violations(database, flight) == []


async def test_the_ledger_and_the_event_have_the_reason(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2"))
    await agent.cancel(hold, reason="CHANGED_MIND")
    freed = await database.fetch(
        "SELECT * FROM seat_events JOIN outbox USING (event_id) WHERE flight_id = $1 AND to_state = 'AVAILABLE'", flight
    )
    assert {(row["seat_number"], row["reason"], row["actor"]) for row in freed} == {
        ("20A", "CHANGED_MIND", agent.name),
        ("20B", "CHANGED_MIND", agent.name),
    }
    assert {row["routing_key"] for row in freed} == {"seat.released.v1"}
    (body,) = {row["body"] for row in freed}
    event = events_pb2.SeatReleased.FromString(body)
    assert {(each.seat_number, each.version, each.reason, each.passenger_id) for each in event.seats} == {
        ("20A", 2, "CHANGED_MIND", "P1"),
        ("20B", 2, "CHANGED_MIND", "P2"),
    }


async def test_the_reason_is_cancelled_by_default(agent: Caller, flight: str, database: Database) -> None:
    await agent.cancel(await agent.hold(flight, "20A"))
    assert (await rows(database, flight))["events"][-1]["reason"] == "CANCELLED"


async def test_a_repeat_returns_the_same_and_changes_nothing(agent: Caller, flight: str, database: Database) -> None:
    hold = await agent.hold(flight, "20A")
    cancelled = await agent.cancel(hold)
    before = await rows(database, flight)
    assert await agent.cancel(hold, reason="AGAIN") == cancelled
    assert await rows(database, flight) == before


async def test_a_repeat_does_not_release_the_next_owners_seat(
    callers: Callers, flight: str, database: Database
) -> None:
    await a_cancelled_hold_touches_nobody(callers, database, flight)


async def test_a_lapsed_hold_is_not_cancelled(callers: Callers, flight: str, database: Database) -> None:
    customer = callers.customer()
    hold = await customer.hold(flight, "20A")
    await lapse_holds(database, hold)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await customer.cancel(hold)


async def test_a_lapsed_hold_is_not_cancelled_before_the_sweep(unswept: Instance, unswept_flight: str) -> None:
    customer = unswept.callers.customer()
    hold = await customer.hold(unswept_flight, "20A")
    await lapse_holds(unswept.database, hold)
    before = await rows(unswept.database, unswept_flight)
    with refused("ABORTED", "HOLD_EXPIRED"):
        await customer.cancel(hold)
    assert await rows(unswept.database, unswept_flight) == before


async def test_an_agent_cancels_for_the_owner(callers: Callers, agent: Caller, flight: str) -> None:
    hold = await callers.passenger(f"P1:{flight}").hold(flight, "20A", "P1")
    assert (await agent.cancel(hold)).state == pb.Hold.CANCELLED


async def test_concurrent_cancellations_release_the_seat_once(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    hold = await callers.agent().hold(flight, "20A")
    results = await at_once(*(each.agent().cancel(hold) for each in [callers, second] * 10))
    assert outcomes(results) == {"OK": 20}
    assert [row["to_state"] for row in (await rows(database, flight))["events"]] == ["HELD", "AVAILABLE"]


async def test_a_foreign_hold_is_not_cancelled(callers: Callers, flight: str, database: Database) -> None:
    owner = callers.passenger(f"P1:{flight}")
    held = await owner.hold(flight, "20A", "P1")
    for stranger in (callers.passenger(f"P1:{flight}"), callers.customer()):
        await a_foreign_hold_is_as_a_missing_one(database, stranger, "CancelHold", cancel, held)
    await owner.confirm(held)
    await a_foreign_hold_is_as_a_missing_one(database, callers.customer(), "CancelHold", cancel, held)


async def test_unless_confirmed_does_not_cancel_a_confirmed_hold(
    agent: Caller, flight: str, database: Database
) -> None:
    hold = await agent.confirm(await agent.hold(flight, "20A"))
    with refused("FAILED_PRECONDITION", "HOLD_CONFIRMED"):
        await agent.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id, unless_confirmed=True))
    assert (await agent.get(hold)).state == pb.Hold.CONFIRMED
    held = await agent.hold(flight, "20B")
    cancelled = await agent.CancelHold(pb.CancelHoldRequest(hold_id=held.hold_id, unless_confirmed=True))
    assert cancelled.state == pb.Hold.CANCELLED
    assert await violations(database, flight) == []


async def test_unless_confirmed_keeps_a_hold_of_an_ended_passenger(
    callers: Callers, service: Caller, flight: str, database: Database
) -> None:
    await sync(callers, *(listed_passenger(flight, passenger, PNR) for passenger in ("P1", "P2")))
    hold = await service.confirm(await service.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    with refused("FAILED_PRECONDITION", "HOLD_CONFIRMED"):
        await service.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id, unless_confirmed=True))
    assert await violations(database, flight) == []


async def test_confirm_and_cancel_unless_confirmed_leave_one_winner(
    agent: Caller, flight: str, database: Database
) -> None:
    for number in ("20A", "20B", "20C", "20D"):
        hold = await agent.hold(flight, number)
        results = await at_once(
            agent.confirm(hold), agent.CancelHold(pb.CancelHoldRequest(hold_id=hold.hold_id, unless_confirmed=True))
        )
        assert outcomes(results)["OK"] == 1
    assert await violations(database, flight) == []


async def test_a_seat_included_in_a_booking_is_not_cancelled(callers: Callers, flight: str, database: Database) -> None:
    await a_seat_of_a_booking_stays(callers, database, flight)


async def test_a_service_cancels_a_seat_included_in_a_booking(
    callers: Callers, service: Caller, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=True))
    session = callers.session(PNR)
    confirmed = await session.confirm(await session.hold(flight, "20A", "P1"))
    assert (await service.cancel(confirmed)).state == pb.Hold.CANCELLED
    assert (await callers.agent().states(flight))["20A"] == "AVAILABLE"
    # A repeat of a cancellation succeeds for every caller who may use the hold.
    assert (await session.cancel(confirmed)).state == pb.Hold.CANCELLED
    assert await violations(database, flight) == []


async def test_one_included_seat_protects_the_whole_hold(
    callers: Callers, agent: Caller, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR), listed_passenger(flight, "P2", PNR, seat_included=True))
    session = callers.session(PNR)
    hold = await session.confirm(await session.hold_seats(seat(flight, "20A", "P1"), seat(flight, "20B", "P2")))
    # The ended entitlement of P1 is not the reason of the refusal: P2's booking includes a seat.
    await sync(callers, listed_passenger(flight, "P1", PNR, ended=True))
    for caller in (session, agent):
        with refused("FAILED_PRECONDITION", "SEAT_INCLUDED_IN_BOOKING") as refusal:
            await caller.cancel(hold)
        assert refusal.info.metadata["passenger_id"] == "P2"
    assert await violations(database, flight) == []


async def test_a_passenger_changes_the_included_seat_by_another_hold(
    callers: Callers, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=True))
    session = callers.session(PNR)
    first = await session.confirm(await session.hold(flight, "20A", "P1"))
    # A seat that is only held can be cancelled, because the passenger keeps the confirmed one.
    assert (await session.cancel(await session.hold(flight, "20B", "P1"))).state == pb.Hold.CANCELLED
    second = await session.confirm(await session.hold(flight, "20C", "P1"))
    # The first hold was cancelled when the passenger moved to 20C, so this is a repeat.
    assert (await session.cancel(first)).state == pb.Hold.CANCELLED
    with refused("FAILED_PRECONDITION", "SEAT_INCLUDED_IN_BOOKING"):
        await session.cancel(second)
    assert await seats_of(database, flight, "P1") == ["20C"]


async def test_confirmed_seat_is_cancelled_if_no_booking_includes_it(callers: Callers, flight: str) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=True))
    session = callers.session(PNR)
    hold = await session.confirm(await session.hold(flight, "20A", "P1"))
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=False))
    assert (await session.cancel(hold)).state == pb.Hold.CANCELLED


async def test_a_session_without_the_passenger_gets_passenger_not_found(callers: Callers, flight: str) -> None:
    session = callers.passenger(f"P1:{flight}", pnr=PNR)
    hold = await session.confirm(await session.hold(flight, "20A", "P1"))
    await sync(callers, listed_passenger(flight, "P1", OTHER_PNR, seat_included=True))
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await session.cancel(hold)


async def test_move_and_cancel_at_once_leave_one_booked_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    await sync(callers, listed_passenger(flight, "P1", PNR, seat_included=True))
    session, agent = callers.session(PNR), second.agent()
    had = await session.confirm(await session.hold(flight, "20A", "P1"))
    for number in ("20B", "20C", "20D", "20E"):
        wanted = await session.hold(flight, number, "P1")
        results = await at_once(session.confirm(wanted), agent.cancel(had), agent.cancel(wanted), session.cancel(had))
        assert outcomes(results).keys() <= {"OK", "SEAT_INCLUDED_IN_BOOKING", "HOLD_CANCELLED"}, outcomes(results)
        (kept,) = await seats_of(database, flight, "P1")
        had = wanted if kept == number else had
    assert await violations(database, flight) == []


async def test_sync_and_cancel_at_once_leave_a_consistent_seat(
    callers: Callers, second: Callers, flight: str, database: Database
) -> None:
    session = callers.session(PNR)
    for n, number in enumerate(("20A", "20B", "20C", "20D")):
        await sync(callers, listed_passenger(flight, f"P{n}", PNR))
        hold = await session.confirm(await session.hold(flight, number, f"P{n}"))
        cancelled, _ = await at_once(
            session.cancel(hold), sync(second, listed_passenger(flight, f"P{n}", PNR, seat_included=True))
        )
        # Whichever request was first, the response agrees with the rows.
        assert outcomes([cancelled]).keys() <= {"OK", "SEAT_INCLUDED_IN_BOOKING"}
        assert await seats_of(database, flight, f"P{n}") == ([] if isinstance(cancelled, pb.Hold) else [number])
    assert await violations(database, flight) == []


async def seats_of(database: Database, flight: str, passenger_id: str) -> list[str]:
    """Returns the confirmed seats of a passenger."""
    found = await database.fetch(
        """
        SELECT seats.seat_number FROM seats JOIN hold_seats USING (hold_id, flight_id, seat_number)
        WHERE flight_id = $1 AND passenger_id = $2 AND seats.state = 'CONFIRMED' AND hold_seats.state = 'CONFIRMED'
        """,
        flight,
        passenger_id,
    )
    return [row["seat_number"] for row in found]
