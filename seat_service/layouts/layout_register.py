"""The layouts that this process can use (SEAT-1).

These have the content that the flights were created with. A layout id is immutable. The table `layouts` has the digest
of each layout's content, stored when the layout was first used. A process whose files lack a used layout, or have other
content under its id, logs the id and reports itself as not ready. It refuses calls for flights with that layout
(DEPENDENCY_UNAVAILABLE), because it cannot know their seats.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from typing import Final

from seat_service.layouts.cabin_layouts import Layout
from services import db, telemetry
from services.db import Conn, Pool
from services.errors import Unavailable

CHECK_SECONDS: Final = 5.0
MISSING: Final = "missing"
CHANGED: Final = "changed"

_log = telemetry.log("layouts")


class LayoutUnusable(Unavailable, KeyError):
    """This process lacks a used layout, or has other content under its id."""

    def __init__(self, layout_id: str, fault: str) -> None:
        super().__init__(f"cabin layout {layout_id} is {fault} on this server; restore its file and start it again")


class Layouts(Mapping[str, Layout]):
    """The usable layouts by id.

    A look-up by [] raises LayoutUnusable, a refusal for the caller.
    """

    def __init__(self, loaded: Mapping[str, Layout]) -> None:
        self._loaded = loaded
        self.faults: Mapping[str, str] = {}
        """The fault of each used layout that this process cannot use: MISSING or CHANGED."""

    def __getitem__(self, layout_id: str) -> Layout:
        if layout_id not in self._loaded or layout_id in self.faults:
            raise LayoutUnusable(layout_id, self.faults.get(layout_id, MISSING))
        return self._loaded[layout_id]

    def __iter__(self) -> Iterator[str]:
        return (layout_id for layout_id in self._loaded if layout_id not in self.faults)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def complete(self) -> bool:
        """True if this process can use every used layout."""
        return not self.faults

    async def check(self, pool: Pool) -> None:
        """Compares the loaded layouts with the used ones.

        Logs each fault that begins or ends.
        """
        async with db.transaction(pool) as conn:
            await _record_old(conn, self._loaded)
            rows = await conn.fetch("SELECT layout_id, digest FROM layouts")
        used = {row["layout_id"]: row["digest"] for row in rows}
        found = faults(used, self._loaded)
        for layout_id in found.keys() - self.faults.keys():
            _log.error("cabin layout of existing flights is unusable", layout_id=layout_id, fault=found[layout_id])
        for layout_id in self.faults.keys() - found.keys():
            _log.info("cabin layout of existing flights is usable again", layout_id=layout_id)
        self.faults = found

    async def watch(self, pool: Pool) -> None:
        """Repeats `check` every CHECK_SECONDS, until cancelled.

        Another process may have used a layout that this one does not have.
        """
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            with contextlib.suppress(Unavailable):
                await self.check(pool)


def faults(used: Mapping[str, str | None], loaded: Mapping[str, Layout]) -> dict[str, str]:
    """Returns the fault of each unusable layout; `used` has the digests by layout id."""
    return {
        layout_id: CHANGED if layout_id in loaded else MISSING
        for layout_id, digest in used.items()
        if layout_id not in loaded or digest not in (None, loaded[layout_id].digest)
    }


async def use(conn: Conn, layout: Layout) -> None:
    """Stores the layout's digest at its first use.

    Raises LayoutUnusable if the layout was used with other content before.
    """
    await conn.execute(
        "INSERT INTO layouts (layout_id, digest) VALUES ($1, $2) ON CONFLICT (layout_id) DO NOTHING",
        layout.layout_id,
        layout.digest,
    )
    stored = await conn.fetchval("SELECT digest FROM layouts WHERE layout_id = $1", layout.layout_id)
    if stored not in (None, layout.digest):
        raise LayoutUnusable(layout.layout_id, CHANGED)


async def unusable(conn: Conn, layout_id: str, layouts: Mapping[str, Layout]) -> LayoutUnusable | None:
    """Returns the refusal of a used layout that this process cannot use.

    None for all other layouts.
    """
    if layout_id in layouts or not await conn.fetchval("SELECT true FROM layouts WHERE layout_id = $1", layout_id):
        return None
    try:
        layouts[layout_id]
    except LayoutUnusable as refusal:
        return refusal
    except KeyError:
        return LayoutUnusable(layout_id, MISSING)
    return None


async def _record_old(conn: Conn, loaded: Mapping[str, Layout]) -> None:
    """Stores missing digests of used layouts.

    A layout that was first used before the service stored digests has none.
    """
    rows = await conn.fetch("SELECT layout_id FROM layouts WHERE digest IS NULL ORDER BY layout_id")
    known = [loaded[row["layout_id"]] for row in rows if row["layout_id"] in loaded]
    if known:
        await conn.executemany(
            "UPDATE layouts SET digest = $2 WHERE layout_id = $1 AND digest IS NULL",
            [(each.layout_id, each.digest) for each in known],
        )
