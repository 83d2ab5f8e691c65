"""The scheduled flights in memory, by UTC day, each with its revision.

Every process keeps the days that were requested. A request first reads the revisions of its days, and reads a changed
day again: no response is older than the schedule was when the request arrived (decision 23).
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


# Without slots, which would exclude cached properties.
@dataclass(frozen=True)
class Day:
    """The scheduled flights that depart on a UTC day, by departure."""

    date: date
    revision: int
    flights: Sequence[Flight] = field(repr=False)

    @cached_property
    def by_id(self) -> Mapping[str, Flight]:
        """The flights by their ids."""
        return {flight.flight_id: flight for flight in self.flights}

    @cached_property
    def airports(self) -> frozenset[str]:
        """The airports where they depart and arrive."""
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
    """The scheduled flights of consecutive days, at least as new as the request."""

    read_time: datetime
    """The database's time when the request arrived."""
    version: int
    """The sum of the days' revisions when the request arrived.

    It grows with each change of these days.
    """
    days: Sequence[Day]

    def serves(self, airport: str) -> bool:
        """Returns whether a flight departs or arrives there."""
        return any(airport in day.airports for day in self.days)

    def flight(self, flight_id: str) -> Flight | None:
        """Returns the flight, or None if it is not in the timetable."""
        return next((day.by_id[flight_id] for day in self.days if flight_id in day.by_id), None)

    def departures_on(self, airport: str, local_date: date) -> Iterator[Flight]:
        """Yields the flights that depart from an airport on a local day there."""
        for day in self.days:
            yield from (flight for flight in day.by_origin.get(airport, ()) if flight.departure_date == local_date)

    def departures_between(self, airport: str, earliest: datetime, latest: datetime) -> Iterator[Flight]:
        """Yields the flights that depart from an airport between two moments in UTC.

        Both moments are inclusive.
        """
        first, last = earliest.date(), latest.date()
        for day in self.days:
            if first <= day.date <= last:
                departing = day.by_origin.get(airport, ())
                begin = bisect_left(departing, earliest, key=_departure)
                yield from departing[begin : bisect_right(departing, latest, begin, key=_departure)]


_departure: Final = attrgetter("departure_time")


class Timetables:
    """Reads the schedule and caches its days."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._days: OrderedDict[date, Day] = OrderedDict()
        self._reading = asyncio.Lock()

    async def between(self, first: date, last: date) -> Timetable:
        """Returns the scheduled flights from one UTC day to another, both inclusive."""
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
        # The flights of a day may be newer than its revision. The version still is the sum of the revisions that this
        # request read: a sum of revisions from different moments could equal the version of other flights.
        return Timetable(rows[0]["read_time"], sum(revisions.values()), await self._current(revisions))

    async def _current(self, revisions: Mapping[date, int]) -> list[Day]:
        """Returns the days, each at least at its given revision."""
        days = self._known(revisions)
        if len(days) < len(revisions):
            async with self._reading:
                # Another request may have read these days while this one waited for the lock.
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
        """Reads the days' flights after their revisions were read.

        A day that is newer than its revision is read once more than necessary, which is harmless.
        """
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
