"""Mode OFFER: a seat is held until its passenger accepts or declines (WL-3, WL-6)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID, uuid4

import pytest
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from deploy.mocks.mail import MailSink
from tests.aging import lapse_holds
from tests.callers import Callers, refused
from tests.instances import Database
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually
from tests.waitlist.conftest import Flight, Waiter
from waitlist_service.entries import LAPSE

Offered = tuple[Waiter, pb.WaitlistEntry]


def accept(entry: pb.WaitlistEntry) -> pb.AcceptOfferRequest:
    return pb.AcceptOfferRequest(entry_id=entry.entry_id)


def decline(entry: pb.WaitlistEntry) -> pb.DeclineOfferRequest:
    return pb.DeclineOfferRequest(entry_id=entry.entry_id)


def leave(entry: pb.WaitlistEntry) -> pb.LeaveWaitlistRequest:
    return pb.LeaveWaitlistRequest(entry_id=entry.entry_id)


async def end_offer(
    database: Database, waitlist_database: Database, entry: pb.WaitlistEntry, *, left: timedelta
) -> datetime:
    """Moves the end of an offer, in both services, to `left` from now; returns it."""
    await lapse_holds(database, seats.Hold(hold_id=entry.hold_id), left=left)
    end_time: datetime = await database.fetchval("SELECT expire_time FROM holds WHERE hold_id = $1", entry.hold_id)
    await waitlist_database.execute(
        "UPDATE entries SET offer_expire_time = $2 WHERE entry_id = $1", entry.entry_id, end_time
    )
    moved = await waitlist_database.execute(
        "UPDATE timers SET due_time = $2, try_time = $2 WHERE name = $3 AND subject = $1 AND fire_time IS NULL",
        entry.entry_id,
        end_time,
        LAPSE,
    )
    assert moved == "UPDATE 1"
    return end_time


@pytest.fixture
async def offered(full: Flight) -> Offered:
    """A passenger to whom 20A is offered."""
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    return waiter, await waiter.becomes(entry, "OFFERED")


async def test_an_offer_is_a_hold_with_an_expire_time(full: Flight, offered: Offered) -> None:
    _, entry = offered
    assert entry.seat_number == "20A"
    assert entry.hold_id
    assert entry.offer_expire_time.ToMilliseconds() > entry.update_time.ToMilliseconds()
    await full.shows("20A", "HELD")


async def test_the_mail_has_the_offers_local_end_time(full: Flight, mails: MailSink) -> None:
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    email = f"{waiter.pnr.lower()}@passengers.example"
    full.manifest.put(full.flight_id, waiter.passenger_id, waiter.pnr, contact_email=email)
    full.manifest.flights[full.flight_id].origin = "KTM"
    entry = await waiter.join("20A")
    await full.free("20A")
    entry = await waiter.becomes(entry, "OFFERED")

    async def mailed() -> bool:
        return any(email in letter.to for letter in mails.mails)

    await eventually(mailed)
    (letter,) = [letter for letter in mails.mails if email in letter.to]
    end_time = entry.offer_expire_time.ToDatetime(tzinfo=UTC).astimezone(timezone(timedelta(hours=5, minutes=45)))
    assert f"{end_time:%Y-%m-%d %H:%M} (+05:45)" in " ".join(letter.text.split())


async def test_accepting_an_offer_assigns_the_seat(full: Flight, offered: Offered) -> None:
    waiter, entry = offered
    accepted = await waiter.waitlist.AcceptOffer(accept(entry))
    assert (accepted.state, accepted.seat_number) == (pb.WaitlistEntry.ASSIGNED, "20A")
    assert await full.seat_of(waiter) == "20A"
    assert (await waiter.waitlist.AcceptOffer(accept(entry))).state == pb.WaitlistEntry.ASSIGNED
    with refused("FAILED_PRECONDITION", "NO_OFFER"):
        await waiter.waitlist.DeclineOffer(decline(entry))
    with refused("FAILED_PRECONDITION", "ENTRY_ENDED"):
        await waiter.waitlist.LeaveWaitlist(leave(entry))


async def test_the_history_has_the_accepting_agent(
    offered: Offered, waitlist: Callers, waitlist_database: Database
) -> None:
    _, entry = offered
    agent = waitlist.agent("desk-7")
    await agent.AcceptOffer(accept(entry))
    actor = await waitlist_database.fetchval(
        "SELECT actor FROM entry_events WHERE entry_id = $1 AND to_state = 'ASSIGNED'", UUID(entry.entry_id)
    )
    assert actor == "agent:desk-7"


async def test_an_accept_key_is_bound_to_one_offer(full: Flight, offered: Offered) -> None:
    waiter, entry = offered
    request_id = str(uuid4())
    request = pb.AcceptOfferRequest(entry_id=entry.entry_id, request_id=request_id)
    assert await waiter.waitlist.AcceptOffer(request) == await waiter.waitlist.AcceptOffer(request)
    with refused("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED"):
        await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=str(uuid4()), request_id=request_id))


@pytest.mark.parametrize("how", ["decline", "leave", "lapse"])
async def test_a_declined_seat_is_offered_to_the_next(
    full: Flight, offered: Offered, database: Database, waitlist_database: Database, how: str
) -> None:
    waiter, entry = offered
    other = full.waiter()
    waiting = await other.join("20A")
    if how == "decline":
        assert (await waiter.waitlist.DeclineOffer(decline(entry))).state == pb.WaitlistEntry.DECLINED
        assert (await waiter.waitlist.DeclineOffer(decline(entry))).state == pb.WaitlistEntry.DECLINED
    elif how == "leave":
        assert (await waiter.waitlist.LeaveWaitlist(leave(entry))).state == pb.WaitlistEntry.LEFT
        assert (await waiter.waitlist.LeaveWaitlist(leave(entry))).state == pb.WaitlistEntry.LEFT
    else:
        end_time = await end_offer(database, waitlist_database, entry, left=timedelta(seconds=0.3))
        lapsed = await waiter.becomes(entry, "DECLINED")
        assert lapsed.update_time.ToDatetime(tzinfo=UTC) >= end_time
        with refused("ABORTED", "OFFER_EXPIRED"):
            await waiter.waitlist.AcceptOffer(accept(entry))
    assert (await other.becomes(waiting, "OFFERED")).seat_number == "20A"


async def test_an_extended_hold_does_not_prolong_the_offer(
    full: Flight, offered: Offered, waitlist_database: Database
) -> None:
    waiter, entry = offered
    other = full.waiter()
    waiting = await other.join("20A")
    extended = await waiter.seats.ExtendHold(seats.ExtendHoldRequest(hold_id=entry.hold_id))
    assert extended.expire_time.ToDatetime() > entry.offer_expire_time.ToDatetime()
    await waitlist_database.execute(
        "UPDATE entries SET offer_expire_time = statement_timestamp() WHERE entry_id = $1", entry.entry_id
    )
    with refused("ABORTED", "OFFER_EXPIRED"):
        await waiter.waitlist.AcceptOffer(accept(entry))
    await waitlist_database.execute(
        "UPDATE timers SET due_time = now(), try_time = now() WHERE name = $2 AND subject = $1 AND fire_time IS NULL",
        entry.entry_id,
        LAPSE,
    )
    assert (await waiter.becomes(entry, "DECLINED")).seat_number == "20A"
    assert (await other.becomes(waiting, "OFFERED")).seat_number == "20A"
    with refused("FAILED_PRECONDITION", "HOLD_CANCELLED"):
        await waiter.seats.confirm(extended)
    with refused("ABORTED", "OFFER_EXPIRED"):
        await waiter.waitlist.AcceptOffer(accept(entry))


async def test_accept_without_an_offer_is_refused(full: Flight) -> None:
    waiter = full.waiter()
    entry = await waiter.join("30F")
    with refused("FAILED_PRECONDITION", "NO_OFFER"):
        await waiter.waitlist.AcceptOffer(accept(entry))
    with refused("FAILED_PRECONDITION", "NO_OFFER"):
        await waiter.waitlist.DeclineOffer(decline(entry))


async def test_accept_and_decline_at_once_leave_one_result(
    full: Flight, offered: Offered, waitlist_database: Database
) -> None:
    waiter, entry = offered
    results = await at_once(
        *(waiter.waitlist.AcceptOffer(accept(entry)) for _ in range(3)),
        *(waiter.waitlist.DeclineOffer(decline(entry)) for _ in range(3)),
        *(waiter.waitlist.LeaveWaitlist(leave(entry)) for _ in range(3)),
    )
    assert set(outcomes(results)) <= {"OK", "NO_OFFER", "ENTRY_ENDED", "OFFER_EXPIRED", "DEPENDENCY_UNAVAILABLE"}

    async def at_rest() -> bool:
        return not await waitlist_database.fetchval(
            """
            SELECT EXISTS (SELECT FROM timers WHERE subject = ANY($1) AND fire_time IS NULL)
                OR (SELECT state FROM entries WHERE entry_id = $2) = 'OFFERED'
            """,
            [entry.entry_id, entry.hold_id],
            entry.entry_id,
        )

    await eventually(at_rest)
    ended = await waiter.entry(entry)
    has_it = await full.seat_of(waiter) == "20A"
    assert has_it == (ended.state == pb.WaitlistEntry.ASSIGNED)
    assert ended.state in (pb.WaitlistEntry.ASSIGNED, pb.WaitlistEntry.DECLINED, pb.WaitlistEntry.LEFT)


async def test_a_mode_is_set_by_agents_for_one_flight(full: Flight, waitlist: Callers) -> None:
    answer = await waitlist.agent().SetWaitlistMode(
        pb.SetWaitlistModeRequest(flight_id=full.flight_id, mode=pb.AUTO_CONFIRM)
    )
    assert answer.mode == pb.AUTO_CONFIRM
    with refused("INVALID_ARGUMENT", "INVALID_FIELD"):
        await waitlist.agent().SetWaitlistMode(pb.SetWaitlistModeRequest(flight_id=full.flight_id))
