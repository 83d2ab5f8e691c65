"""How often somebody may try to log in: for a locator and for an address, within a sliding window (CHK-2).

A key's row holds its latest tries, as many as are allowed; one more is allowed while there are fewer, or when the
oldest of them is out of the window. So the window is exact, and a row never grows.
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
# A home or a phone has a whole /64 of addresses to choose from.


@dataclass(frozen=True, slots=True)
class Try:
    """A try that counts until it is given back: when it was noted, by key."""

    times: Mapping[str, datetime]


class LoginLimits:
    """Counts the tries of all processes, in the database."""

    def __init__(self, pool: Pool, *, per_pnr: int, per_address: int, window: timedelta) -> None:
        self._pool = pool
        self._per_pnr = per_pnr
        self._per_address = per_address
        self._window = window

    async def take(self, *, pnr: str, address: str) -> Try:
        """Notes a try for both keys, or for none. Raises TOO_MANY_TRIES with the time to wait."""
        most = {f"address:{network_of(address)}": self._per_address, f"pnr:{pnr}": self._per_pnr}
        async with db.transaction(self._pool) as conn:
            # Whoever is beyond the limit anyway waits for nobody's lock and writes nothing.
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
                # The try that was in the way was given back this moment.
                raise db.GuardMissed
        return Try({row["key"]: row["try_time"] for row in rows})

    async def give_back(self, noted: Try) -> None:
        """Forgets a try that was right."""
        async with db.transaction(self._pool) as conn:
            for key, try_time in sorted(noted.times.items()):
                await conn.execute(
                    "UPDATE login_tries SET tries = array_remove(tries, $2) WHERE key = $1", key, try_time
                )

    async def forget(self) -> None:
        """Deletes rows whose tries are all out of the window, again and again until cancelled."""
        while True:
            with contextlib.suppress(*db.AWAY):
                await db.in_batches(self._pool, self.forget_old)
            await asyncio.sleep(FORGET_SECONDS)

    async def forget_old(self, conn: Conn, *, limit: int) -> int:
        """Deletes up to `limit` rows whose tries are all out of the window, oldest first; returns how many."""
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
    """Returns what is counted as one address: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        return counted_address(address)
    except ValueError:
        return address
