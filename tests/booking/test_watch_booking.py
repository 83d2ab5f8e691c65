"""WatchBooking: the booking, then each change of it, and heartbeats."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import uuid4

from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer, seats_of, state_of, without_history
from tests.callers import refused
from tests.waiting import PATIENCE_SECONDS, eventually

VARIABLES: Final = {"SKYHIGH_BOOKING_HEARTBEAT_SECONDS": "0.6", "SKYHIGH_BOOKING_WATCH_INTERVAL_SECONDS": "0.02"}
WAYS: Final = ["SEATS_RESERVED", "PAYMENT_PENDING", "PAYMENT_PROCESSING", "CONFIRMED"]


@asynccontextmanager
async def watching(watcher: Customer, booking: pb.Booking) -> AsyncIterator[Any]:
    """Watches a booking within the block; cancels the stream at its end."""
    stream = watcher.desk.WatchBooking(pb.WatchBookingRequest(booking_id=booking.booking_id))
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            yield stream
    finally:
        stream.cancel()


async def next_change(stream: Any) -> pb.Booking:
    """Returns the next booking of the stream; skips heartbeats."""
    while True:
        update = await stream.read()
        if update.HasField("booking"):
            booking: pb.Booking = update.booking
            return booking


async def states(watcher: Customer, booking: pb.Booking, *, until: str, seen: list[str] | None = None) -> list[str]:
    """Returns the states that the stream shows, without repeats, up to `until`.

    Each state is appended to `seen` when it is shown.
    """
    seen = [] if seen is None else seen
    async with watching(watcher, booking) as stream:
        while seen[-1:] != [until]:
            state = state_of(await next_change(stream))
            if seen[-1:] != [state]:
                seen.append(state)
    return seen


async def test_a_watch_begins_with_the_current_booking(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.journey(2), "ADULT", "CHILD")
    async with watching(customer, booked) as stream:
        assert await next_change(stream) == booked == without_history(await customer.get(booked))


async def test_every_watcher_sees_each_step_to_confirmation(agency: Agency, customer: Customer) -> None:
    """A slow watcher may miss a state; no watcher sees the states in another order."""
    booked = await customer.book(await agency.flight())
    watchers = [customer, customer, agency.agent()]
    shown: list[list[str]] = [[] for _ in watchers]
    watched = [
        asyncio.create_task(states(each, booked, until="CONFIRMED", seen=seen))
        for each, seen in zip(watchers, shown, strict=True)
    ]

    async def all_watch() -> bool:
        return all(shown)

    await eventually(all_watch)
    await customer.pay(booked)
    for seen in await asyncio.gather(*watched):
        assert seen == [state for state in WAYS if state in seen]
        assert seen[0] == "SEATS_RESERVED"


async def test_changed_seats_and_expire_time_are_shown(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    async with watching(customer, booked) as stream:
        assert await next_change(stream) == booked
        changed = await customer.move(booked, "19D")
        shown = await next_change(stream)
        assert seats_of(shown) == ["19D"]
        assert shown.expire_time == changed.expire_time


async def test_a_late_watcher_gets_the_end_state(agency: Agency, customer: Customer) -> None:
    booked = await customer.brought_to("CANCELLED")
    assert await states(customer, booked, until="CANCELLED") == ["CANCELLED"]


async def test_a_quiet_watch_sends_heartbeats(agency: Agency, customer: Customer) -> None:
    booked = await customer.book(await agency.flight())
    async with watching(customer, booked) as stream:
        assert (await stream.read()).HasField("booking")
        for _ in range(2):
            assert (await stream.read()).HasField("heartbeat")


async def test_a_foreign_booking_is_not_shown(agency: Agency, customer: Customer, stranger: Customer) -> None:
    booked = await customer.book(await agency.flight())
    statuses = []
    for booking_id in (booked.booking_id, str(uuid4())):
        with refused("NOT_FOUND", "BOOKING_NOT_FOUND") as refusal:
            await states(stranger, pb.Booking(booking_id=booking_id), until="CONFIRMED")
        statuses.append(refusal.status)
    assert statuses[0] == statuses[1]
