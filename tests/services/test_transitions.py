"""A mutation: one transition in one transaction, with one effect per key."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from uuid import UUID, uuid4

import pytest
from google.protobuf.wrappers_pb2 import StringValue

from services import db
from services.batch import Batcher
from services.db import Conn, GuardMissed, Pool
from services.errors import AlreadyExists, Unavailable
from services.idempotency import RequestKey
from services.timers import set_timer
from services.transitions import Transitions

Transition = Callable[[Conn], Awaitable[StringValue]]


def key(of: UUID, fingerprint: bytes = b"same") -> RequestKey:
    return RequestKey("passenger:XK4T7Q", of, fingerprint)


async def effects(pool: Pool, name: str) -> int:
    async with db.transaction(pool) as conn:
        count: int = await conn.fetchval("SELECT count(*) FROM timers WHERE name = $1", name)
        return count


def effect(name: str) -> tuple[list[int], Transition]:
    """Returns a transition that inserts one row at each execution, and the list of its executions."""
    runs: list[int] = []

    async def transition(conn: Conn) -> StringValue:
        runs.append(1)
        await set_timer(conn, name, str(uuid4()))
        return StringValue(value=f"answer {len(runs)}")

    return runs, transition


async def test_concurrent_repeats_have_one_effect_and_one_response(pool: Pool) -> None:
    told: list[int] = []
    transitions = Transitions(pool, tell=lambda: told.append(1))
    name, request = f"test-{uuid4()}", key(uuid4())
    _, transition = effect(name)
    answers = await asyncio.gather(*(transitions.run(request, StringValue, transition) for _ in range(50)))
    assert len({answer.value for answer in answers}) == 1
    assert await effects(pool, name) == 1
    assert len(told) == 1


async def test_the_key_with_another_body_is_refused(pool: Pool) -> None:
    transitions = Transitions(pool, tell=lambda: None)
    name, request_id = f"test-{uuid4()}", uuid4()
    _, transition = effect(name)
    await transitions.run(key(request_id), StringValue, transition)
    with pytest.raises(AlreadyExists) as refusal:
        await transitions.run(key(request_id, b"other"), StringValue, transition)
    assert refusal.value.reason == "IDEMPOTENCY_KEY_REUSED"
    assert await effects(pool, name) == 1


async def test_a_refusal_is_rolled_back_and_not_stored(pool: Pool) -> None:
    transitions = Transitions(pool, tell=lambda: None)
    name, request = f"test-{uuid4()}", key(uuid4())

    async def refuse(conn: Conn) -> StringValue:
        await set_timer(conn, name, "half")
        raise AlreadyExists("TAKEN", "taken")

    with pytest.raises(AlreadyExists):
        await transitions.run(request, StringValue, refuse)
    assert await effects(pool, name) == 0
    assert await transitions.known(request, StringValue) is None
    _, transition = effect(name)
    assert (await transitions.run(request, StringValue, transition)).value == "answer 1"


async def test_a_lost_race_is_evaluated_again(pool: Pool) -> None:
    transitions = Transitions(pool, tell=lambda: None)
    name = f"test-{uuid4()}"
    runs, transition = effect(name)

    async def overtaken(conn: Conn) -> StringValue:
        answer = await transition(conn)
        if len(runs) < 3:
            raise GuardMissed
        return answer

    assert (await transitions.run(None, StringValue, overtaken)).value == "answer 3"
    assert await effects(pool, name) == 1


async def test_a_race_lost_repeatedly_is_reported(pool: Pool) -> None:
    transitions = Transitions(pool, tell=lambda: None)

    async def overtaken(conn: Conn) -> StringValue:
        raise GuardMissed

    with pytest.raises(GuardMissed):
        await transitions.run(None, StringValue, overtaken)


async def test_a_transition_whose_session_ended_is_run_again(pool: Pool) -> None:
    transitions = Transitions(pool, tell=lambda: None)
    name = f"test-{uuid4()}"
    runs, transition = effect(name)

    async def interrupted(conn: Conn) -> StringValue:
        answer = await transition(conn)
        if len(runs) == 1:
            await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return answer

    assert (await transitions.run(key(uuid4()), StringValue, interrupted)).value == "answer 2"
    assert await effects(pool, name) == 1


async def test_a_session_that_always_ends_makes_the_call_unavailable(pool: Pool) -> None:
    async def interrupted(conn: Conn) -> StringValue:
        await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        raise AssertionError

    with pytest.raises(Unavailable):
        await Transitions(pool, tell=lambda: None).run(key(uuid4()), StringValue, interrupted)


async def test_a_batch_whose_session_ended_is_run_again(pool: Pool) -> None:
    name, runs = f"test-{uuid4()}", list[int]()

    async def run(requests: Sequence[str]) -> list[int]:
        async with db.transaction(pool) as conn:
            runs.append(len(requests))
            await set_timer(conn, name, requests[0])
            if len(runs) == 1:
                await conn.execute("SELECT pg_terminate_backend(pg_backend_pid())")
        return [len(runs)] * len(requests)

    batcher: Batcher[str, int] = Batcher("test", run)
    assert set(await asyncio.gather(batcher.submit("a"), batcher.submit("b"))) == {2}
    assert runs == [2, 2]
    assert await effects(pool, name) == 1
