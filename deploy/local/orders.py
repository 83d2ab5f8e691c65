"""Orders of the `skyhigh` command to a running supervisor: to restart processes.

Each order is a file, followed by a signal.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Final
from uuid import uuid4

from deploy.local.report import Report
from deploy.local.secrets import write_private
from deploy.local.supervisor import StartError, Supervisor, log_line

SIGNAL: Final = signal.SIGUSR1


class Orders:
    """The orders of one home.

    They are files and not messages to a socket, because the path of a socket may have at most 107 bytes and the path of
    a home may have more.
    """

    def __init__(self, home: Path) -> None:
        self._folder = home / "orders"

    def restart(self, report: Report, names: list[str]) -> None:
        """Orders a restart of the named processes. Does not wait for it."""
        write_private(self._folder / f"{uuid4()}.json", json.dumps(names).encode())
        os.kill(report.pid, SIGNAL)

    def listen(self) -> asyncio.Event:
        """Returns an event that each new order sets. Deletes the orders to an earlier supervisor.

        It installs the handler of the signal: before this call, the signal of an order would end the process.
        """
        self._take()
        arrived = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(SIGNAL, arrived.set)
        return arrived

    async def carry_out(self, supervisor: Supervisor, arrived: asyncio.Event) -> None:
        """Carries out the orders; runs until it is cancelled."""
        # A lock for each process: a new order for a process that is being restarted waits for the end of that restart.
        turns = {status.name: asyncio.Lock() for status in supervisor.statuses}
        async with asyncio.TaskGroup() as restarts:
            while True:
                await arrived.wait()
                arrived.clear()
                for name in self._take():
                    if name in turns:
                        restarts.create_task(_restart(supervisor, name, turns[name]))

    def _take(self) -> list[str]:
        names: dict[str, None] = {}
        for file in sorted(self._folder.glob("*.json")):
            names |= dict.fromkeys(json.loads(file.read_text()))
            file.unlink()
        return list(names)


async def _restart(supervisor: Supervisor, name: str, turn: asyncio.Lock) -> None:
    async with turn:
        log_line(f"{name} is restarted on request")
        try:
            await supervisor.restart(name)
        except StartError as error:
            log_line(str(error))
