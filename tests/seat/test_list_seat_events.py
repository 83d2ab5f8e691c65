"""ListSeatEvents: the ledger of a seat, oldest first, a page at a time (SEAT-15)."""

from __future__ import annotations

from uuid import uuid4

import asyncpg
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller, Callers, refused
from tests.dates import flight_id
from tests.instances import Database


def page(flight: str, seat_number: str = "20A", **more: object) -> pb.ListSeatEventsRequest:
    return pb.ListSeatEventsRequest(flight_id=flight, seat_number=seat_number, **more)  # type: ignore[arg-type]


@pytest.fixture
async def busy(agent: Caller, flight: str) -> str:
    """A flight whose seat 20A was blocked and unblocked 60 times: 120 events."""
    for _ in range(60):
        await agent.BlockSeat(pb.BlockSeatRequest(flight_id=flight, seat_number="20A", reason="BROKEN"))
        await agent.UnblockSeat(pb.UnblockSeatRequest(flight_id=flight, seat_number="20A"))
    return flight


async def test_the_ledger_lists_changes_in_order(callers: Callers, agent: Caller, flight: str, request_id: str) -> None:
    owner = callers.passenger(f"P1:{flight}")
    confirmation_id = str(uuid4())
    hold = await owner.hold(flight, "20A", "P1", request_id=request_id)
    await owner.ConfirmHold(pb.ConfirmHoldRequest(hold_id=hold.hold_id, request_id=confirmation_id))
    await agent.cancel(hold, reason="NO_SHOW")
    answer = await agent.ListSeatEvents(page(flight))
    told = [(e.version, e.from_state, e.to_state, e.hold_id, e.actor, e.reason) for e in answer.events]
    available, held, confirmed = pb.Seat.AVAILABLE, pb.Seat.HELD, pb.Seat.CONFIRMED
    assert told == [
        (1, available, held, hold.hold_id, owner.name, "HELD"),
        (2, held, confirmed, hold.hold_id, owner.name, "CONFIRMED"),
        (3, confirmed, available, hold.hold_id, agent.name, "NO_SHOW"),
    ]
    assert [event.request_id for event in answer.events] == [request_id, confirmation_id, ""]
    assert answer.events[0].time == hold.create_time
    assert {event.seat_number for event in answer.events} == {"20A"}
    assert not answer.next_page_token


async def test_an_unchanged_seat_has_an_empty_ledger(agent: Caller, flight: str) -> None:
    assert await agent.ListSeatEvents(page(flight)) == pb.ListSeatEventsResponse()


async def test_pages_follow_without_gap_or_repeat(agent: Caller, busy: str) -> None:
    versions: list[int] = []
    sizes: list[int] = []
    token = ""
    while True:
        answer = await agent.ListSeatEvents(page(busy, page_size=33, page_token=token))
        versions += [event.version for event in answer.events]
        sizes.append(len(answer.events))
        token = answer.next_page_token
        if not token:
            break
    assert versions == list(range(1, 121))
    assert sizes == [33, 33, 33, 21]


async def test_the_last_page_has_no_token(agent: Caller, busy: str) -> None:
    first = await agent.ListSeatEvents(page(busy, page_size=60))
    second = await agent.ListSeatEvents(page(busy, page_size=60, page_token=first.next_page_token))
    assert (len(second.events), second.next_page_token) == (60, "")


@pytest.mark.parametrize(("asked", "given"), [(0, 50), (1, 1), (100, 100), (101, 100), (2**31 - 1, 100)])
async def test_a_page_has_a_default_and_a_largest_size(agent: Caller, busy: str, asked: int, given: int) -> None:
    assert len((await agent.ListSeatEvents(page(busy, page_size=asked))).events) == given


async def test_a_negative_page_size_is_malformed(agent: Caller, flight: str) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await agent.ListSeatEvents(page(flight, page_size=-1))
    assert refusal.fields == ["page_size"]


async def test_a_page_token_is_bound_to_query_and_caller(
    callers: Callers, agent: Caller, operations: Caller, busy: str
) -> None:
    token = (await agent.ListSeatEvents(page(busy, page_size=1))).next_page_token
    await agent.ListSeatEvents(page(busy, page_size=9, page_token=token))
    for caller, request in (
        (agent, page(busy, "20B", page_token=token)),
        (operations, page(busy, page_token=token)),
        (callers.agent("somebody-else"), page(busy, page_token=token)),
        (agent, page(busy, page_token=token[:-4] + "AAAA")),
        (agent, page(busy, page_token="A" + token[1:] if token[0] != "A" else "B" + token[1:])),
        (agent, page(busy, page_token="no token")),
        (agent, page(busy, page_token="é")),
        (agent, page(busy, page_token="A" * 513)),
    ):
        with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
            await caller.ListSeatEvents(request)
        assert refusal.fields == ["page_token"]


async def test_an_unknown_flight_or_seat_is_not_found(agent: Caller, flight: str) -> None:
    with refused("NOT_FOUND", "SEAT_NOT_FOUND"):
        await agent.ListSeatEvents(page(flight, "31A"))
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await agent.ListSeatEvents(page(flight_id("SH000")))


@pytest.mark.parametrize("statement", ["UPDATE seat_events SET reason = 'X'", "DELETE FROM seat_events"])
async def test_the_ledger_is_append_only(busy: str, database: Database, statement: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await database.execute(f"{statement} WHERE flight_id = $1", busy)
