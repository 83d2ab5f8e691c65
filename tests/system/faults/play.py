"""Plays a schedule of faults on a running stack."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from tests.system.faults.act import Unsuitable, acting
from tests.system.faults.schedule import Planned, groups
from tests.system.faults.stack import RunningStack
from tests.waiting import pause


@dataclass(slots=True)
class Played:
    """The course of a fault. Times are of the monotonic clock."""

    planned: Planned
    began: float
    ended: float | None = None
    """The time at which it was undone; None while it lasts."""
    skipped: str = ""
    """Why the fault was not possible on this stack."""
    error: str = ""
    """Why it could not begin or be undone; then the run proves nothing."""


async def _calm() -> None:
    """Does nothing after a group."""


def _unseen(_: Played) -> None:
    """Does nothing when a fault begins or ends."""


async def play(
    stack: RunningStack,
    planned: Sequence[Planned],
    *,
    until: float | None = None,
    played: list[Played] | None = None,
    after_group: Callable[[], Awaitable[None]] = _calm,
    changed: Callable[[Played], None] = _unseen,
) -> list[Played]:
    """Plays the faults.

    Returns the course of each, and appends it to `played` when the fault begins. A group of faults begins at its time,
    but not before the calm seconds after the group before it have passed: on a slow machine all later groups are
    delayed. A group does not begin if it would not be undone at `until`, a time of the monotonic clock. `after_group`
    is awaited after the faults of a group are undone; `changed` is called when a fault begins and when it was undone.
    """
    record = [] if played is None else played
    start = time.monotonic()
    for group in groups(planned):
        ends_seconds = max(each.ends_at_seconds for each in group)
        if until is not None and start + ends_seconds > until:
            break
        await _until(start + group[0].at_seconds)
        async with asyncio.TaskGroup() as acts:
            for each in group:
                acts.create_task(_play_one(stack, each, start, record, changed))
        # If the group took longer than planned, all later ones are delayed.
        start += max(0.0, time.monotonic() - (start + ends_seconds))
        await after_group()
    return record


async def _play_one(
    stack: RunningStack, planned: Planned, start: float, record: list[Played], changed: Callable[[Played], None]
) -> None:
    await _until(start + planned.at_seconds)
    played = Played(planned, time.monotonic())
    record.append(played)
    changed(played)
    try:
        async with acting(planned.fault, stack):
            await _until(played.began + planned.seconds)
    except Unsuitable as reason:
        played.skipped = str(reason)
    except Exception as error:
        played.error = repr(error)
    finally:
        played.ended = time.monotonic()
        changed(played)


async def _until(moment: float) -> None:
    await pause(max(0.0, moment - time.monotonic()))
