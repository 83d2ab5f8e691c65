"""What a statement costs: rows that it looks at and pages that it touches, which a busy machine does not change."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any, cast

import asyncpg

from services.db import Conn, Pool

# A page that is read or written; a hold of one seat writes five tables and their indexes.
MOST_BUFFERS = 250
# Rows that one node of a plan looks at, also those that it throws away.
MOST_ROWS = 40


@dataclass
class Costing:
    """A connection that runs each statement, and keeps what it read."""

    conn: Conn
    plans: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    async def _explain(self, query: str, arguments: tuple[Any, ...]) -> None:
        # The second time counts. What is planned within a function counts as its reading: of a catalog that the
        # connection does not know yet, or no longer since an autovacuum, that is hundreds of pages, once.
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
        """Fails with the plan of the first statement that read more."""
        assert self.plans
        for query, plan in self.plans:
            read = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
            shown = "\n".join([query, *(summary(node) for node in nodes(plan))])
            assert read <= buffers, f"{read} buffers\n{shown}"
            assert max(rows_of(node) for node in nodes(plan)) <= rows, shown
        self.plans.clear()

    def expect_look_ups(self, table: str) -> None:
        """Fails with the plan of the first statement that reads a table, or one of its indexes, from end to end."""
        for query, plan in self.plans:
            shown = "\n".join([query, *(summary(node) for node in nodes(plan))])
            for node in nodes(plan):
                # A bitmap's scan of an index does not name the table, and is looked at whatever its table.
                of_table = node.get("Relation Name", table) == table
                whole = "Index Name" in node and "Index Cond" not in node
                assert not (of_table and (whole or node["Node Type"] == "Seq Scan")), shown


def nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """All nodes of a plan."""
    return [plan, *(node for child in plan.get("Plans", ()) for node in nodes(child))]


def rows_of(node: dict[str, Any]) -> int:
    """Rows that a node looked at, also those that it threw away."""
    thrown_away = node.get("Rows Removed by Filter", 0) + node.get("Rows Removed by Index Recheck", 0)
    return int((node["Actual Rows"] + thrown_away) * node["Actual Loops"])


def summary(node: dict[str, Any]) -> str:
    """One line about a node."""
    about = (node.get(key) for key in ("Relation Name", "Index Name", "Index Cond", "Filter", "Function Name"))
    buffers = node["Shared Hit Blocks"] + node["Shared Read Blocks"]
    return f"{node['Node Type']}: {rows_of(node)} rows, {buffers} buffers {[each for each in about if each]}"


class OneConnection:
    """A pool that has this connection alone, for what takes its connections from a pool."""

    def __init__(self, conn: Costing) -> None:
        self._conn = conn

    async def acquire(self, *, timeout: float) -> Costing:  # noqa: ASYNC109
        del timeout
        return self._conn

    async def release(self, conn: Costing) -> None:
        assert conn is self._conn


def pool_of(conn: Costing) -> Pool:
    """Returns a pool that lends this connection."""
    return cast("Pool", OneConnection(conn))
