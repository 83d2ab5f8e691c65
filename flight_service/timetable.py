"""The scheduled flights in memory, day by day, each day as good as its revision.

Every process keeps the days that it was asked about. A question begins with the revisions of its days, and a day that
has changed since is read again: no answer is older than the schedule was when the question came.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import cached_property
from operator import attrgetter
from typing import Final

from flight_service import flights
from flight_service.records import Flight
from services import db
from services.db import Pool

# A flight is about two kilobytes.
DAYS_KEPT: Final = 64


# Without slots, for the sake of its cached properties.
@dataclass(frozen=True)
class Day:
    """The scheduled flights that depart on a day of UTC, by departure."""

    date: date
    revision: int
    flights: Sequence[Flight] = field(repr=False)

    @cached_property
    def by_id(self) -> Mapping[str, Flight]:
        """The flights by their ids."""
        return {flight.flight_id: flight for flight in self.flights}

    @cached_property
    def airports(self) -> frozenset[str]:
        """Where they depart and arrive."""
        return frozenset(airport for flight in self.flights for airport in (flight.origin, flight.destination))

    @cached_property
    def by_origin(self) -> Mapping[str, Sequence[Flight]]:
        """The flights from each airport, by departure."""
        found: defaultdict[str, list[Flight]] = defaultdict(list)
        for flight in self.flights:
            found[flight.origin].append(flight)
        return dict(found)


@dataclass(frozen=True, slots=True)
class Timetable:
    """The scheduled flights of some days in a row, at least as new as the question."""

    read_time: datetime
    """The database's time when the question came."""
    version: int
    """The sum of the days' revisions when the question came: it grows with each change of them."""
    days: Sequence[Day]

    def serves(self, airport: str) -> bool:
        """Whether a flight departs or arrives there."""
        return any(airport in day.airports for day in self.days)

    def flight(self, flight_id: str) -> Flight | None:
        """Returns a flight; None where there is none."""
        return next((day.by_id[flight_id] for day in self.days if flight_id in day.by_id), None)

    def departures_on(self, airport: str, local_date: date) -> Iterator[Flight]:
        """Returns the flights that depart from an airport on a day there."""
        for day in self.days:
            yield from (flight for flight in day.by_origin.get(airport, ()) if flight.departure_date == local_date)

    def departures_between(self, airport: str, earliest: datetime, latest: datetime) -> Iterator[Flight]:
        """Returns the flights that depart from an airport between two moments in UTC, both included."""
        first, last = earliest.date(), latest.date()
        for day in self.days:
            if first <= day.date <= last:
                departing = day.by_origin.get(airport, ())
                begin = bisect_left(departing, earliest, key=_departure)
                yield from departing[begin : bisect_right(departing, latest, begin, key=_departure)]


_departure: Final = attrgetter("departure_time")


class Timetables:
    """Reads the schedule, and keeps what it read."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._days: OrderedDict[date, Day] = OrderedDict()
        self._reading = asyncio.Lock()

    async def between(self, first: date, last: date) -> Timetable:
        """Returns the scheduled flights that depart from one day of UTC to another, both included."""
        async with db.session(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT statement_timestamp() AS read_time, days.day, days.revision
                FROM (VALUES ($1::date)) AS asked (first)
                LEFT JOIN schedule_days AS days ON days.day BETWEEN asked.first AND $2
                """,
                first,
                last,
            )
        revisions = {row["day"]: row["revision"] for row in rows if row["day"] is not None}
        # Some days may be newer by now. The version is the question's all the same: of days that were read at different
        # moments the sum might be one that other flights had, too.
        return Timetable(rows[0]["read_time"], sum(revisions.values()), await self._current(revisions))

    async def _current(self, revisions: Mapping[date, int]) -> list[Day]:
        """Returns days that are at least at these revisions."""
        days = self._known(revisions)
        if len(days) < len(revisions):
            async with self._reading:
                # Whoever had to wait finds most of it read.
                days = self._known(revisions)
                days |= await self._read({day: revisions[day] for day in revisions.keys() - days.keys()})
        self._keep(days)
        return [days[day] for day in sorted(days)]

    def _known(self, revisions: Mapping[date, int]) -> dict[date, Day]:
        return {
            day: known
            for day, revision in revisions.items()
            if (known := self._days.get(day)) is not None and known.revision >= revision
        }

    async def _read(self, revisions: Mapping[date, int]) -> dict[date, Day]:
        """Reads days after their revisions: what is newer than its revision is at worst read again."""
        if not revisions:
            return {}
        async with db.session(self._pool) as conn:
            scheduled = await flights.scheduled(conn, list(revisions))
        read: dict[date, list[Flight]] = {day: [] for day in revisions}
        for flight in scheduled:
            read[flight.departure_time.date()].append(flight)
        return {day: Day(day, revision, read[day]) for day, revision in revisions.items()}

    def _keep(self, days: Mapping[date, Day]) -> None:
        self._days.update(days)
        for day in days:
            self._days.move_to_end(day)
        while len(self._days) > DAYS_KEPT:
            self._days.popitem(last=False)
