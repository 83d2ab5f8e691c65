"""What the supervisor reports to the `skyhigh` command: one file in the stack's home, replaced at each change."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from deploy.local import proc
from deploy.local.secrets import write_private
from deploy.local.supervisor import Status


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
    sources: Mapping[str, str] = field(default_factory=dict)
    """Digests of what the supervisor itself was started from."""
    boot: str = field(default_factory=proc.boot_id)
    """Which boot of the machine the pids are of."""

    @classmethod
    def read(cls, home: Path) -> Report | None:
        """Returns the last report; None if no stack was ever started, or if a crash of the machine damaged the report.

        A report of another version of this code has fields more or less.
        """
        try:
            content: dict[str, Any] = json.loads((home / "stack.json").read_text())
            content["processes"] = [Status(**_known(Status, status)) for status in content["processes"]]
            # One without `boot` is of an older version, and as good as of this boot: its ticks are compared.
            return cls(**{"boot": proc.boot_id(), **_known(cls, content)})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, home: Path) -> None:
        """Replaces the last report. Only its owner may read it."""
        write_private(home / "stack.json", json.dumps(asdict(self), indent=1).encode())

    @property
    def is_alive(self) -> bool:
        """Whether its supervisor still runs."""
        return self.is_of_this_boot and self.start_ticks is not None and proc.start_ticks(self.pid) == self.start_ticks

    @property
    def is_of_this_boot(self) -> bool:
        """Whether its pids can still be those of its processes."""
        return self.boot == proc.boot_id()


def _known(kind: type[Report] | type[Status], content: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in content.items() if name in names}
