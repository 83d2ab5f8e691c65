"""What the supervisor tells the `skyhigh` command: one file in the stack's home, replaced at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.secrets import write_private
from deploy.local.supervisor import Status, start_ticks


@dataclass(slots=True)
class Report:
    """A stack as its supervisor last knew it."""

    pid: int
    """The supervisor's."""
    start_ticks: int | None
    addresses: Mapping[str, str]
    """What `skyhigh env` prints. Has passwords."""
    given: Mapping[str, str]
    """The settings that the stack was started with."""
    processes: Sequence[Status] = field(default_factory=list)

    @classmethod
    def read(cls, home: Path) -> Report | None:
        """Returns the last report, or None where no stack was ever started."""
        try:
            content: dict[str, Any] = json.loads((home / "stack.json").read_text())
        except FileNotFoundError:
            return None
        content["processes"] = [Status(**status) for status in content["processes"]]
        return cls(**content)

    def write(self, home: Path) -> None:
        """Replaces the last report. Only its owner may read it."""
        write_private(home / "stack.json", json.dumps(asdict(self), indent=1).encode())

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor still runs."""
        return self.start_ticks is not None and start_ticks(self.pid) == self.start_ticks
