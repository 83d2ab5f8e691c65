"""A claim is retried unchanged until its outcome is known (WL-7).

A refused claim does not delay the next entry.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from skyhigh.seat.v1 import seat_service_pb2 as seats
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services.clients import PeerFault, PeerRefusal
from services.errors import Unavailable
from tests.callers import Callers, refused
from tests.instances import Database
from tests.seat.rules import at_once
from tests.waiting import eventually
from tests.waitlist.conftest import Flight, Waiter
from waitlist_service.peers import Hold, NotForPassenger, Peers
from waitlist_service.settings import WaitlistSettings

Claim = Callable[[Peers, seats.ClaimSeatRequest], Any]
CLAIM: Claim = Peers.claim


class Line:
    """The claims of one flight on their way to the seat service."""

    def __init__(self, flight: Flight) -> None:
        self.flight = flight
        self.requests: list[seats.ClaimSeatRequest] = []
        self.loses_answers = True

    async def claim(self, peers: Peers, request: seats.ClaimSeatRequest) -> Hold:
        """Sends the claim; loses the response while `loses_answers` is set."""
        if request.flight_id != self.flight.flight_id:
            found: Hold = await CLAIM(peers, request)
            return found
        self.requests.append(seats.ClaimSeatRequest.FromString(request.SerializeToString()))
        hold: Hold = await CLAIM(peers, request)
        if self.loses_answers:
            raise Unavailable
        return hold


@pytest.fixture
def line(full: Flight, monkeypatch: pytest.MonkeyPatch) -> Line:
    """A line that loses the responses to claims."""
    line = Line(full)

    async def claim(self: Peers, request: seats.ClaimSeatRequest) -> Hold:
        return await line.claim(self, request)

    monkeypatch.setattr(Peers, "claim", claim)
    return line


async def lost_first_answer(line: Line) -> None:
    """Waits until the response to a claim was lost."""

    async def asked() -> bool:
        return bool(line.requests)

    await eventually(asked)


@pytest.mark.parametrize("change", ["mode", "setting", "needs"])
async def test_a_claim_with_lost_response_is_repeated_unchanged(
    full: Flight, line: Line, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    await lost_first_answer(line)
    if change == "mode":
        await full.mode(pb.AUTO_CONFIRM)
    elif change == "setting":
        monkeypatch.setattr(WaitlistSettings, "offer_ttl", property(lambda _: timedelta(minutes=7)))
    else:
        full.manifest.put(full.flight_id, waiter.passenger_id, waiter.pnr, "ECONOMY:ADULT+VGML")
    line.loses_answers = False
    offered = await waiter.becomes(entry, "OFFERED")
    assert offered.seat_number == "20A"
    assert all(request == line.requests[0] for request in line.requests)
    left = await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))
    assert left.state == pb.WaitlistEntry.LEFT


async def test_a_confirmed_claim_with_lost_response_is_assigned(full: Flight, line: Line) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    await lost_first_answer(line)
    await full.mode(pb.OFFER)
    line.loses_answers = False
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "20A"
    assert await full.seat_of(waiter) == "20A"


def refuse(full: Flight, passenger: Waiter, refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes each claim for a passenger fail before it reaches the seat service."""

    async def claim(self: Peers, request: seats.ClaimSeatRequest) -> Hold:
        if (request.flight_id, request.passenger_id) == (full.flight_id, passenger.passenger_id):
            raise refusal
        found: Hold = await CLAIM(self, request)
        return found

    monkeypatch.setattr(Peers, "claim", claim)


@pytest.mark.parametrize(
    "refusal",
    [
        PeerFault(PeerRefusal(grpc.StatusCode.INTERNAL, "INTERNAL", {})),
        PeerRefusal(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", {}),
        PeerRefusal(grpc.StatusCode.FAILED_PRECONDITION, "A_REASON_OF_NEXT_YEAR", {}),
        NotForPassenger("PASSENGER_NOT_ENTITLED"),
        NotForPassenger("FLIGHT_DEPARTED"),
        NotForPassenger("EXIT_ROW_NOT_ALLOWED"),
    ],
    ids=str,
)
async def test_a_refused_claim_does_not_block_younger_entries(
    full: Flight, waitlist_database: Database, monkeypatch: pytest.MonkeyPatch, refusal: Exception
) -> None:
    first, second = full.waiter(), full.waiter()
    entries = [await first.join("20A"), await second.join("20A")]
    refuse(full, first, refusal, monkeypatch)
    await full.free("20A")
    assert (await second.becomes(entries[1], "ASSIGNED")).seat_number == "20A"
    kept = await first.entry(entries[0])
    # According to the manifest, which decides, the passenger is entitled.
    assert (kept.state, kept.position) == (pb.WaitlistEntry.WAITING, 1)
    skipped = await waitlist_database.fetchrow(
        "SELECT reason, end_time < 'infinity' AS ends FROM skips WHERE entry_id = $1", entries[0].entry_id
    )
    assert skipped is not None
    assert skipped["reason"] in str(refusal)
    assert skipped["ends"], "a copy of the manifest that is late refuses for a while, not for ever"


async def test_a_refused_claim_is_retried_after_double_pause(
    full: Flight, waitlist_database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiter = full.waiter()
    entry = await waiter.join("20A")
    refuse(full, waiter, PeerRefusal(grpc.StatusCode.INTERNAL, "INTERNAL", {}), monkeypatch)
    await full.free("20A")

    async def tried_again() -> bool:
        longer = await waitlist_database.fetchval(
            "SELECT end_time - skip_time > interval '5 s' FROM skips WHERE entry_id = $1", entry.entry_id
        )
        return bool(longer)

    await eventually(tried_again)
    monkeypatch.setattr(Peers, "claim", CLAIM)
    await waitlist_database.execute("UPDATE skips SET end_time = now() WHERE entry_id = $1", entry.entry_id)
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "20A"


async def test_a_reused_key_is_settled_by_the_passengers_seat(full: Flight, monkeypatch: pytest.MonkeyPatch) -> None:
    """The claim took effect, and its retries are refused, as case 08 left entries."""
    waiter = full.waiter()
    entry = await waiter.join("20A")
    first = True

    async def claim(self: Peers, request: seats.ClaimSeatRequest) -> Hold:
        nonlocal first
        if request.passenger_id == waiter.passenger_id and first:
            first = False
            await CLAIM(self, request)
            raise PeerRefusal(grpc.StatusCode.ALREADY_EXISTS, "IDEMPOTENCY_KEY_REUSED", {})
        found: Hold = await CLAIM(self, request)
        return found

    monkeypatch.setattr(Peers, "claim", claim)
    await full.free("20A")
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "20A"


async def offered_to(full: Flight) -> tuple[Waiter, pb.WaitlistEntry, seats.Hold]:
    """Returns a passenger with an offer of seat 20A, the entry and the hold."""
    await full.mode(pb.OFFER)
    waiter = full.waiter()
    entry = await waiter.join("20A")
    await full.free("20A")
    offered = await waiter.becomes(entry, "OFFERED")
    return waiter, entry, seats.Hold(hold_id=offered.hold_id)


@pytest.mark.parametrize(("verb", "reason"), [("decline", "NO_OFFER"), ("leave", "ENTRY_ENDED")])
async def test_a_confirmed_seat_survives_the_end_of_its_offer(full: Flight, verb: str, reason: str) -> None:
    waiter, entry, hold = await offered_to(full)
    await waiter.seats.confirm(hold)
    with refused("FAILED_PRECONDITION", reason) as refusal:
        if verb == "decline":
            await waiter.waitlist.DeclineOffer(pb.DeclineOfferRequest(entry_id=entry.entry_id))
        else:
            await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))
    assert refusal.info.metadata["state"] == "ASSIGNED"
    assert (await waiter.entry(entry)).state == pb.WaitlistEntry.ASSIGNED
    assert await full.seat_of(waiter) == "20A"


@pytest.mark.parametrize("verb", ["leave", "accept"])
async def test_an_offer_whose_hold_changed_passenger_assigns_nothing(full: Flight, callers: Callers, verb: str) -> None:
    waiter, entry, hold = await offered_to(full)
    agent = callers.agent()
    other = seats.SeatAssignment(flight_id=full.flight_id, seat_number="20A", passenger_id="X-other")
    await agent.confirm(await agent.ChangeHoldSeats(seats.ChangeHoldSeatsRequest(hold_id=hold.hold_id, seats=[other])))
    if verb == "leave":
        left = await waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id))
        assert left.state == pb.WaitlistEntry.LEFT
    else:
        with refused("ABORTED", "OFFER_EXPIRED"):
            await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id))
        assert (await waiter.entry(entry)).state == pb.WaitlistEntry.DECLINED
    assert await full.seat_of(waiter) == ""
    await full.shows("20A", "CONFIRMED")


async def test_a_hold_confirmed_elsewhere_accepts_the_offer(full: Flight) -> None:
    waiter, entry, hold = await offered_to(full)
    await waiter.seats.confirm(hold)
    assert (await waiter.becomes(entry, "ASSIGNED")).seat_number == "20A"


async def test_a_hold_cancelled_by_the_passenger_ends_the_offer(full: Flight) -> None:
    waiter, entry, hold = await offered_to(full)
    await waiter.seats.cancel(hold)
    assert (await waiter.becomes(entry, "DECLINED")).state == pb.WaitlistEntry.DECLINED


async def test_an_accepted_offer_shows_the_changed_seat(full: Flight) -> None:
    await full.free("25C")
    waiter, entry, hold = await offered_to(full)
    await waiter.seats.ChangeHoldSeats(
        seats.ChangeHoldSeatsRequest(
            hold_id=hold.hold_id,
            seats=[seats.SeatAssignment(flight_id=full.flight_id, seat_number="25C", passenger_id=waiter.passenger_id)],
        )
    )
    accepted = await waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id))
    assert accepted.seat_number == "25C" == await full.seat_of(waiter)


@pytest.mark.parametrize("verb", ["decline", "leave", "off the manifest"])
async def test_confirm_and_withdraw_at_once_leave_one_result(full: Flight, verb: str) -> None:
    for _ in range(5):
        waiter, entry, hold = await offered_to(full)
        calls = [waiter.seats.confirm(hold)]
        if verb == "decline":
            calls.append(waiter.waitlist.DeclineOffer(pb.DeclineOfferRequest(entry_id=entry.entry_id)))
        elif verb == "leave":
            calls.append(waiter.waitlist.LeaveWaitlist(pb.LeaveWaitlistRequest(entry_id=entry.entry_id)))
        else:
            full.manifest.take_off(full.flight_id, waiter.passenger_id)
            calls.append(waiter.waitlist.AcceptOffer(pb.AcceptOfferRequest(entry_id=entry.entry_id)))
        await at_once(*calls)

        async def ended(waiter: Waiter = waiter, entry: pb.WaitlistEntry = entry) -> bool:
            return (await waiter.entry(entry)).state != pb.WaitlistEntry.OFFERED

        await eventually(ended)
        is_assigned = (await waiter.entry(entry)).state == pb.WaitlistEntry.ASSIGNED
        assert is_assigned == (await full.seat_of(waiter) == "20A")
        await give_back(full, waiter)


async def give_back(full: Flight, waiter: Waiter) -> None:
    """Makes 20A taken again for the next round."""
    agent = full.callers.agent()
    if await full.seat_of(waiter) == "20A":
        found = await full.callers.service().FindPassengerSeats(
            seats.FindPassengerSeatsRequest(
                passengers=[
                    seats.FindPassengerSeatsRequest.FlightPassenger(
                        flight_id=full.flight_id, passenger_id=waiter.passenger_id
                    )
                ]
            )
        )
        await agent.cancel(seats.Hold(hold_id=found.seats[0].hold_id))
    await full.shows("20A", "AVAILABLE")
    await full.take("20A")
