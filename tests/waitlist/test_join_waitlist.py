"""JoinWaitlist, GetWaitlistEntry, ListWaitlist (WL-1)."""

from __future__ import annotations

import asyncio
from typing import Any, Final
from uuid import uuid4

import pytest
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from tests.callers import Callers, a_few_at_once, refused
from tests.dates import flight_id
from tests.waitlist.conftest import Flight
from waitlist_service import entries as waitlist_entries

NOWHERE: Final = flight_id("SH000")


async def test_a_new_entry_is_behind_all_older_entries(full: Flight) -> None:
    waiters = [full.waiter() for _ in range(3)]
    entries = [await waiter.join() for waiter in waiters]
    assert [entry.position for entry in entries] == [1, 2, 3]
    assert {pb.WaitlistEntry.State.Name(entry.state) for entry in entries} == {"WAITING"}
    await waiters[0].waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entries[0].entry_id))
    assert (await waiters[2].entry(entries[2])).position == 2
    assert (await waiters[0].entry(entries[0])).position == 0


async def test_concurrent_joins_get_different_positions(full: Flight) -> None:
    entries = await a_few_at_once(full.waiter().join() for _ in range(40))
    assert sorted(entry.position for entry in entries)[-1] == 40


async def test_an_entry_is_read_at_one_moment(full: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    real, left = waitlist_entries.find, False

    async def find(*asked: Any, **more: Any) -> waitlist_entries.Entry:
        nonlocal left
        found = await real(*asked, **more)
        if not left:
            left = True
            await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))
        return found

    monkeypatch.setattr(waitlist_entries, "find", find)
    shown = await waiter.entry(entry)
    assert (shown.state, shown.position) == (pb.WaitlistEntry.WAITING, 1)
    assert (await waiter.entry(entry)).state == pb.WaitlistEntry.LEFT


async def test_a_passenger_has_one_live_entry(full: Flight) -> None:
    waiter = full.waiter()
    entry = await waiter.join()
    with refused("ALREADY_EXISTS", "ALREADY_WAITING") as refusal:
        await waiter.join()
    assert refusal.info.metadata["entry_id"] == entry.entry_id
    await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))
    assert (await waiter.join()).state == pb.WaitlistEntry.WAITING


async def test_a_repeat_returns_the_first_response(full: Flight) -> None:
    waiter, request_id = full.waiter(), str(uuid4())
    first = await waiter.join(request_id=request_id)
    assert await waiter.join(request_id=request_id) == first
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await waiter.join("20A", request_id=request_id)


async def test_concurrent_joins_with_one_key_create_one_entry(full: Flight) -> None:
    waiter, request_id = full.waiter(), str(uuid4())
    entries = await asyncio.gather(*(waiter.join(request_id=request_id) for _ in range(20)))
    assert len({entry.entry_id for entry in entries}) == 1


async def test_an_unknown_flight_or_passenger_is_not_found(full: Flight, waitlist: Callers) -> None:
    waiter = full.waiter()
    with refused("NOT_FOUND", "SEAT_NOT_FOUND") as refusal:
        await waiter.join("20A", "77A")
    assert refusal.info.metadata["seat_number"] == "77A"
    stranger = pb.JoinWaitlistRequest(flight_id=full.flight_id, passenger_id="stranger")
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await waiter.waitlist.JoinWaitlist(stranger)
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await waitlist.agent().JoinWaitlist(stranger)
    full.manifest.put(NOWHERE, "P1", waiter.pnr)
    nowhere = waitlist.passenger(pnr=waiter.pnr)
    with refused("NOT_FOUND", "FLIGHT_NOT_FOUND"):
        await nowhere.JoinWaitlist(pb.JoinWaitlistRequest(flight_id=NOWHERE, passenger_id="P1"))


async def test_another_cabin_is_refused(full: Flight) -> None:
    waiter = full.waiter()
    with refused("FAILED_PRECONDITION", "CABIN_NOT_ALLOWED"):
        await waiter.waitlist.JoinWaitlist(
            pb.JoinWaitlistRequest(
                flight_id=full.flight_id,
                passenger_id=waiter.passenger_id,
                preferences=pb.SeatPreferences(cabin=pb.FIRST),
            )
        )


async def test_an_agent_joins_for_a_passenger_of_the_manifest(full: Flight, waitlist: Callers) -> None:
    waiter = full.waiter()
    entry = await waitlist.agent().JoinWaitlist(
        pb.JoinWaitlistRequest(flight_id=full.flight_id, passenger_id=waiter.passenger_id)
    )
    assert (await waiter.entry(entry)).entry_id == entry.entry_id, "it is the passenger's own"


async def test_a_foreign_entry_is_not_found(full: Flight) -> None:
    entry = await full.waiter().join()
    stranger = full.waiter()
    for method, request in (
        ("GetWaitlistEntry", pb.GetWaitlistEntryRequest),
        ("AcceptOffer", pb.AcceptOfferRequest),
        ("DeclineOffer", pb.DeclineOfferRequest),
        ("LeaveWaitlist", pb.LeaveWaitlistRequest),
    ):
        for entry_id in (entry.entry_id, str(uuid4())):
            with refused("NOT_FOUND", "ENTRY_NOT_FOUND"):
                await getattr(stranger.waitlist, method)(request(entry_id=entry_id))


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("flight_id", {"flight_id": "?", "passenger_id": "P1"}),
        ("passenger_id", {"flight_id": flight_id("SH1"), "passenger_id": ""}),
        (
            "preferences.seat_numbers[0]",
            {
                "flight_id": flight_id("SH1"),
                "passenger_id": "P1",
                "preferences": pb.SeatPreferences(seat_numbers=["12I"]),
            },
        ),
        (
            "preferences.positions[0]",
            {
                "flight_id": flight_id("SH1"),
                "passenger_id": "P1",
                "preferences": pb.SeatPreferences(positions=[pb.SeatPreferences.POSITION_UNSPECIFIED]),
            },
        ),
        ("request_id", {"flight_id": flight_id("SH1"), "passenger_id": "P1", "request_id": "x"}),
    ],
)
async def test_a_wrong_field_is_named(waitlist: Callers, field: str, request_: dict[str, object]) -> None:
    with refused("INVALID_ARGUMENT", "INVALID_FIELD") as refusal:
        await waitlist.agent().JoinWaitlist(pb.JoinWaitlistRequest(**request_))  # type: ignore[arg-type]
    assert refusal.fields == [field]


async def test_pages_list_entries_in_order_of_joining(full: Flight, waitlist: Callers) -> None:
    joined = [(await full.waiter().join()).entry_id for _ in range(5)]
    agent, listed, token = waitlist.agent(), [], ""
    while True:
        page = await agent.ListWaitlist(pb.ListWaitlistRequest(flight_id=full.flight_id, page_size=2, page_token=token))
        listed += [entry.entry_id for entry in page.entries]
        token = page.next_page_token
        if not token:
            break
    assert listed == joined
