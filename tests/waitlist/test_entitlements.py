"""An entry ends with its entitlement and when check-in closes (WL-7).

The passenger's needs are evaluated when a seat is assigned.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from uuid import uuid4

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from deploy.mocks.mail import MailSink
from operations.invariants.waitlists import WAITLIST_INVARIANTS
from tests.callers import Callers, refused
from tests.instances import Database
from tests.waiting import eventually
from tests.waitlist.conftest import Flight, Manifest, Waiter
from waitlist_service import entitlements, peers
from waitlist_service.entries import Entry

GONE = timedelta(seconds=-1)


@pytest.fixture(autouse=True)
async def well(manifest: tuple[Manifest, str]) -> AsyncIterator[None]:
    """Makes the check-in service available again after each test."""
    yield
    manifest[0].is_down = False


async def reason_of(database: Database, entry: pb.WaitlistEntry) -> str:
    """Returns the reason of an entry's latest transition."""
    reason: str = await database.fetchval(
        "SELECT reason FROM entry_events WHERE entry_id = $1 ORDER BY version DESC LIMIT 1", entry.entry_id
    )
    return reason


async def timers_of(database: Database, flight_id: str) -> list[str]:
    """Returns the pending timers of a flight and of its entries."""
    rows = await database.fetch(
        """
        SELECT name FROM timers
        WHERE fire_time IS NULL
          AND (subject = $1 OR starts_with(subject, $1 || '/')
               OR subject IN (SELECT entry_id::text FROM entries WHERE flight_id = $1))
        """,
        flight_id,
    )
    return sorted(row["name"] for row in rows)


async def test_an_entry_without_entitlement_is_skipped_and_ends(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("20A"), await second.join("20A")]
    full.manifest.take_off(full.flight_id, first.passenger_id)
    await full.free("20A")
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "20A"
    await first.becomes(entries[0], "LEFT")
    assert await reason_of(waitlist_database, entries[0]) == "ENTITLEMENT_ENDED"
    assert await full.seat_of(first) == ""


async def test_an_entry_ends_with_the_entitlement(full: Flight, mails: MailSink) -> None:
    waiter = full.waiter()
    email = f"{waiter.pnr.lower()}@passengers.example"
    full.manifest.put(full.flight_id, waiter.passenger_id, waiter.pnr, contact_email=email)
    entry = await waiter.join()
    full.manifest.take_off(full.flight_id, waiter.passenger_id)
    assert (await waiter.becomes(entry, "LEFT")).position == 0

    async def mailed() -> bool:
        return any(email in letter.to and "no longer" in letter.subject for letter in mails.mails)

    await eventually(mailed)
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await waiter.join()


async def test_an_offer_ends_with_the_entitlement(full: Flight, callers: Callers) -> None:
    await full.mode(pb.OFFER)
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("20A"), await second.join("20A")]
    await full.free("20A")
    offered = await first.becomes(entries[0], "OFFERED")
    full.manifest.take_off(full.flight_id, first.passenger_id)
    await first.becomes(entries[0], "LEFT")
    hold = await callers.service().GetHold(seats.GetHoldRequest(hold_id=offered.hold_id))
    assert hold.state == seats.Hold.CANCELLED
    assert (await second.becomes(entries[1], "OFFERED")).seat_number == "20A"


async def test_an_offer_is_not_accepted_after_the_entitlement_ended(full: Flight) -> None:
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    await waiter.becomes(entry, "OFFERED")
    full.manifest.take_off(full.flight_id, waiter.passenger_id)
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id))
    await waiter.becomes(entry, "LEFT")
    assert await full.seat_of(waiter) == ""


async def test_entries_and_timers_end_when_check_in_closes(
    full: Flight, waitlist_database: Database, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entitlements, "PAGE", 2)
    await full.mode(pb.OFFER)
    waiters = [full.waiter() for _ in range(5)]
    joined = [await each.join("20A") for each in waiters]
    await full.free("20A")
    await waiters[0].becomes(joined[0], "OFFERED")
    full.manifest.closes(full.flight_id, after=timedelta(seconds=1))
    for waiter, entry in zip(waiters, joined, strict=True):
        left = await waiter.becomes(entry, "LEFT")
        assert left.update_time.ToNanoseconds() >= closing(full).ToNanoseconds()
        assert await reason_of(waitlist_database, entry) == "CHECK_IN_CLOSED"

    async def at_rest() -> bool:
        is_open = "SELECT waitlist_open FROM flights WHERE flight_id = $1"
        return not await timers_of(waitlist_database, full.flight_id) and not await database.fetchval(
            is_open, full.flight_id
        )

    await eventually(at_rest)
    with refused("FAILED_PRECONDITION", "CHECK_IN_CLOSED") as refusal:
        await full.waiter().join("20A")
    assert refusal.info.metadata["flight_id"] == full.flight_id
    await full.shows("20A", "AVAILABLE")


def closing(flight: Flight) -> Timestamp:
    """Returns when check-in for the flight closes."""
    return flight.manifest.flights[flight.flight_id].check_in_close_time


async def test_an_offer_is_not_accepted_after_check_in_closed(full: Flight) -> None:
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    await waiter.becomes(entry, "OFFERED")
    full.manifest.closes(full.flight_id, after=GONE)
    with refused("FAILED_PRECONDITION", "CHECK_IN_CLOSED"):
        await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id))
    await waiter.becomes(entry, "LEFT")


async def test_an_earlier_departure_ends_entries(full: Flight, waitlist_database: Database) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    full.manifest.closes(full.flight_id, after=GONE)
    await waiter.becomes(entry, "LEFT")
    assert await reason_of(waitlist_database, entry) == "CHECK_IN_CLOSED"


async def test_a_departure_that_is_delayed_keeps_the_waitlist_open(full: Flight, waitlist_database: Database) -> None:
    full.manifest.closes(full.flight_id, after=timedelta(hours=1))
    waiter = full.waiter()
    entry = await waiter.join("20A")
    full.manifest.closes(full.flight_id, after=timedelta(hours=2))
    # Makes the timer of the first closing time due.
    await waitlist_database.execute(
        "UPDATE timers SET due_time = now(), try_time = now() WHERE name = 'close' AND subject = $1", full.flight_id
    )

    async def followed() -> bool:
        due = await waitlist_database.fetchval(
            """
            SELECT due_time > now() + interval '110 min' FROM timers
            WHERE name = 'close' AND subject = $1 AND fire_time IS NULL
            """,
            full.flight_id,
        )
        return bool(due)

    await eventually(followed)
    assert (await waiter.entry(entry)).state == pb.WaitlistEntry.WAITING
    await full.free("20A")
    await waiter.becomes(entry, "ASSIGNED")


async def test_passengers_can_join_again_after_a_delay(full: Flight) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    full.manifest.closes(full.flight_id, after=GONE)
    await waiter.becomes(entry, "LEFT")
    full.manifest.closes(full.flight_id, after=timedelta(hours=1))
    again = await waiter.join("20A")
    await full.free("20A")
    await waiter.becomes(again, "ASSIGNED")


async def test_a_cancelled_flight_is_detected_without_its_event(full: Flight, waitlist_database: Database) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    full.manifest.cancels(full.flight_id, "STRIKE")
    await waiter.becomes(entry, "LEFT")
    assert await reason_of(waitlist_database, entry) == "FLIGHT_CANCELLED"
    with refused("FAILED_PRECONDITION", "FLIGHT_CANCELLED"):
        await waiter.join("20A")


async def test_a_session_can_act_only_for_its_locator(full: Flight) -> None:
    waiter, stranger = full.waiter(), full.waiter()
    with refused("NOT_FOUND", "PASSENGER_NOT_FOUND"):
        await stranger.waitlist.JoinWaitlist(
            pb.JoinWaitlistRequest(flight_id=full.flight_id, passenger_id=waiter.passenger_id)
        )


@pytest.mark.parametrize("role", ["passenger", "agent"])
async def test_a_lap_infant_cannot_join(full: Flight, waitlist: Callers, role: str) -> None:
    infant = full.waiter("ECONOMY:INFANT")
    caller = infant.waitlist if role == "passenger" else waitlist.agent()
    with refused("FAILED_PRECONDITION", "LAP_INFANT_HAS_NO_SEAT"):
        await caller.JoinWaitlist(pb.JoinWaitlistRequest(flight_id=full.flight_id, passenger_id=infant.passenger_id))


async def test_an_entry_ends_when_its_passenger_becomes_an_infant(full: Flight) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    full.manifest.put(full.flight_id, waiter.passenger_id, waiter.pnr, "ECONOMY:INFANT")
    await full.free("20A")
    await waiter.becomes(entry, "LEFT")
    assert await full.seat_of(waiter) == ""


async def test_an_exit_row_skips_an_entry_with_new_needs(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("12A", "20A"), await second.join("12A")]
    full.manifest.put(full.flight_id, first.passenger_id, first.pnr, "ECONOMY:ADULT+WCHC")
    await full.free("12A")
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "12A"
    assert (await first.entry(entries[0])).position == 1
    await no_offender_of(waitlist_database, full)
    await full.free("20A")
    assert (await first.becomes(entries[0], "ASSIGNED")).seat_number == "20A"


async def test_a_skipped_entry_stays_ahead_of_younger_ones(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    await full.free("25C")
    held = await first.seats.hold(full.flight_id, "25C", first.passenger_id)
    entries = [await first.join("20A"), await second.join("20A")]
    await full.free("20A")
    assigned = await second.becomes(entries[1], "ASSIGNED")
    assert assigned.seat_number == "20A"
    await full.callers.agent().cancel(seats.Hold(hold_id=assigned.hold_id))

    async def is_passed_over_again() -> bool:
        return bool(
            await waitlist_database.fetchval(
                "SELECT skip_time > first_skip_time FROM skips WHERE entry_id = $1", entries[0].entry_id
            )
        )

    await eventually(is_passed_over_again)
    await no_offender_of(waitlist_database, full)
    await first.seats.cancel(held)
    assert (await first.becomes(entries[0], "ASSIGNED")).seat_number == "20A"


async def test_a_forbidden_seat_is_assigned_after_the_needs_change(full: Flight, waitlist_database: Database) -> None:
    waiter = full.waiter("ECONOMY:ADULT+WCHC")
    entry = await waiter.join("12A")
    await full.free("12A")

    async def is_passed_over() -> bool:
        return bool(await waitlist_database.fetchval("SELECT true FROM skips WHERE entry_id = $1", entry.entry_id))

    await eventually(is_passed_over)
    full.manifest.put(full.flight_id, waiter.passenger_id, waiter.pnr)
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "12A"


async def test_a_new_cabin_excludes_seats_of_the_former_cabin(full: Flight) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join(), await second.join()]
    full.manifest.put(full.flight_id, first.passenger_id, first.pnr, "BUSINESS")
    await full.free("20A")
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "20A"
    assert (await first.entry(entries[0])).preferences.cabin == pb.BUSINESS


async def test_an_entry_follows_its_passenger_to_another_locator(full: Flight) -> None:
    waiter, other = full.waiter(), full.waiter()
    entry = await waiter.join("20A")
    full.manifest.put(full.flight_id, waiter.passenger_id, other.pnr)

    async def moved() -> bool:
        owner = Waiter(full.flight_id, waiter.passenger_id, other.pnr, other.seats, other.waitlist)
        return (await owner.entry(entry)).state == pb.WaitlistEntry.WAITING

    async def reaches() -> bool:
        try:
            return await moved()
        except Exception:
            return False

    await eventually(reaches)
    with refused("NOT_FOUND", "ENTRY_NOT_FOUND"):
        await waiter.entry(entry)


async def test_no_seat_is_assigned_while_the_manifest_is_unavailable(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("20A"), await second.join("20A")]
    full.manifest.take_off(full.flight_id, first.passenger_id)
    full.manifest.is_down = True
    await full.free("20A")

    async def waits() -> bool:
        return bool(
            await waitlist_database.fetchval(
                "SELECT last_error IS NOT NULL FROM timers WHERE name = 'assign' AND subject = $1", entries[0].entry_id
            )
        )

    await eventually(waits)
    with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE") as refusal:
        await full.waiter().join("20A")
    assert refusal.retry_after_seconds is not None
    full.manifest.is_down = False
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "20A"
    await first.becomes(entries[0], "LEFT")


async def test_a_matched_passenger_can_leave_during_an_outage(full: Flight, waitlist_database: Database) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("20A"), await second.join("20A")]
    full.manifest.is_down = True
    await full.free("20A")

    async def matched() -> bool:
        return bool(
            await waitlist_database.fetchval(
                "SELECT claim_id IS NOT NULL FROM entries WHERE entry_id = $1", entries[0].entry_id
            )
        )

    await eventually(matched)
    left = await first.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entries[0].entry_id))
    assert left.state == pb.WaitlistEntry.LEFT
    full.manifest.is_down = False
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "20A"


async def test_a_flight_with_a_lost_sweep_is_compared_again(full: Flight, waitlist_database: Database) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")

    async def lost() -> bool:
        """Deletes the sweep timer, which each sweep sets; True if none ran for 2 s."""
        await waitlist_database.execute("DELETE FROM timers WHERE name = 'sweep' AND subject = $1", full.flight_id)
        is_old: bool = await waitlist_database.fetchval(
            "SELECT compare_time < now() - interval '2 s' FROM flights WHERE flight_id = $1", full.flight_id
        )
        return is_old

    await eventually(lost)
    await waitlist_database.execute(
        "UPDATE flights SET compare_time = now() - interval '1 min' WHERE flight_id = $1", full.flight_id
    )
    full.manifest.take_off(full.flight_id, waiter.passenger_id)
    await waiter.becomes(entry, "LEFT")


def test_a_claim_has_at_most_eight_special_services(entry_of: Callable[..., Entry]) -> None:
    many = ["BLND", "CHML", "DEAF", "MAAS", "MEDA", "VGML", "WCHC", "WCHR", "INFT"]
    request = peers.claim_request(entry_of(special_services=many), offer_ttl=None)
    assert len(request.profile.special_services) == 8
    assert "INFT" in request.profile.special_services


@pytest.fixture
def entry_of() -> Callable[..., Entry]:
    """Makes an entry that is matched with a seat."""

    def make(**more: object) -> Entry:
        row: dict[str, object] = dict.fromkeys(Entry.__dataclass_fields__)
        row |= {
            "entry_id": uuid4(),
            "flight_id": "SH1",
            "number": 1,
            "passenger_id": "P1",
            "owner": "passenger:ABCDEF",
            "type": "ADULT",
            "cabin": "ECONOMY",
            "seat_number": "20A",
            "claim_id": uuid4(),
        }
        return Entry(**(row | more))  # type: ignore[arg-type]

    return make


async def no_offender_of(database: Database, flight: Flight) -> None:
    """Fails if `skyhigh verify` finds an overtaken entry of this flight."""
    (invariant,) = [each for each in WAITLIST_INVARIANTS if "younger entry" in each.name]
    numbers = {
        row["entry_id"]
        for row in await database.fetch("SELECT entry_id FROM entries WHERE flight_id = $1", flight.flight_id)
    }
    assert [row for row in await database.fetch(invariant.offenders) if row["entry_id"] in numbers] == []
