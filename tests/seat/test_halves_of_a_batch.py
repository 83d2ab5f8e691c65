"""11.15: callers of a batch's committed part get their response.

The outcome of the rest of the batch does not change it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, cast
from uuid import uuid4

import asyncpg
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.inventory import Inventory
from seat_service.refusals import LapsedHoldConflict
from services.db import GuardMissed
from services.errors import Refusal


class Halves(Inventory):
    """An inventory whose transactions after the first one end as a test decides.

    The first one returns a hold for each request, but LapsedHoldConflict for those named `late…`.
    """

    def __init__(self, second: Sequence[Exception | list[pb.Hold | Refusal]], unended: Exception | None = None) -> None:
        self.second = [*second]
        self.unended = unended
        self.runs: list[list[str]] = []

    async def _transact(self, requests: Sequence[Any], **_: Any) -> Any:
        self.runs.append([*requests])
        if len(self.runs) == 1:
            return [
                LapsedHoldConflict("F", "5A", [uuid4()]) if each.startswith("late") else held(each) for each in requests
            ]
        outcome = self.second.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def _expire(self, hold_ids: Any) -> None:
        if self.unended is not None:
            error, self.unended = self.unended, None
            raise error


def held(name: str) -> pb.Hold:
    return pb.Hold(hold_id=name)


async def run(inventory: Halves, *requests: str) -> list[Any]:
    return cast("list[Any]", await inventory._past_lapsed_holds(cast("Any", requests), transition=cast("Any", None)))


LOCKED: Final = asyncpg.LockNotAvailableError("canceling statement due to lock timeout")


async def test_an_unexpirable_lapsed_hold_refuses_only_its_request() -> None:
    inventory = Halves([[held("late 2")]], unended=LOCKED)
    assert await run(inventory, "late 1", "free", "late 2") == [LOCKED, held("free"), held("late 2")]


async def test_committed_requests_are_not_repeated_after_the_rest_fails() -> None:
    inventory = Halves([LOCKED])
    assert await run(inventory, "late 1", "free", "late 2") == [LOCKED, held("free"), LOCKED]
    assert inventory.runs[1:] == [["late 1", "late 2"]]


async def test_conflicting_batched_requests_run_one_by_one() -> None:
    broken = ValueError("one bad request")
    inventory = Halves([GuardMissed(), GuardMissed(), [held("late 1")], broken])
    assert await run(inventory, "late 1", "free", "late 2") == [held("late 1"), held("free"), broken]
    assert inventory.runs[1:] == [["late 1", "late 2"], ["late 1"], ["late 1"], ["late 2"]]
