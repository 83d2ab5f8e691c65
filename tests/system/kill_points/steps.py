"""What passes between the tester and the process that it kills: which I/Os count, and at which one the process ends."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, Self

ORDERS_VARIABLE: Final = "SKYHIGH_KILL_ORDERS"
"""Names the file of a process's orders. It counts I/Os from the moment at which the file is there."""
KILLED: Final = 137
"""The exit code of a process that ended at its point."""


class Side(StrEnum):
    """Where in an I/O the process ends: nothing was sent, or the answer has arrived and nothing of ours has seen it."""

    BEFORE = "before"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Step:
    """One I/O of a process, recognized in each run: where the code asks for it, and for which time it does."""

    origin: str
    """`call` for what a call of ours caused; otherwise the name of the background work."""
    port: str
    """`postgres`, `amqp`, `redis`, `grpc`, `http` or `smtp`."""
    what: str
    """The beginning of the statement, the method, the routing key."""
    where: str
    """The functions that wait for it, the innermost first."""
    number: int
    """1 for the first such I/O since the process counts."""

    def __str__(self) -> str:
        return f"{self.origin}: {self.port} {self.what} #{self.number} in {self.where}"


@dataclass(frozen=True, slots=True)
class Io:
    """A step of a calm run, and the sides at which the process can be ended there."""

    step: Step
    only_after: bool
    """A poll that found something. The tester does not know so beforehand; an end before the poll changes as much as an
    end after the step before it."""


@dataclass(frozen=True, slots=True)
class Point:
    """Where a process ends."""

    step: Step
    side: Side

    def __str__(self) -> str:
        return f"{self.side} {self.step}"


@dataclass(frozen=True, slots=True)
class Nth:
    """Where a process ends, for who has not seen a calm run: at its so many-th I/O, whichever that is."""

    number: int
    side: Side

    def __str__(self) -> str:
        return f"{self.side} I/O {self.number}"


@dataclass(frozen=True, slots=True)
class Orders:
    """What a process is to count, where it writes that down, and where it ends."""

    origins: Sequence[str]
    record: str
    """The file that gets a line for each I/O."""
    polls: bool = False
    """Whether the polls of the background work count that find nothing."""
    point: Point | None = None
    nth: Nth | None = None
    """Without both it is a calm run."""

    def give(self, path: Path) -> None:
        """Writes the file whose appearance the process waits for: whole or not at all."""
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
    """Returns each point at which the process of this calm run can end."""
    sides = [(io.step, side) for io in ios for side in Side if not (io.only_after and side is Side.BEFORE)]
    return [Point(step, side) for step, side in sides]


def recorded(path: Path) -> list[Io]:
    """Returns the I/Os that a process wrote down, in the order in which they began."""
    if not path.exists():
        return []
    # The process may have been ended while it wrote the last line.
    lines = [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [Io(step=Step(**io["step"]), only_after=io["only_after"]) for io in map(json.loads, lines)]
