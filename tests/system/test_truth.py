"""A real seat service under many concurrent clients has no violation.

Its history is read correctly.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import grpc
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as pb

from tests.callers import Caller
from tests.conftest import World
from tests.dates import new_flight_id
from tests.instances import Instance, instance, own_database
from tests.system import checks, truth
from tests.system.history import History, Operation, outcome_of
from tests.system.truth import Truth

SEATS = ("20A", "20B", "21A", "21B")
CLIENTS = 6
CALLS = 30


class Recorder:
    """A client that records its calls."""

    def __init__(self, caller: Caller, history: History, seed: int) -> None:
        self._caller = caller
        self._history = history
        self.chance = random.Random(seed)

    def key(self) -> str:
        """Draws a random key."""
        return str(UUID(int=self.chance.getrandbits(128), version=4))

    async def __call__(self, call: str, request: Any) -> Any:
        """Makes a call; returns the response, or None if the call was refused."""
        operation = self._history.begin(
            client=self._caller.name, principal=self._caller.name, call=call, request=request
        )
        try:
            answer = await getattr(self._caller, call)(request)
        except grpc.aio.AioRpcError as error:
            self._history.fail(operation, error)
            return None
        self._history.end(operation, "ok", answer=answer)
        return answer


async def play(client: Recorder, flight_id: str) -> None:
    """Plays a customer or an agent that holds, changes and cancels the same few seats as all others."""
    agent = client._caller.name.startswith("agent")
    for _ in range(CALLS):
        chosen = client.chance.sample(SEATS, client.chance.randint(1, 2))
        seats = [
            pb.SeatAssignment(flight_id=flight_id, seat_number=each, passenger_id=f"P-{client.key()}")
            for each in chosen
        ]
        key = client.key() if client.chance.random() < 0.7 else ""
        held = await client("HoldSeats", pb.HoldSeatsRequest(seats=seats, request_id=key))
        if key and client.chance.random() < 0.3:
            await client("HoldSeats", pb.HoldSeatsRequest(seats=seats, request_id=key))
        await client("GetSeatMap", pb.GetSeatMapRequest(flight_id=flight_id))
        if held is not None:
            await client("GetHold", pb.GetHoldRequest(hold_id=held.hold_id))
            if agent and client.chance.random() < 0.5:
                await client("ConfirmHold", pb.ConfirmHoldRequest(hold_id=held.hold_id, request_id=client.key()))
            elif client.chance.random() < 0.5:
                other = pb.SeatAssignment(flight_id=flight_id, seat_number="22C", passenger_id=seats[0].passenger_id)
                request = pb.ChangeHoldSeatsRequest(hold_id=held.hold_id, seats=[other], request_id=client.key())
                await client("ChangeHoldSeats", request)
            await client("CancelHold", pb.CancelHoldRequest(hold_id=held.hold_id, request_id=client.key()))
        elif agent:
            on_seat = {"flight_id": flight_id, "seat_number": chosen[0]}
            await client("BlockSeat", pb.BlockSeatRequest(**on_seat, reason="BROKEN"))
            await client("UnblockSeat", pb.UnblockSeatRequest(**on_seat))
            await client("ListSeatEvents", pb.ListSeatEventsRequest(**on_seat, page_size=100))


@pytest.fixture(scope="module")
async def served(world: World) -> AsyncIterator[Instance]:
    """Yields a seat service with a database of its own, to which no other test has written."""
    async with instance(world, database_url=await own_database(world)) as service:
        yield service


def owner_url(world: World, served: Instance) -> str:
    """Returns the database URL of the owner of all schemas."""
    return f"{world.servers.database_url().rpartition('/')[0]}/{served.database_url.rpartition('/')[2]}"


@pytest.fixture(scope="module")
async def played(world: World, served: Instance, tmp_path_factory: pytest.TempPathFactory) -> tuple[History, Truth]:
    """Returns the clients' history, read back from its file, and the true state."""
    path = tmp_path_factory.mktemp("system") / "history.jsonl"
    flight_id = new_flight_id("ST")
    await served.callers.operations().provision(flight_id)
    callers = [served.callers.agent(f"agent-{n}") if n % 2 else served.callers.customer() for n in range(CLIENTS)]
    with History(path, seed=1) as history:
        await asyncio.gather(*(play(Recorder(each, history, n), flight_id) for n, each in enumerate(callers)))
        # No other client wants this seat, so the history always has a successful call and its repeat.
        alone = Recorder(served.callers.customer(), history, CLIENTS)
        seat = pb.SeatAssignment(flight_id=flight_id, seat_number="28F", passenger_id=f"P-{alone.key()}")
        request = pb.HoldSeatsRequest(seats=[seat], request_id=alone.key())
        assert await alone("HoldSeats", request) == await alone("HoldSeats", request)
        # The same for a block that changes a free seat.
        desk = Recorder(served.callers.agent("agent-alone"), history, CLIENTS + 1)
        on_seat = {"flight_id": flight_id, "seat_number": "28E"}
        assert await desk("BlockSeat", pb.BlockSeatRequest(**on_seat, reason="BROKEN")) is not None
    loaded = History.load(path)
    assert [each for each in loaded if each.outcome == "unknown"] == []
    return loaded, await truth.read(owner_url(world, served))


def test_real_history_has_no_violation(played: tuple[History, Truth]) -> None:
    history, found = played
    assert len(history) > CLIENTS * CALLS
    assert {"ok", "refused"} <= {each.outcome for each in history}
    assert any(each.reason == "SEAT_TAKEN" for each in history)
    assert [str(each) for each in checks.run(history, found)] == []


def planted(history: History, wanted: str) -> tuple[History, Operation]:
    """Returns a copy of the history for changes, and a late successful operation of an RPC in it."""
    copy = History()
    copy.layouts, copy.marks = history.layouts, history.marks
    copy.operations = [replace(each) for each in history]
    return copy, [each for each in copy if each.call == wanted and each.ok][-1]


def found_by(history: History, found: Truth) -> set[str]:
    """Returns the names of the checks that find something."""
    return {each.check for each in checks.run(history, found)}


def test_lost_hold_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    _, operation = planted(history, "HoldSeats")
    assert operation.answer is not None
    hold_id = operation.answer["hold_id"]
    without = replace(found, holds=[each for each in found.holds if each.hold_id != hold_id])
    assert found_by(history, without) == {"acknowledged"}


def test_hold_of_half_of_its_seats_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    whole = next(each for each in history.of_calls("HoldSeats") if each.ok and len(each.request["seats"]) == 2)
    assert whole.answer is not None
    half = next(each for each in found.events_of_hold[whole.answer["hold_id"]] if each.to_state == "HELD")
    # As if the seat belonged to another hold.
    events = [replace(each, hold_id=str(UUID(int=0))) if each == half else each for each in found.seat_events]
    assert {"atomicity", "acknowledged"} <= found_by(history, replace(found, seat_events=events))


def test_refused_call_with_an_effect_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    copy, operation = planted(history, "BlockSeat")
    operation.outcome, operation.code, operation.reason, operation.answer = "refused", "ABORTED", "SEAT_OCCUPIED", {}
    assert "refusals" in found_by(copy, found)


def test_change_without_a_request_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    copy, operation = planted(history, "CancelHold")
    copy.operations.remove(operation)
    assert "refusals" in found_by(copy, found)


def test_response_outside_its_call_time_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    copy, operation = planted(history, "GetHold")
    begun = history.operations[0].invoked
    operation.invoked, operation.returned = begun - 2, begun - 1
    assert "linearizability" in found_by(copy, found)
    copy, operation = planted(history, "ListSeatEvents")
    assert operation.answer is not None
    operation.answer = {**operation.answer, "events": operation.answer["events"][:-1]}
    operation.invoked, operation.returned = operation.invoked + 100, (operation.returned or 0) + 100
    assert "linearizability" in found_by(copy, found)


def test_map_that_decreases_or_differs_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    copy, operation = planted(history, "GetSeatMap")
    assert operation.answer is not None
    operation.answer = {**operation.answer, "version": "1"}
    assert found_by(copy, found) == {"versions"}
    copy, operation = planted(history, "GetSeatMap")
    assert operation.answer is not None
    states = operation.answer["states"]
    operation.answer = {**operation.answer, "states": states[:-1] + ("C" if states[-1] == "A" else "A")}
    assert found_by(copy, found) == {"versions"}


def test_repeat_with_another_response_is_found(played: tuple[History, Truth]) -> None:
    history, found = played
    copy, _ = planted(history, "HoldSeats")
    repeats = next(
        operations
        for operations in copy.by_key().values()
        if len(operations) == 2 and all(each.ok and each.call == "HoldSeats" for each in operations)
    )
    assert repeats[1].answer is not None
    repeats[1].answer = {**repeats[1].answer, "extensions_left": 1}
    assert found_by(copy, found) == {"idempotency"}


async def test_schema_with_missing_columns_is_read(world: World) -> None:
    url = await own_database(world)
    owner = f"{world.servers.database_url().rpartition('/')[0]}/{url.rpartition('/')[2]}"
    conn = await asyncpg.connect(owner)
    await conn.execute(
        """
        ALTER TABLE booking.bookings DROP COLUMN refund_minor_units CASCADE;
        DROP TABLE seat.departures;
        INSERT INTO waitlist.skips (entry_id, seat_number, reason, end_time)
        VALUES ('00000000-0000-4000-8000-000000000000', '1A', 'TAKEN', 'infinity');
        """
    )
    await conn.close()
    found = await truth.read(owner)
    assert found.departures == []
    assert [(each.entry_id, each.seat_number) for each in found.skips] == [
        ("00000000-0000-4000-8000-000000000000", "1A")
    ]


def test_outcome_of_a_lost_connection_is_unknown() -> None:
    lost = grpc.aio.AioRpcError(
        grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata(), "connection reset"
    )
    assert outcome_of(lost)[:3] == ("unknown", "UNAVAILABLE", None)


def test_history_file_of_an_interrupted_run_is_read(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path, seed=7)
    operation = history.begin(
        client="c", principal="agent:a", call="HoldSeat", request={"flight_id": "F"}, request_id="K"
    )
    history.mark("fault", "redis is killed")
    history.close()
    loaded = History.load(path)
    assert loaded.about["seed"] == 7
    assert [each.text for each in loaded.marks] == ["redis is killed"]
    assert [(each.request_id, each.outcome, each.end) for each in loaded] == [("k", "unknown", float("inf"))]
    assert operation.returned is None
