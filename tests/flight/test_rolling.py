"""The schedule is rolled forward: on an empty database, after crashes and outages.

Several processes may roll it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final

import pytest

from deploy.local.process import free_ports
from flight_service import flights, rolling, schedule
from flight_service.flights import NewFlight
from flight_service.peers import Peers
from flight_service.rolling import Rolling
from flight_service.schedule import Leg
from flight_service.settings import FlightSettings
from seat_service.service import SEAT_SERVICE
from services import airports, app, db, tasks
from services.db import Pool
from tests.callers import Callers
from tests.flight.airline import Airline
from tests.instances import database_with
from tests.waiting import eventually, pause, stays

if TYPE_CHECKING:
    from tests.conftest import World

LETTERS: Final = "ABCDEFGHJKMNPQRSTUVWXYZ"
MANY: Final = 1_000_000


class WatchedPeers(Peers):
    """Calls the real seat service; records the flights, and can stop responding."""

    def __init__(self, settings: FlightSettings) -> None:
        super().__init__(settings)
        self.asked: list[str] = []
        self.answers = MANY

    async def provision(self, flight_id: str, layout_id: str, departure_time: datetime) -> int:
        self.asked.append(flight_id)
        if len(self.asked) > self.answers:
            await asyncio.Event().wait()
        return await super().provision(flight_id, layout_id, departure_time)

    async def are_stuck(self) -> bool:
        """Returns whether a call waits for a response that never comes."""
        return len(self.asked) > self.answers


@dataclass(frozen=True, slots=True)
class Rolled:
    """A database of the flight service, and the seat service that its rolling calls."""

    pool: Pool
    peers: WatchedPeers

    @asynccontextmanager
    async def rolling(self, *, horizon_days: int, peers: Peers | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """Rolls the schedule within the block, and stops at its end."""
        roller = Rolling(self.pool, peers or self.peers, horizon_days=horizon_days)
        task = asyncio.create_task(roller.run())
        try:
            yield task
        finally:
            await tasks.end([task])

    async def roll(self, *, horizon_days: int) -> None:
        """Rolls the schedule until all days are complete."""
        async with self.rolling(horizon_days=horizon_days):
            await eventually(lambda: self.is_complete(horizon_days=horizon_days))

    async def is_complete(self, *, horizon_days: int) -> bool:
        """Returns whether all days up to the horizon are complete."""
        today = await self.today()
        wanted = {today + timedelta(days=n) for n in range(-1, horizon_days + 1)}
        rows = await self.pool.fetch(
            "SELECT day FROM schedule_rolls WHERE edition = $1 AND complete_time IS NOT NULL", schedule.edition()
        )
        return {row["day"] for row in rows} >= wanted

    async def completed(self) -> dict[date, datetime]:
        """Returns when each day was completed."""
        rows = await self.pool.fetch("SELECT day, complete_time FROM schedule_rolls WHERE complete_time IS NOT NULL")
        return {row["day"]: row["complete_time"] for row in rows}

    async def today(self) -> date:
        """Returns the UTC day by the database's clock."""
        today: date = await self.pool.fetchval("SELECT (statement_timestamp() AT TIME ZONE 'UTC')::date")
        return today

    async def planned(self, *, horizon_days: int) -> list[NewFlight]:
        """Returns the future flights that the schedule contains up to the horizon."""
        today, now = await self.today(), datetime.now(UTC)
        days = (today + timedelta(days=n) for n in range(-1, horizon_days + 1))
        return [flight for day in days for flight in schedule.departures(day) if flight.departure_time > now]

    async def flights(self) -> dict[str, str]:
        """Returns the state of each flight in the database."""
        rows = await self.pool.fetch("SELECT flight_id, state::text FROM flights")
        return {row["flight_id"]: row["state"] for row in rows}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the intervals of looks and retries."""
    monkeypatch.setattr(rolling, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(rolling, "RETRY_SECONDS", 0.1)


@pytest.fixture
def legs(monkeypatch: pytest.MonkeyPatch) -> list[Leg]:
    """A small schedule with a random airline code for each test.

    None of its flights departs within the next hour or so.
    """
    airline = "".join(secrets.choice(LETTERS) for _ in range(2))
    now = datetime.now(UTC)
    small = [
        Leg(
            flight_number=f"{airline}{secrets.randbelow(900) + 100}{letter}",
            # Iceland has UTC throughout the year.
            origin="KEF",
            destination="LIS",
            departs=(now + timedelta(hours=hours)).time().replace(second=0, microsecond=0),
            block_time=timedelta(hours=4),
            aircraft_type="AT72",
            gate="",
            economy_cents=9900,
        )
        for hours, letter in zip((2, 4, 7, 10, 13, 16, 18, 19, 20, 21, 22), LETTERS, strict=False)
    ]
    monkeypatch.setattr(schedule, "legs", lambda: small)
    own_edition = secrets.token_hex(8)
    monkeypatch.setattr(schedule, "edition", lambda: own_edition)
    return small


@pytest.fixture
def settings(world: World, callers: Callers) -> Callable[..., FlightSettings]:
    """Returns settings of a flight service; `more` are environment variables."""

    def settings(**more: str) -> FlightSettings:
        return world.settings_of(FlightSettings, **{"SKYHIGH_SEAT_ADDRESS": callers.address, **more})

    return settings


@pytest.fixture
async def rolled(world: World, settings: Callable[..., FlightSettings]) -> AsyncIterator[Rolled]:
    """A database without flights."""
    url = (await database_with(world, "flight"))["SKYHIGH_FLIGHT_DATABASE_URL"]
    pool = await db.connect(url, schema="flight", size=8)
    peers = WatchedPeers(settings())
    yield Rolled(pool, peers)
    await peers.close()
    await pool.close()


async def test_a_fresh_database_is_filled(rolled: Rolled, callers: Callers, legs: list[Leg]) -> None:
    planned = await rolled.planned(horizon_days=2)
    await rolled.roll(horizon_days=2)
    # Each future flight once, and no departed flight.
    assert await rolled.flights() == {flight.flight_id: "SCHEDULED" for flight in planned}
    assert Counter(rolled.peers.asked) == Counter(flight.flight_id for flight in planned)
    # Each flight has its seats and the data of the schedule file.
    airline = Airline(callers, rolled.pool, callers)
    for flight in planned[:3]:
        assert await airline.provisioned(flight.flight_id) == sum(flight.seats.values())
    async with db.session(rolled.pool) as conn:
        found = await flights.find_all(conn, [flight.flight_id for flight in planned])
    for flight in planned:
        facts = {name: getattr(found[flight.flight_id], name) for name in NewFlight.__slots__}
        assert NewFlight(**facts) == flight


async def test_the_nearest_days_come_first(rolled: Rolled, legs: list[Leg]) -> None:
    await rolled.roll(horizon_days=3)
    days = [flight_id[-10:] for flight_id in rolled.peers.asked]
    assert days == sorted(days)
    assert len(set(days)) >= 3


async def test_every_origin_has_flights_for_the_whole_horizon(rolled: Rolled, legs: list[Leg]) -> None:
    """The local day differs: Honolulu may be a day behind UTC, Auckland a day ahead."""
    far_off = [replace(leg, origin=origin) for leg, origin in zip(legs, ("HNL", "AKL", "APW"), strict=False)]
    legs[:] = [replace(leg, departs=time(23, 59), block_time=timedelta(hours=20)) for leg in far_off]
    await rolled.roll(horizon_days=1)
    there = await rolled.flights()
    now = datetime.now(UTC)
    for leg in legs:
        tonight = leg.flight_on(now.astimezone(airports.zone(leg.origin)).date())
        # In the last minute of the day the flight has departed.
        assert tonight.flight_id in there or tonight.departure_time <= now


async def test_rolling_again_changes_nothing(rolled: Rolled, legs: list[Leg]) -> None:
    await rolled.roll(horizon_days=1)
    before = await rolled.pool.fetch("SELECT * FROM schedule_rolls ORDER BY day")

    async def unchanged() -> bool:
        return await rolled.pool.fetch("SELECT * FROM schedule_rolls ORDER BY day") == before

    async with rolled.rolling(horizon_days=1):
        await stays(unchanged, seconds=0.3)
    assert max(Counter(rolled.peers.asked).values()) == 1


async def test_the_next_day_adds_one_day(rolled: Rolled, legs: list[Leg]) -> None:
    await rolled.roll(horizon_days=1)
    first = await rolled.flights()
    # The rolled days look a day older, as they will tomorrow.
    await rolled.pool.execute("UPDATE schedule_rolls SET day = day - 1")
    rolled.peers.asked.clear()
    # The last day that the horizon reaches tomorrow is one day beyond today's.
    await rolled.roll(horizon_days=2)
    second = await rolled.flights()
    added = set(second) - set(first)
    last_day = await rolled.today() + timedelta(days=2)
    assert added == {f"{leg.flight_number}-{last_day}" for leg in legs} == set(rolled.peers.asked)
    assert set(first) < set(second)


async def test_a_running_process_adds_the_next_day(rolled: Rolled, legs: list[Leg]) -> None:
    async with rolled.rolling(horizon_days=1):
        await eventually(lambda: rolled.is_complete(horizon_days=1))
        last_day = await rolled.today() + timedelta(days=1)
        await rolled.pool.execute("DELETE FROM flight_cabins")
        await rolled.pool.execute("DELETE FROM flights")
        # A new day begins, which no process has rolled yet.
        await rolled.pool.execute("DELETE FROM schedule_rolls WHERE day = $1", last_day)
        await eventually(lambda: rolled.is_complete(horizon_days=1))
    assert set(await rolled.flights()) == {f"{leg.flight_number}-{last_day}" for leg in legs}


async def test_two_processes_share_the_days(
    rolled: Rolled, legs: list[Leg], settings: Callable[..., FlightSettings]
) -> None:
    others = WatchedPeers(settings())
    async with rolled.rolling(horizon_days=6), rolled.rolling(horizon_days=6, peers=others):
        await eventually(lambda: rolled.is_complete(horizon_days=6))
    await others.close()
    planned = {flight.flight_id: "SCHEDULED" for flight in await rolled.planned(horizon_days=6)}
    assert await rolled.flights() == planned
    # Each flight was provisioned by exactly one process, and each process provisioned some.
    assert Counter(rolled.peers.asked + others.asked) == Counter(planned.keys())
    assert rolled.peers.asked
    assert others.asked


async def test_no_two_processes_lease_the_same_day(rolled: Rolled, legs: list[Leg]) -> None:
    rolled.peers.answers = 0
    legs[rolling.AT_ONCE :] = []
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(6):
            await stack.enter_async_context(rolled.rolling(horizon_days=6))

        async def all_are_busy() -> bool:
            return len({flight_id[-10:] for flight_id in rolled.peers.asked}) >= 6

        await eventually(all_are_busy)
        assert max(Counter(rolled.peers.asked).values()) == 1


async def test_a_stopped_process_is_replaced_at_once(
    rolled: Rolled, legs: list[Leg], settings: Callable[..., FlightSettings]
) -> None:
    rolled.peers.answers = 12
    async with rolled.rolling(horizon_days=2):
        await eventually(rolled.peers.are_stuck)
    seen = await rolled.flights()
    assert 0 < len(seen) <= 12
    # The stopped process released its lease, so the next one need not wait for the end of the lease.
    assert not await rolled.pool.fetchval(
        "SELECT EXISTS (SELECT FROM schedule_rolls WHERE complete_time IS NULL AND lease_end > clock_timestamp())"
    )
    successor = WatchedPeers(settings())
    async with rolled.rolling(horizon_days=2, peers=successor):
        await eventually(lambda: rolled.is_complete(horizon_days=2))
    await successor.close()
    planned = {flight.flight_id: "SCHEDULED" for flight in await rolled.planned(horizon_days=2)}
    assert await rolled.flights() == planned
    # Inserted flights are not provisioned again. Flights that were provisioned but not inserted are.
    assert not set(seen) & set(successor.asked)
    assert set(seen) | set(successor.asked) == set(planned)


async def test_a_dead_processs_day_is_rolled_after_the_lease(rolled: Rolled, legs: list[Leg]) -> None:
    today = await rolled.today()
    tomorrow = today + timedelta(days=1)
    await rolled.pool.execute(
        "INSERT INTO schedule_rolls (day, edition, lease_end) VALUES ($1, $2, clock_timestamp() + interval '1 hour')",
        today,
        schedule.edition(),
    )

    async def has_tomorrow() -> bool:
        return tomorrow in await rolled.completed()

    async with rolled.rolling(horizon_days=1):
        await eventually(has_tomorrow)
        lapses = await rolled.pool.fetchval(
            """
            UPDATE schedule_rolls SET lease_end = clock_timestamp() + interval '0.3 seconds'
            WHERE day = $1 AND complete_time IS NULL RETURNING lease_end
            """,
            today,
        )
        assert lapses is not None, "the day is on lease to another"
        await eventually(lambda: rolled.is_complete(horizon_days=1))
    assert lapses <= (await rolled.completed())[today]
    assert set(await rolled.flights()) == {flight.flight_id for flight in await rolled.planned(horizon_days=1)}


async def test_a_process_without_its_lease_stops(rolled: Rolled, legs: list[Leg]) -> None:
    """A process whose lease has ended neither extends nor ends the other's lease."""
    rolled.peers.answers = 4
    async with rolled.rolling(horizon_days=1):
        await eventually(rolled.peers.are_stuck)
        await rolled.pool.execute(
            "UPDATE schedule_rolls SET lease_end = '2100-01-01Z' WHERE complete_time IS NULL AND edition = $1",
            schedule.edition(),
        )
    rows = await rolled.pool.fetch("SELECT lease_end FROM schedule_rolls WHERE complete_time IS NULL")
    assert rows
    assert {row["lease_end"] for row in rows} == {datetime(2100, 1, 1, tzinfo=UTC)}


async def test_rolling_continues_after_a_seat_service_outage(
    world: World, rolled: Rolled, legs: list[Leg], settings: Callable[..., FlightSettings]
) -> None:
    (port,) = free_ports(1)
    address = f"127.0.0.1:{port}"
    peers = WatchedPeers(settings(SKYHIGH_SEAT_ADDRESS=address))

    async def retried() -> bool:
        return max(Counter(peers.asked).values(), default=0) >= 2

    async with rolled.rolling(horizon_days=1, peers=peers) as task:
        await eventually(retried)
        assert not task.done()
        # No flight is inserted before its seats are provisioned.
        assert await rolled.flights() == {}
        async with app.serving(SEAT_SERVICE, world.settings(), [address]):
            await eventually(lambda: rolled.is_complete(horizon_days=1))
    await peers.close()
    assert set(await rolled.flights()) == {flight.flight_id for flight in await rolled.planned(horizon_days=1)}


async def test_rolling_continues_after_a_database_outage(rolled: Rolled, legs: list[Leg]) -> None:
    async with rolled.rolling(horizon_days=4) as task:
        for _ in range(5):
            await rolled.pool.fetch(
                """
                SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()
                """
            )
            await pause(0.05)
        assert not task.done()
        await eventually(lambda: rolled.is_complete(horizon_days=4))
    assert set(await rolled.flights()) == {flight.flight_id for flight in await rolled.planned(horizon_days=4)}


async def test_a_cancelled_flight_is_not_added_again(rolled: Rolled, legs: list[Leg]) -> None:
    await rolled.roll(horizon_days=1)
    planned = await rolled.planned(horizon_days=1)
    await rolled.pool.execute(
        """
        UPDATE flights SET state = 'CANCELLED', cancel_time = statement_timestamp(), cancel_reason = 'STRIKE'
        WHERE flight_id = $1
        """,
        planned[-1].flight_id,
    )
    await rolled.pool.execute("DELETE FROM schedule_rolls")
    await rolled.roll(horizon_days=1)
    states = await rolled.flights()
    assert states.pop(planned[-1].flight_id) == "CANCELLED"
    assert set(states.values()) == {"SCHEDULED"}


async def test_a_new_edition_adds_flights_to_rolled_days(
    rolled: Rolled, legs: list[Leg], monkeypatch: pytest.MonkeyPatch
) -> None:
    late = legs.pop()
    await rolled.roll(horizon_days=1)
    rolled.peers.asked.clear()
    legs.append(late)
    monkeypatch.setattr(schedule, "edition", lambda: "0123456789abcdef")
    await rolled.roll(horizon_days=1)
    there = set(await rolled.flights())
    assert there == {flight.flight_id for flight in await rolled.planned(horizon_days=1)}
    # Only the new line of the schedule was provisioned.
    assert {flight_id.partition("-")[0] for flight_id in rolled.peers.asked} == {late.flight_number}


async def test_a_flight_with_other_seats_is_skipped(rolled: Rolled, callers: Callers, legs: list[Leg]) -> None:
    planned = [flight.flight_id for flight in await rolled.planned(horizon_days=1)]
    await callers.operations().provision(planned[-2], "E190-100Y")
    await rolled.roll(horizon_days=1)
    assert set(await rolled.flights()) == set(planned) - {planned[-2]}


async def test_manually_added_flights_are_not_changed(rolled: Rolled, callers: Callers, legs: list[Leg]) -> None:
    by_hand = replace((await rolled.planned(horizon_days=1))[-1], gate="Z99")
    await Airline(callers, rolled.pool, callers).add(by_hand)
    await rolled.roll(horizon_days=1)
    assert by_hand.flight_id not in rolled.peers.asked
    async with db.session(rolled.pool) as conn:
        assert (await flights.find(conn, by_hand.flight_id)).gate == "Z99"


async def test_later_days_are_rolled_with_pauses(
    rolled: Rolled, legs: list[Leg], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Later days are rolled with pauses, so that requests of passengers come first.

    Today and tomorrow are rolled without pauses.
    """
    # The pause is longer than the test.
    monkeypatch.setattr(rolling, "PAUSE_RATIO", 1_000_000)
    monkeypatch.setattr(rolling, "LONGEST_PAUSE_SECONDS", 3600.0)
    later = await rolled.today() + timedelta(days=2)

    async def of_later() -> int:
        return len([flight_id for flight_id in await rolled.flights() if flight_id.endswith(str(later))])

    async def pauses() -> bool:
        return await of_later() == rolling.AT_ONCE

    async with rolled.rolling(horizon_days=2):
        await eventually(pauses)
        assert await rolled.is_complete(horizon_days=1)
        await stays(pauses, seconds=0.3)
    assert len(legs) > rolling.AT_ONCE
