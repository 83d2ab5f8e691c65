"""Figures about a live system: how late holds were expired, and how much money was taken."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from operations.invariants.payments import MONEY_OF_INTENTS, MONEY_SCHEMAS
from operations.verify.check import one_moment
from services.money import Amount, text_of

if TYPE_CHECKING:
    from services.db import Conn


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long after their `expire_time` the holds were expired (SEAT-10)."""

    expired: int
    p50_seconds: float = 0
    p99_seconds: float = 0
    p999_seconds: float = 0
    later_than_5_s: float = 0
    """A share, 0 to 1."""


@dataclass(frozen=True, slots=True)
class Money:
    """The money taken in one currency, and its fares, fees and refunds, in minor units."""

    currency: str
    taken: int
    fares: int
    fees: int
    given_back: int

    def __str__(self) -> str:
        return (
            f"money: {self._text(self.taken)} taken = {self._text(self.fares)} fares + {self._text(self.fees)} fees "
            f"+ {self._text(self.given_back)} refunds"
        )

    def _text(self, minor_units: int) -> str:
        return text_of(Amount(self.currency, minor_units))


async def lateness(connection: Conn) -> Lateness:
    """Measures how late holds were expired, over all expired holds of the database."""
    async with one_moment(connection):
        row = await connection.fetchrow(
            """
            SELECT count(*) AS expired,
                   percentile_cont(ARRAY[0.5, 0.99, 0.999]) WITHIN GROUP (ORDER BY late) AS percentiles,
                   avg((late > 5)::int)::float8 AS later_than_5_s
            FROM (
                SELECT extract(epoch FROM end_time - expire_time)::float8 AS late
                FROM seat.holds WHERE state = 'EXPIRED'
            ) AS expired_holds
            """
        )
    assert row is not None
    if not row["expired"]:
        return Lateness(0)
    p50, p99, p999 = row["percentiles"]
    return Lateness(row["expired"], p50, p99, p999, row["later_than_5_s"])


async def money(connection: Conn) -> list[Money]:
    """Adds up the money that was ever taken, by currency.

    Returns an empty list if the database lacks the schema of a service that handles money.
    """
    async with one_moment(connection):
        schemas = {row["nspname"] for row in await connection.fetch("SELECT nspname FROM pg_namespace")}
        if not schemas.issuperset(MONEY_SCHEMAS):
            return []
        rows = await connection.fetch(
            f"""
            SELECT currency, sum(taken)::bigint AS taken, sum(fare)::bigint AS fares, sum(fee)::bigint AS fees,
                   sum(given_back)::bigint AS given_back
            FROM ({MONEY_OF_INTENTS}) AS money GROUP BY currency HAVING sum(taken) > 0 ORDER BY currency
            """  # noqa: S608
        )
    return [Money(**row) for row in rows]
