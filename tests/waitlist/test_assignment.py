"""A freed seat goes to the oldest entry that wants it (WL-2 to WL-6)."""

from __future__ import annotations

import asyncio
import os
from types import SimpleNamespace
from typing import Any

import pytest
from skyhigh.mail.v1.mail_pb2 import Mail
from skyhigh.seat.v1 import events_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from deploy.mocks.mail import MailSink
from services import timers
from services.db import Conn
from tests.callers import Caller, Callers, a_few_at_once
from tests.instances import Database
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually
from tests.waitlist.conftest import Flight, Manifest
from waitlist_service import handlers, released_seats
from waitlist_service.entries import NOTIFY
from waitlist_service.handlers import on_seat_released


async def test_the_oldest_eligible_entry_gets_the_seat(full: Flight) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join(), await second.join()]
    await full.free("20A")
    got = await first.becomes(entries[0], "ASSIGNED")
    assert (got.seat_number, got.position) == ("20A", 0)
    assert await full.seat_of(first) == "20A"
    assert (await second.entry(entries[1])).position == 1


async def test_a_skipped_entry_keeps_its_place(full: Flight) -> None:
    choosy, easy = full.waiter(), full.waiter()
    wants_21c = await choosy.join("21C")
    wants_any = await easy.join()
    await full.free("20A")
    assert (await easy.becomes(wants_any, "ASSIGNED")).seat_number == "20A"
    assert (await choosy.entry(wants_21c)).position == 1
    await full.free("21C")
    assert (await choosy.becomes(wants_21c, "ASSIGNED")).seat_number == "21C"


@pytest.mark.parametrize(("position", "seat"), [("WINDOW", "20F"), ("AISLE", "20D"), ("MIDDLE", "20E")])
async def test_entries_get_preferred_seats(full: Flight, position: str, seat: str) -> None:
    waiter = full.waiter()
    entry = await waiter.join(positions=(position,))
    await full.free("20D", "20E", "20F")
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == seat


async def test_an_unwanted_seat_is_returned_at_once(full: Flight, callers: Callers, database: Database) -> None:
    await full.waiter().join("30F")
    await full.free("20A")
    await full.shows("20A", "AVAILABLE")
    # The waitlist returned the seat at once. The sweeper would have released it at the end of the window.
    actor = await database.fetchval(
        """
        SELECT actor FROM seat_events
        WHERE flight_id = $1 AND seat_number = '20A' AND from_state = 'OFFERED' AND to_state = 'AVAILABLE'
        """,
        full.flight_id,
    )
    assert actor == "service:waitlist"
    await callers.customer().hold(full.flight_id, "20A")


async def test_an_ineligible_entry_is_skipped(full: Flight, waitlist_database: Database) -> None:
    with_infant, able = full.waiter("ECONOMY:ADULT+INFT"), full.waiter()
    passed_over, next_one = await with_infant.join("12A"), await able.join("12A")
    await full.free("12A")
    assert (await able.becomes(next_one, "ASSIGNED")).seat_number == "12A"
    assert (await with_infant.entry(passed_over)).position == 1
    reason = await waitlist_database.fetchval("SELECT reason FROM skips WHERE entry_id = $1", passed_over.entry_id)
    assert reason == "EXIT_ROW_NOT_ALLOWED"


async def test_an_assigned_passengers_former_seat_is_offered(full: Flight) -> None:
    first, second = full.waiter(), full.waiter()
    await full.free("25C")
    await first.seats.confirm(await first.seats.hold(full.flight_id, "25C", first.passenger_id))
    upgrade, any_seat = await first.join("20A"), await second.join()
    await full.free("20A")
    assert (await first.becomes(upgrade, "ASSIGNED")).seat_number == "20A"
    assert (await second.becomes(any_seat, "ASSIGNED")).seat_number == "25C"


async def test_an_available_seat_is_assigned_at_once(full: Flight) -> None:
    await full.free("20A")
    waiter = full.waiter()
    assert (await waiter.becomes(await waiter.join(), "ASSIGNED")).seat_number == "20A"


async def test_the_waitlist_closes_when_empty_and_reopens(full: Flight) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))

    await full.free("21A")
    await full.shows("21A", "AVAILABLE")
    again = full.waiter()
    second = await again.join("20A")
    await full.free("20A")
    await again.becomes(second, "ASSIGNED")


async def test_the_sweep_finds_a_seat_with_lost_event(full: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")

    lost = set[str]()

    async def serve_nobody(conn: Conn, flight_id: str, seat_numbers: object) -> set[str]:
        lost.add(flight_id)
        return set()

    async def is_lost() -> bool:
        return full.flight_id in lost

    with monkeypatch.context() as patch:
        patch.setattr(
            handlers,
            "released_seats",
            SimpleNamespace(
                match_with_entries=serve_nobody,
                return_seats_later=released_seats.return_seats_later,
                offer_time=released_seats.offer_time,
            ),
        )
        await full.free("20A")
        await eventually(is_lost)
    await waiter.becomes(entry, "ASSIGNED")


async def test_a_repeated_and_a_late_event_change_nothing(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join(), await second.join()]
    await full.free("20A")
    await first.becomes(entries[0], "ASSIGNED")
    event = events_pb2.SeatReleased(flight_id=full.flight_id)
    event.seats.add(seat_number="20A", version=1, state=seats.Seat.OFFERED)
    async with waitlist_database.transaction():
        await on_seat_released(waitlist_database, event)

    async def back_in_line() -> bool:
        row = await waitlist_database.fetchrow(
            "SELECT state::text, claim_id FROM entries WHERE entry_id = $1", entries[1].entry_id
        )
        assert row is not None
        return bool(row["state"] == "WAITING" and row["claim_id"] is None)

    await eventually(back_in_line)
    assert await full.seat_of(first) == "20A"
    assert (await second.entry(entries[1])).position == 1


async def test_an_assigned_passenger_is_mailed(full: Flight, manifest: tuple[Manifest, str], mails: MailSink) -> None:
    waiter = full.waiter()
    email = f"{waiter.pnr.lower()}@passengers.example"
    manifest[0].put(full.flight_id, waiter.passenger_id, waiter.pnr, contact_email=email)
    mails.behaviour.now.refuse = 1
    entry = await waiter.join("20A")
    await full.free("20A")
    await waiter.becomes(entry, "ASSIGNED")

    async def mailed() -> bool:
        return any(email in letter.to and "20A" in letter.subject for letter in mails.mails)

    await eventually(mailed)


async def test_a_notify_timer_that_runs_twice_mails_once(
    full: Flight,
    manifest: tuple[Manifest, str],
    waitlist_database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    await waiter.becomes(entry, "ASSIGNED")
    # Only the notify timer reads the address.
    email = f"{waiter.pnr.lower()}@passengers.example"
    manifest[0].put(full.flight_id, waiter.passenger_id, waiter.pnr, contact_email=email)
    settle, died = timers.Timers._settle, list[str]()

    async def die_once(self: timers.Timers, timer: timers._Taken, error: Exception | None, **more: Any) -> None:
        if (timer.name, timer.subject) == (NOTIFY, entry.entry_id) and not died:
            died.append(timer.subject)
        else:
            await settle(self, timer, error, **more)

    monkeypatch.setattr(timers.Timers, "_settle", die_once)
    await timers.set_timer(waitlist_database, NOTIFY, entry.entry_id)

    async def handled() -> bool:
        return bool(died)

    await eventually(handled)
    # Ends the lease of the process that died.
    await waitlist_database.execute(
        "UPDATE timers SET try_time = now() WHERE name = $1 AND subject = $2", NOTIFY, entry.entry_id
    )

    async def done() -> bool:
        left = "SELECT EXISTS (SELECT FROM timers WHERE name = $1 AND subject = $2 AND fire_time IS NULL)"
        return not await waitlist_database.fetchval(left, NOTIFY, entry.entry_id)

    await eventually(done)
    bodies = await waitlist_database.fetch("SELECT body FROM outbox WHERE routing_key = 'waitlist.mail.v1'")
    assert [mail.to for row in bodies if (mail := Mail.FromString(row["body"])).to == email] == [email]


async def test_no_other_caller_gets_a_released_seat(full: Flight, callers: Callers) -> None:
    """100 other callers try to hold each freed seat.

    SKYHIGH_TEST_ROUNDS sets the number of seats.
    """
    public = [callers.customer() for _ in range(100)]

    async def answer(caller: Caller, number: str) -> Any:
        (result,) = await at_once(caller.hold(full.flight_id, number))
        return result

    for number in full.seat_numbers[: int(os.environ.get("SKYHIGH_TEST_ROUNDS", "2"))]:
        waiter = full.waiter()
        entry = await waiter.join(number)
        results, _ = await asyncio.gather(
            a_few_at_once((answer(caller, number) for _ in range(3) for caller in public), at_once=30),
            full.free(number),
        )
        assert set(outcomes(results)) == {"SEAT_TAKEN"}
        assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == number


async def test_a_held_seat_delays_the_assignment_until_its_end(full: Flight, waitlist_database: Database) -> None:
    await full.free("25C")
    waiter = full.waiter()
    hold = await waiter.seats.hold(full.flight_id, "25C", waiter.passenger_id)
    entry = await waiter.join("20A")
    await full.free("20A")

    async def is_skipped() -> bool:
        return bool(await waitlist_database.fetchval("SELECT true FROM skips WHERE entry_id = $1", entry.entry_id))

    await eventually(is_skipped)
    assert (await waiter.entry(entry)).state == pb.WaitlistEntry.WAITING
    await waiter.seats.cancel(hold)
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "20A"


async def test_many_released_seats_are_assigned_in_order_of_joining(full: Flight) -> None:
    waiters = [full.waiter() for _ in range(30)]
    entries = [await waiter.join() for waiter in waiters]
    numbers = [f"{row}{letter}" for row in range(15, 20) for letter in "ABC"]
    await full.free(*numbers)
    got = [await waiter.becomes(entry, "ASSIGNED") for waiter, entry in list(zip(waiters, entries, strict=True))[:15]]
    assert sorted(entry.seat_number for entry in got) == sorted(numbers)
    for waiter, entry in list(zip(waiters, entries, strict=True))[15:]:
        assert (await waiter.entry(entry)).state == pb.WaitlistEntry.WAITING
