"""The protocol between the tester and the process that it kills.

It says which I/Os count, and at which one the process ends.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

ORDERS_VARIABLE: Final = "SKYHIGH_KILL_ORDERS"
"""The variable with the path of a process's orders. The process counts I/Os as soon as the file exists."""
KILLED: Final = 137
"""The exit code of a process that ended at its point."""


class Side(StrEnum):
    """The place in an I/O where the process ends.

    BEFORE: nothing was sent. AFTER: the response has arrived, and our code has not seen it.
    """

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Step:
    """One I/O of a process, recognised in each run.

    It is known by its place in the code and the number of its execution there.
    """

    origin: str
    """`call` for the work of our calls; otherwise the name of the background work."""
    port: str
    """`postgres`, `amqp`, `redis`, `grpc`, `http` or `smtp`."""
    what: str
    """The beginning of the statement, the method, or the routing key."""
    where: str
    """The functions that wait for it, the innermost first."""
    number: int
    """1 for the first such I/O since the process began to count."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.port} {self.what} #{self.number} in {self.where}"


@dataclass(frozen=True, slots=True)
class Io:
    """A step of a run without a kill, and the sides at which the process can end there."""

    step: Step
    only_after: bool
    """True for a poll that found something.

    The tester does not know beforehand that it will; an end before the poll has the same effect as an end after the
    step before it.
    """


@dataclass(frozen=True, slots=True)
class Point:
    """The step and the side at which a process ends."""

    step: Step
    side: Side

    def __str__(self) -> str:
        return f"{self.side} {self.step}"


@dataclass(frozen=True, slots=True)
class Nth:
    """The end of a process at its nth I/O, whichever it is.

    For testers that have not seen a run without a kill.
    """

    number: int
    side: Side

    def __str__(self) -> str:
        return f"{self.side} I/O {self.number}"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process counts, where it records that, and where it ends."""

    origins: Sequence[str]
    record: str
    """The file that gets a line for each I/O."""
    polls: bool = False
    """Whether polls of the background work that find nothing count."""
    point: Point | None = None
    nth: Nth | None = None
    """Without `point` and `nth` the process is not killed."""

    def give(self, path: Path) -> None:
        """Writes the file for which the process waits. It appears complete or not at all."""
        part = path.with_suffix(".part")
        part.write_text(json.dumps(asdict(self)))
        part.rename(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads what `give` wrote."""
        text: dict[str, Any] = json.loads(path.read_text())
        point, nth = text.pop("point"), text.pop("nth")
        return cls(
            **text,
            point=None if point is None else Point(Step(**point["step"]), Side(point["side"])),
            nth=None if nth is None else Nth(nth["number"], Side(nth["side"])),
        )


def points_of(ios: Sequence[Io]) -> list[Point]:
    """Returns each point at which the process of this run can end."""
    sides = [(io.step, side) for io in ios for side in Side if not (io.only_after and side is Side.BEFORE)]
    return [Point(step, side) for step, side in sides]


def recorded(path: Path) -> list[Io]:
    """Returns the I/Os that a process recorded, in the order in which they began."""
    if not path.exists():
        return []
    # The process may have ended while it wrote the last line.
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Io(step=Step(**io["step"]), only_after=io["only_after"]) for io in map(json.loads, lines)]
