"""flight.cancelled.v1: all entries end as LEFT, their passengers get a mail.

Joining is refused afterwards.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from uuid import UUID

import pytest
from skyhigh.flight.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from deploy.mocks.mail import MailSink
from tests.callers import Callers, refused
from tests.checkin.fakes import Broker
from tests.dates import new_flight_id
from tests.instances import Database
from tests.waiting import eventually
from tests.waitlist.conftest import Flight, Manifest, Waiter
from waitlist_service.handlers import on_flight_cancelled

if TYPE_CHECKING:
    from tests.conftest import World

Post = tuple[Manifest, MailSink]


@pytest.fixture(scope="module")
async def broker(world: World) -> AsyncIterator[Broker]:
    """Publishes events as the flight service does."""
    async with Broker.opened(world.servers.amqp_url()) as opened:
        yield opened


@pytest.fixture
def post(manifest: tuple[Manifest, str], mails: MailSink) -> Post:
    """The manifest, which has the mail addresses, and the mail server."""
    return manifest[0], mails


def cancelled(flight_id: str, reason: str = "STRIKE") -> events_pb2.FlightCancelled:
    """Returns the event that the flight service publishes."""
    event = events_pb2.FlightCancelled(flight_id=flight_id, reason=reason)
    event.cancel_time.GetCurrentTime()
    return event


async def tell(broker: Broker, waitlist_database: Database, event: events_pb2.FlightCancelled) -> None:
    """Publishes the event, and waits until the waitlist service has applied it."""

    async def noted(event_id: UUID) -> bool:
        return bool(await waitlist_database.fetchval("SELECT true FROM inbox WHERE event_id = $1", event_id))

    await broker.tell("flight.cancelled.v1", event, noted)


def reachable(waiter: Waiter, manifest: Manifest) -> str:
    """Gives a passenger a mail address of its own."""
    email = f"{waiter.pnr.lower()}@passengers.example"
    manifest.put(waiter.flight_id, waiter.passenger_id, waiter.pnr, contact_email=email)
    return email


async def test_every_entry_ends_and_the_waitlist_closes(
    full: Flight, broker: Broker, waitlist_database: Database, database: Database
) -> None:
    waiters = [full.waiter() for _ in range(3)]
    entries = [await each.join() for each in waiters]
    await tell(broker, waitlist_database, cancelled(full.flight_id))
    for waiter, entry in zip(waiters, entries, strict=True):
        left = await waiter.becomes(entry, "LEFT")
        assert (left.position, left.seat_number) == (0, "")
    history = await waitlist_database.fetch(
        """
        SELECT from_state::text, to_state::text, actor, reason FROM entry_events JOIN entries USING (entry_id)
        WHERE flight_id = $1 AND to_state = 'LEFT'
        """,
        full.flight_id,
    )
    assert [tuple(row) for row in history] == [("WAITING", "LEFT", "flight", "FLIGHT_CANCELLED")] * 3

    async def closed() -> bool:
        is_open = "SELECT waitlist_open FROM flights WHERE flight_id = $1"
        return not await database.fetchval(is_open, full.flight_id)

    await eventually(closed)
    for waiter in (full.waiter(), waiters[0]):
        with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED") as refusal:
            await waiter.join("20A")
        assert refusal.info.metadata == {"flight_id": full.flight_id}


async def test_waiting_passengers_are_mailed_about_the_cancellation(
    full: Flight, broker: Broker, post: Post, waitlist_database: Database
) -> None:
    manifest, mails = post
    waiters = [full.waiter() for _ in range(3)]
    emails = [reachable(each, manifest) for each in waiters]
    entries = [await each.join() for each in waiters]
    await waiters[0].waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entries[0].entry_id))
    await tell(broker, waitlist_database, cancelled(full.flight_id))

    async def told() -> bool:
        subject = f"Your flight is cancelled: {full.flight_id}"
        return {email for email in emails for each in mails.mails if email in each.to and each.subject == subject} == {
            *emails[1:]
        }

    await eventually(told)


async def test_an_offer_ends_with_the_flight(
    full: Flight, broker: Broker, callers: Callers, waitlist_database: Database
) -> None:
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    offered = await waiter.becomes(entry, "OFFERED")
    await tell(broker, waitlist_database, cancelled(full.flight_id))
    await waiter.becomes(entry, "LEFT")

    async def given_back() -> bool:
        hold = await callers.service().GetHold(seats.GetHoldRequest(hold_id=offered.hold_id))
        return bool(hold.state == seats.Hold.CANCELLED)

    await eventually(given_back)
    with refused("FAILED_PRECONDITION", "NO_OFFER"):
        await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id))


async def test_a_flight_without_entries_is_closed_too(
    callers: Callers, waitlist: Callers, waitlist_database: Database, manifest: tuple[Manifest, str]
) -> None:
    flight_id = new_flight_id()
    await callers.operations().provision(flight_id)
    async with waitlist_database.transaction():
        await on_flight_cancelled(waitlist_database, cancelled(flight_id))
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await Flight(flight_id, callers, waitlist, {}, manifest[0]).waiter().join()


async def test_a_concurrent_join_is_refused(full: Flight, waitlist_database: Database) -> None:
    first, late = full.waiter(), full.waiter()
    entry = await first.join("20A")
    async with waitlist_database.transaction():
        await on_flight_cancelled(waitlist_database, cancelled(full.flight_id))
        joining = asyncio.ensure_future(late.join("20B"))

        async def waits() -> bool:
            blocked = "SELECT count(*) FROM pg_stat_activity WHERE pg_backend_pid() = ANY(pg_blocking_pids(pid))"
            # In a transaction, Postgres shows other sessions as they were at the first look, unless the snapshot is
            # cleared.
            await waitlist_database.execute("SELECT pg_stat_clear_snapshot()")
            return bool(await waitlist_database.fetchval(blocked))

        await eventually(waits)
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await joining
    await first.becomes(entry, "LEFT")


async def test_entries_being_served_keep_no_seat(
    full: Flight, broker: Broker, waitlist_database: Database, database: Database
) -> None:
    waiters = [full.waiter() for _ in range(20)]
    entries = [await each.join() for each in waiters]
    numbers = full.seat_numbers[:20]
    await asyncio.gather(full.free(*numbers), tell(broker, waitlist_database, cancelled(full.flight_id)))

    async def at_rest() -> bool:
        waiting = "SELECT count(*) FROM entries WHERE flight_id = $1 AND state IN ('WAITING', 'OFFERED')"
        if await waitlist_database.fetchval(waiting, full.flight_id):
            return False
        # An offered seat that no entry claims becomes AVAILABLE when its window ends. The test ends the window now.
        await database.execute("UPDATE offers SET expire_time = now() WHERE flight_id = $1", full.flight_id)
        taken = "SELECT count(*) FROM seats WHERE flight_id = $1 AND state <> 'AVAILABLE'"
        return not await database.fetchval(taken, full.flight_id)

    await eventually(at_rest)
    states = {(await waiter.entry(entry)).state for waiter, entry in zip(waiters, entries, strict=True)}
    assert states <= {pb.WaitlistEntry.LEFT, pb.WaitlistEntry.ASSIGNED}


async def test_a_repeated_event_changes_nothing(full: Flight, waitlist_database: Database) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    for reason in ("STRIKE", "FOG"):
        async with waitlist_database.transaction():
            await on_flight_cancelled(waitlist_database, cancelled(full.flight_id, reason))
    row = await waitlist_database.fetchrow(
        "SELECT cancel_reason, revision FROM flights WHERE flight_id = $1", full.flight_id
    )
    assert row is not None
    assert tuple(row) == ("STRIKE", 2)
    moves = "SELECT count(*) FROM entry_events WHERE entry_id = $1 AND to_state = 'LEFT'"
    assert await waitlist_database.fetchval(moves, entry.entry_id) == 1
    with refused("NOT_FOUND", "ENTRY_NOT_FOUND"):
        await full.waiter().entry(entry)
    # Leaving an entry that has already ended succeeds.
    assert (await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))).state == (
        pb.WaitlistEntry.LEFT
    )
