"""The baseline of P2: pgbench on a database of its own in the same Postgres.

The database has the tables of the seat service.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.stack import BenchStack
from deploy.local.process import LOOPBACK
from deploy.local.servers.programs import postgres_programs

DATABASE: Final = "baseline"
SCRIPT: Final = Path(__file__).with_name("hold_one_seat.pgbench.sql")
MIGRATIONS: Final = ("services", "seat_service")
CLIENTS: Final = 8
SEATS: Final = 180
# More than Postgres does on two cores; each turn has seats for so many holds.
MOST_HOLDS_PER_SECOND: Final = 20_000


@dataclass(slots=True)
class Pgbench:
    """A pgbench baseline that holds one seat per transaction, never the same seat twice."""

    stack: BenchStack
    flights: int
    turn_seats: int
    turns: int = 0

    @classmethod
    async def prepare(cls, stack: BenchStack, *, turns: int, seconds: float) -> Pgbench:
        """Creates the database, its tables by the services' migrations, and its seats."""
        turn_seats = int(seconds * MOST_HOLDS_PER_SECOND)
        flights = -(-turns * turn_seats // SEATS)
        connection = await stack.superuser("postgres")
        try:
            await connection.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            await connection.close()
        connection = await stack.superuser(DATABASE)
        try:
            for statements in _migrations():
                await connection.execute(statements)
            await connection.execute(
                f"""
                INSERT INTO seats (flight_id, seat_number, ordinal)
                SELECT 'P' || flight, (seat / 6 + 1) || substr('ABCDEF', seat % 6 + 1, 1), seat
                FROM generate_series(0, {flights} - 1) AS flight, generate_series(0, {SEATS} - 1) AS seat
                """
            )
            await connection.execute("VACUUM (ANALYZE) seats")
        finally:
            await connection.close()
        return cls(stack, flights, turn_seats)

    async def holds_per_second(self, seconds: float) -> float:
        """Runs one turn. Raises RuntimeError if pgbench fails or a transaction finds its seat taken."""
        first = self.turns * self.turn_seats // CLIENTS
        self.turns += 1
        before = await self._holds()
        process = await asyncio.create_subprocess_exec(
            program(),
            *f"--no-vacuum --protocol=prepared --client={CLIENTS} --jobs=2 --time={max(1, round(seconds))}".split(),
            *(f"--define={name}={value}" for name, value in self._variables(first).items()),
            f"--file={SCRIPT}",
            DATABASE,
            env={
                **os.environ,
                "PGHOST": LOOPBACK,
                "PGPORT": str(self.stack.local.ports["postgres"]),
                "PGUSER": "postgres",
                "PGPASSWORD": self.stack.superuser_password,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, complaint = await process.communicate()
        tps = re.search(rb"tps = ([\d.]+)", output)
        transactions = re.search(rb"actually processed: (\d+)", output)
        if process.returncode or tps is None or transactions is None:
            raise RuntimeError(complaint.decode().strip() or "pgbench failed")
        held = await self._holds() - before
        if held != int(transactions[1]):
            raise RuntimeError(f"pgbench held {held} seats in {int(transactions[1])} transactions")
        return float(tps[1])

    def _variables(self, first: int) -> dict[str, int]:
        return {"n": first, "clients": CLIENTS, "flights": self.flights}

    async def _holds(self) -> int:
        connection = await self.stack.superuser(DATABASE)
        try:
            return int(await connection.fetchval("SELECT count(*) FROM holds"))
        finally:
            await connection.close()


def _migrations() -> Iterator[str]:
    root = Path(__file__).resolve().parents[1]
    for package in MIGRATIONS:
        for file in sorted((root / package / "migrations").glob("*.sql")):
            yield file.read_text()


def program() -> str:
    """Returns the path of pgbench. Raises RuntimeError if it is not installed."""
    folder = postgres_programs()
    found = shutil.which("pgbench") or (str(folder / "pgbench") if folder is not None else None)
    if found is None or not Path(found).exists():
        raise RuntimeError("pgbench is not installed")
    return found
