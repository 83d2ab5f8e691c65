"""The cost of a statement in rows read and buffers touched.

Neither depends on how busy the machine is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg

from services.db import Conn, Pool

# Buffers (pages) that a statement may touch; a hold of one seat writes five tables and their indexes.
MOST_BUFFERS = 250
# Rows that one node of a plan may read, including those that it filters out.
MOST_ROWS = 40


@dataclass
class Costing:
    """A connection that runs each statement with EXPLAIN ANALYZE first and keeps the plan."""

    conn: Conn
    plans: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def _explain(self, query: str, arguments: tuple[Any, ...]) -> None:
        # Only the second run counts. In the first run Postgres may plan the statements inside a function. The buffers
        # that it reads from a catalog that this session has not cached, or no longer since an autovacuum, count as the
        # function's: up to hundreds of pages.
        for _ in range(2):
            savepoint = self.conn.transaction()
            await savepoint.start()
            text = await self.conn.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING off, FORMAT json) {query}", *arguments)
            await savepoint.rollback()
        self.plans.append((query, json.loads(text)[0]["Plan"]))

    async def fetch(self, query: str, *arguments: Any) -> list[asyncpg.Record]:
        await self._explain(query, arguments)
        return await self.conn.fetch(query, *arguments)

    async def fetchrow(self, query: str, *arguments: Any) -> asyncpg.Record | None:
        await self._explain(query, arguments)
        return await self.conn.fetchrow(query, *arguments)

    async def fetchval(self, query: str, *arguments: Any) -> Any:
        await self._explain(query, arguments)
        return await self.conn.fetchval(query, *arguments)

    async def execute(self, query: str, *arguments: Any) -> str:
        await self._explain(query, arguments)
        return await self.conn.execute(query, *arguments)

    def transaction(self) -> Any:
        return self.conn.transaction()

    def expect_bounded(self, *, buffers: int = MOST_BUFFERS, rows: int = MOST_ROWS) -> None:
        """Fails with the plan of the first statement that exceeds a limit, and forgets the plans."""
        assert self.plans
        for query, plan in self.plans:
            read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            shown = "\n".join([query, *(summary(node) for node in nodes(plan))])
            assert read <= buffers, f"{read} buffers\n{shown}"
            assert max(rows_of(node) for node in nodes(plan)) <= rows, shown
        self.plans.clear()

    def expect_look_ups(self, table: str) -> None:
        """Fails with the plan of the first statement that scans a whole table or a whole index of it."""
        for query, plan in self.plans:
            shown = "\n".join([query, *(summary(node) for node in nodes(plan))])
            for node in nodes(plan):
                # A bitmap index scan does not name its table, so it is checked for every table.
                of_table = node.get("Relation Name", table) == table
                whole = "Index Name" in node and "Index Cond" not in node
                assert not (of_table and (whole or node["Node Type"] == "Seq Scan")), shown


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns all nodes of a plan."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


def rows_of(node: dict[str, Any]) -> int:
    """Returns the number of rows that a node read, including those that it filtered out."""
    thrown_away = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + thrown_away) * node["Actual Loops"])


def summary(node: dict[str, Any]) -> str:
    """Describes a node in one line."""
    about = (node.get(key) for key in ("Relation Name", "Index Name", "Index Cond", "Filter", "Function Name"))
    buffers = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    return f"{node['Node Type']}: {rows_of(node)} rows, {buffers} buffers {[each for each in about if each]}"


class OneConnection:
    """A pool that has only this connection."""

    def __init__(self, conn: Costing) -> None:
        self._conn = conn

    async def acquire(self, *, timeout: float) -> Costing:  # noqa: ASYNC109
        del timeout
        return self._conn

    async def release(self, conn: Costing) -> None:
        assert conn is self._conn


def pool_of(conn: Costing) -> Pool:
    """Returns a pool that lends only this connection."""
    return cast("Pool", OneConnection(conn))
