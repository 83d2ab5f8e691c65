"""Plays a seed against a running stack.

Many clients play concurrently, each with its own random generator.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from tests.system.airline import Airline
from tests.system.history import History
from tests.system.lives import LIVES, Life
from tests.system.players import Manners, Player, Stack, Wires
from tests.waiting import pause

LOOK_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Generator:
    """Creates the clients of a run from its seed."""

    seed: int
    lives: Mapping[type[Life], int] = field(default_factory=lambda: LIVES)
    manners: Manners = field(default_factory=Manners)

    def clients(self, airline: Airline, wires: Wires, record: History) -> list[Life]:
        """Returns the clients.

        The choices of each depend only on the seed and the client's name.
        """
        clients: list[Life] = []
        for kind, count in self.lives.items():
            for number in range(1, count + 1):
                name = f"{kind.__name__.lower()}-{number}"
                dice = random.Random(f"{self.seed}/{name}")
                player = Player(name, len(clients), dice=dice, wires=wires, record=record, manners=self.manners)
                clients.append(kind(player, airline))
        return clients


async def play(
    stack: Stack,
    seed: int,
    record: History,
    *,
    seconds: float | None = None,
    operations: int | None = None,
    generator: Generator | None = None,
    run: str | None = None,
) -> Airline:
    """Plays for so many seconds or operations, whichever ends first.

    `run` labels the names of flights and agents. By default it is random, so that a seed can be played repeatedly on
    the same stack. Returns the airline in its last state.
    """
    generator = generator or Generator(seed)
    airline = Airline(run or secrets.token_hex(3), seed)
    wires = Wires(stack)
    try:
        tasks = [asyncio.create_task(client.run()) for client in generator.clients(airline, wires, record)]
        ending = asyncio.create_task(_until(airline, record, seconds, operations))
        try:
            # An exception in a client is a defect of the tester, so it ends the run.
            done, _ = await asyncio.wait([ending, *tasks], return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            airline.ending = True
            ending.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(ending, *tasks, return_exceptions=True)
    finally:
        await wires.close()
    return airline


async def _until(airline: Airline, record: History, seconds: float | None, operations: int | None) -> None:
    """Tells all clients to end when the run is long enough."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while (seconds is None or loop.time() - began < seconds) and (operations is None or len(record) < operations):
        await pause(LOOK_SECONDS)
    airline.ending = True
