"""The supervisor's report to the `skyhigh` command: a file in the stack's home.

The supervisor replaces it at each change.
"""

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
    """The state of a stack that its supervisor wrote last."""

    pid: int
    """The pid of the supervisor."""
    start_ticks: int | None
    addresses: Mapping[str, str]
    """The variables that `skyhigh env` prints. They include passwords."""
    given: Mapping[str, str]
    """The settings that the stack was started with."""
    processes: Sequence[Status] = field(default_factory=list)
    sources: Mapping[str, str] = field(default_factory=dict)
    """Digests of the source that the supervisor itself was started from."""
    boot: str = field(default_factory=proc.boot_id)
    """The boot of the machine to which the pids belong."""

    @classmethod
    def read(cls, home: Path) -> Report | None:
        """Returns the last report; None if there is none, or if it is damaged.

        A crash of the machine can damage it. A report of another version of this code may have other fields: unknown
        ones are ignored, and without a required one the report counts as damaged.
        """
        try:
            content: dict[str, Any] = json.loads((home / "stack.json").read_text())
            content["processes"] = [Status(**_known(Status, status)) for status in content["processes"]]
            # A report without `boot` is of an older version. It may count as one of this boot, because the ticks of its
            # processes are compared too.
            return cls(**{"boot": proc.boot_id(), **_known(cls, content)})
        except (FileNotFoundError, ValueError, TypeError, KeyError):
            return None

    def write(self, home: Path) -> None:
        """Replaces the last report. Only the owner of the file may read it."""
        write_private(home / "stack.json", json.dumps(asdict(self), indent=1).encode())

    @property
    def is_alive(self) -> bool:
        """True if its supervisor still runs."""
        return self.is_of_this_boot and self.start_ticks is not None and proc.start_ticks(self.pid) == self.start_ticks

    @property
    def is_of_this_boot(self) -> bool:
        """True if its pids are of this boot and can still be those of its processes."""
        return self.boot == proc.boot_id()


def _known(kind: type[Report] | type[Status], content: Mapping[str, Any]) -> dict[str, Any]:
    names = {each.name for each in fields(kind)}
    return {name: value for name, value in content.items() if name in names}
