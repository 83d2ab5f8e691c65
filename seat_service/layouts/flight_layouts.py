"""The layout of each flight, cached in the process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from seat_service import refusals
from seat_service.layouts.cabin_layouts import Layout
from seat_service.layouts.layout_register import LayoutUnusable
from services import db
from services.batch import Batcher
from services.db import Pool
from services.errors import Refusal

# The most flights whose layout a process remembers: a year of a large airline fits.
KNOWN_FLIGHTS: Final = 500_000


class FlightLayouts:
    """The layout of each flight, cached in the process.

    The layout of a flight never changes.
    """

    def __init__(self, pool: Pool, layouts: Mapping[str, Layout]) -> None:
        self._pool = pool
        self._layouts = layouts
        self._known: dict[str, Layout] = {}
        self._read: Batcher[str, Layout] = Batcher("flight_layouts", self._read_batch)

    async def of(self, flight_id: str) -> Layout:
        """Returns the flight's layout. Raises FLIGHT_NOT_FOUND or LayoutUnusable."""
        known = self._known.get(flight_id)
        return known if known is not None else await self._read.submit(flight_id)

    async def _read_batch(self, flight_ids: Sequence[str]) -> list[Layout | Refusal]:
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                "SELECT flight_id, layout_id FROM flights WHERE flight_id = ANY($1::text[])", list(flight_ids)
            )
        if len(self._known) > KNOWN_FLIGHTS:
            self._known.clear()
        unusable: dict[str, Refusal] = {}
        for row in rows:
            try:
                self._known[row["flight_id"]] = self._layouts[row["layout_id"]]
            except LayoutUnusable as refusal:
                unusable[row["flight_id"]] = refusal
        return [
            self._known.get(flight_id) or unusable.get(flight_id) or refusals.flight_not_found(flight_id)
            for flight_id in flight_ids
        ]
