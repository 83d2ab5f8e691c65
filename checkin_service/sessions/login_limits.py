"""Limits login attempts per locator and per address, in a sliding window (CHK-2).

The row of a key holds the times of its latest attempts, at most as many as the limit. Another attempt is accepted while
there are fewer, or once the oldest of them is out of the window. So the limit is exact, and a row never grows.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from checkin_service import refusals
from services import db
from services.addresses import counted_address
from services.db import Conn, Pool

FORGET_SECONDS: Final = 60


@dataclass(frozen=True, slots=True)
class Attempt:
    """A recorded attempt, with its time by key; it counts until it is deleted."""

    times: Mapping[str, datetime]


class LoginLimits:
    """Counts the login attempts of all processes, in the database."""

    def __init__(self, pool: Pool, *, per_pnr: int, per_address: int, window: timedelta) -> None:
        self._pool = pool
        self._per_pnr = per_pnr
        self._per_address = per_address
        self._window = window

    async def record(self, *, pnr: str, address: str) -> Attempt:
        """Records an attempt for both keys, or for neither.

        Raises TOO_MANY_TRIES with the time to wait.
        """
        most = {f"address:{network_of(address)}": self._per_address, f"pnr:{pnr}": self._per_pnr}
        async with db.transaction(self._pool) as conn:
            # Checked first, so that a caller beyond the limit waits for no lock and writes nothing.
            await self._refuse_if_full(conn, most)
            rows = await conn.fetch(
                """
                INSERT INTO login_tries (key, most, tries)
                SELECT key, most, ARRAY[clock_timestamp()]
                FROM unnest($1::text[], $2::smallint[]) AS asked (key, most) ORDER BY key
                ON CONFLICT (key) DO UPDATE
                SET most = excluded.most,
                    tries = (login_tries.tries || clock_timestamp())
                            [cardinality(login_tries.tries) + 2 - excluded.most:]
                WHERE coalesce(
                    login_tries.tries[cardinality(login_tries.tries) + 1 - excluded.most]
                        <= clock_timestamp() - $3::interval,
                    true)
                RETURNING key, tries[cardinality(tries)] AS try_time
                """,
                list(most),
                list(most.values()),
                self._window,
            )
            if len(rows) < len(most):
                await self._refuse_if_full(conn, most)
                # The attempt that reached the limit has just been deleted: the caller gets UNAVAILABLE and retries.
                raise db.GuardMissed
        return Attempt({row["key"]: row["try_time"] for row in rows})

    async def delete(self, noted: Attempt) -> None:
        """Deletes a recorded attempt, because the login was right."""
        async with db.transaction(self._pool) as conn:
            for key, try_time in sorted(noted.times.items()):
                await conn.execute(
                    "UPDATE login_tries SET tries = array_remove(tries, $2) WHERE key = $1", key, try_time
                )

    async def forget(self) -> None:
        """Deletes old rows every FORGET_SECONDS, until cancelled."""
        while True:
            with contextlib.suppress(*db.UNREACHABLE):
                await db.in_batches(self._pool, self.forget_old)
            await asyncio.sleep(FORGET_SECONDS)

    async def forget_old(self, conn: Conn, *, limit: int) -> int:
        """Deletes up to `limit` rows with no attempt in the window, oldest first.

        Returns the number of deleted rows.
        """
        status = await conn.execute(
            """
            WITH old AS MATERIALIZED (
                SELECT key FROM login_tries
                WHERE coalesce(tries[cardinality(tries)], '-infinity') <= statement_timestamp() - $1::interval
                ORDER BY coalesce(tries[cardinality(tries)], '-infinity') LIMIT $2 FOR UPDATE SKIP LOCKED
            )
            DELETE FROM login_tries USING old WHERE login_tries.key = old.key
            """,
            self._window,
            limit,
        )
        return int(status.split()[-1])

    async def _refuse_if_full(self, conn: Conn, most: Mapping[str, int]) -> None:
        wait_seconds = await conn.fetchval(
            """
            SELECT extract(epoch FROM
                max(tries[cardinality(tries) + 1 - asked.most]) + $3::interval - clock_timestamp())::float8
            FROM unnest($1::text[], $2::smallint[]) AS asked (key, most) JOIN login_tries USING (key)
            WHERE tries[cardinality(tries) + 1 - asked.most] > clock_timestamp() - $3::interval
            """,
            list(most),
            list(most.values()),
            self._window,
        )
        if wait_seconds is not None:
            raise refusals.too_many_tries(max(wait_seconds, 0))


def network_of(address: str) -> str:
    """Returns what counts as one address: an IPv4 address, or an IPv6 /64 network.

    A home or a phone can choose from all addresses of its /64. A text that is no address is returned as it is.
    """
    try:
        return counted_address(address)
    except ValueError:
        return address
