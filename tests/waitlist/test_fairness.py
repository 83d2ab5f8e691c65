"""No older eligible entry is overtaken (WL-2), also if its own match fails."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from operations.invariants.waitlists import WAITLIST_INVARIANTS
from seat_service.layouts import cabin_layouts
from seat_service.rules import eligibility as seat_rules
from tests.instances import Database
from tests.waiting import eventually
from tests.waitlist.conftest import Flight
from waitlist_service import eligibility, entries, released_seats
from waitlist_service.handlers import on_seat_released

EXIT_SEAT, PLAIN_SEAT = "12A", "20A"


async def nobody_was_overtaken(database: Database, flight: Flight) -> None:
    """Fails if `skyhigh verify` finds an overtaken entry of this flight."""
    (invariant,) = [each for each in WAITLIST_INVARIANTS if "younger entry" in each.name]
    numbers = {
        row["entry_id"]
        for row in await database.fetch("SELECT entry_id FROM entries WHERE flight_id = $1", flight.flight_id)
    }
    assert [row for row in await database.fetch(invariant.offenders) if row["entry_id"] in numbers] == []


async def test_an_ineligible_entry_gets_the_other_released_seat(full: Flight, waitlist_database: Database) -> None:
    await full.give_to_one_hold(EXIT_SEAT, PLAIN_SEAT)
    with_infant, able = full.waiter("ECONOMY:ADULT+INFT"), full.waiter()
    first, second = await with_infant.join(), await able.join()
    await full.free(EXIT_SEAT)
    assert (await with_infant.becomes(first, "ASSIGNED")).seat_number == PLAIN_SEAT
    assert (await able.becomes(second, "ASSIGNED")).seat_number == EXIT_SEAT
    await nobody_was_overtaken(waitlist_database, full)


async def test_a_seat_forbidden_to_all_entries_is_returned(full: Flight) -> None:
    waiter = full.waiter("ECONOMY:ADULT+INFT")
    entry = await waiter.join(EXIT_SEAT, PLAIN_SEAT)
    await full.free(EXIT_SEAT)
    await full.shows(EXIT_SEAT, "AVAILABLE")
    assert (await waiter.entry(entry)).position == 1


@pytest.mark.parametrize("age", [timedelta(milliseconds=300), timedelta(seconds=30)])
async def test_a_late_event_costs_no_entry_a_seat(full: Flight, waitlist_database: Database, age: timedelta) -> None:
    waiters = [full.waiter() for _ in range(3)]
    joined = [await waiter.join() for waiter in waiters]
    await full.free("20A")
    await waiters[0].becomes(joined[0], "ASSIGNED")
    # As if a look at the map had assigned 20A before the event about its release arrived.
    late = events_pb2.SeatReleased(flight_id=full.flight_id)
    late.seats.add(seat_number="20A", version=3, state=seats.Seat.OFFERED)
    late.release_time.FromDatetime(datetime.now(UTC) - age)
    async with waitlist_database.transaction():
        await on_seat_released(waitlist_database, late)
    await full.free("20B")
    assert (await waiters[1].becomes(joined[1], "ASSIGNED")).seat_number == "20B"
    assert (await waiters[2].entry(joined[2])).state == pb.WaitlistEntry.WAITING
    await nobody_was_overtaken(waitlist_database, full)


async def test_kept_seats_keep_their_certainty(full: Flight, waitlist_database: Database) -> None:
    """A kept seat keeps its release time, so its later match is certain.

    Otherwise one look at the map would make each match of a busy flight wait for the one before.
    """
    joined = [await full.waiter().join() for _ in range(3)]
    ids = [UUID(entry.entry_id) for entry in joined]
    line = "SELECT seat_number, uncertain FROM entries WHERE entry_id = ANY($1) ORDER BY number"
    kept = "SELECT count(*) FROM seats WHERE flight_id = $1 AND kept"
    # Nothing is committed, so no timer claims these matches.
    transaction = waitlist_database.transaction()
    await transaction.start()
    await released_seats.match_with_entries(waitlist_database, full.flight_id, {"20A": None})
    assert list(map(tuple, await waitlist_database.fetch(line, ids))) == [("20A", True), (None, False), (None, False)]
    now = await waitlist_database.fetchval("SELECT clock_timestamp()")
    await released_seats.match_with_entries(waitlist_database, full.flight_id, {"20B": now, "20C": now})
    assert await waitlist_database.fetchval(kept, full.flight_id) == 2
    await entries.remove_match(waitlist_database, await entries.find(waitlist_database, ids[0], owner=None))
    await released_seats.match_with_entries(waitlist_database, full.flight_id, {})
    assert list(map(tuple, await waitlist_database.fetch(line, ids))) == [("20B", False), ("20C", False), (None, False)]
    assert await waitlist_database.fetchval(kept, full.flight_id) == 0
    await transaction.rollback()


@pytest.mark.parametrize(("window", "is_uncertain"), [(timedelta(seconds=2), True), (timedelta(seconds=10), False)])
async def test_a_match_is_uncertain_with_a_short_offer(
    full: Flight, waitlist_database: Database, window: timedelta, is_uncertain: bool
) -> None:
    """With an uncertain match the older entry loses no other seat to a younger one if its claim fails."""
    joined = [await full.waiter().join() for _ in range(2)]
    released = events_pb2.SeatReleased(flight_id=full.flight_id)
    released.seats.add(seat_number="20A", version=3, state=seats.Seat.OFFERED)
    now = datetime.now(UTC)
    released.release_time.FromDatetime(now)
    released.offer_expire_time.FromDatetime(now + window)
    # Nothing is committed, so no timer claims the match.
    transaction = waitlist_database.transaction()
    await transaction.start()
    await on_seat_released(waitlist_database, released)
    found = await waitlist_database.fetchrow(
        "SELECT seat_number, uncertain FROM entries WHERE entry_id = $1", UUID(joined[0].entry_id)
    )
    await transaction.rollback()
    assert found is not None
    assert tuple(found) == ("20A", is_uncertain)


async def test_seats_kept_for_an_older_entry_are_assigned_later(full: Flight, waitlist_database: Database) -> None:
    """A look at the map matches those who join.

    A seat that is freed meanwhile may be kept until their claims are decided.
    """
    await full.free("20A", "20B")
    waiters = [full.waiter() for _ in range(3)]
    joined = [await waiter.join() for waiter in waiters]
    got = {
        (await waiter.becomes(entry, "ASSIGNED")).seat_number
        for waiter, entry in zip(waiters[:2], joined, strict=False)
    }
    assert got == {"20A", "20B"}
    await full.free("20C")
    assert (await waiters[2].becomes(joined[2], "ASSIGNED")).seat_number == "20C"

    async def nothing_kept() -> bool:
        kept = await waitlist_database.fetchval(
            "SELECT count(*) FROM seats WHERE flight_id = $1 AND kept", full.flight_id
        )
        return bool(kept == 0)

    await eventually(nothing_kept)
    await nobody_was_overtaken(waitlist_database, full)


def test_the_eligibility_rules_equal_the_seat_services() -> None:
    assert eligibility.NO_EXIT_ROW_SERVICES == seat_rules.NO_EXIT_ROW_SERVICES
    assert eligibility.INFANT_ON_LAP == seat_rules.INFANT_ON_LAP
    assert (eligibility.EXIT_ROW, eligibility.NOT_FOR_INFANTS) == (
        cabin_layouts.EXIT_ROW,
        cabin_layouts.NOT_FOR_INFANTS,
    )
