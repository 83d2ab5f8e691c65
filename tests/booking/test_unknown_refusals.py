"""Refusals of the seat service with an unknown reason, and its faults.

A refusal ends the booking: paid money is refunded and the refund names the reason. A fault is retried.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import grpc
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from booking_service.peers import Peers
from services.clients import PeerFault, PeerRefusal
from services.errors import Unavailable
from tests.booking.agency import Agency, Customer, seats_of
from tests.callers import refused
from tests.waiting import eventually


def unknown(reason: str = "A_REASON_OF_NEXT_YEAR") -> PeerRefusal:
    return PeerRefusal(grpc.StatusCode.FAILED_PRECONDITION, reason, {})


def failing(error: Exception) -> Any:
    async def fail(self: Peers, *args: Any, **more: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("reason", ["A_REASON_OF_NEXT_YEAR", "PASSENGER_HOLDS_SEAT"])
async def test_an_unknown_refusal_at_confirmation_is_refunded(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    booking = await customer.book(await agency.flight())
    monkeypatch.setattr(Peers, "confirm", failing(unknown(reason)))
    await customer.pay(booking)

    async def given_back() -> bool:
        row = await agency.row(booking)
        return row["refund_reason"] == reason and row["refund_time"] is not None

    await eventually(given_back)


async def test_an_unknown_refusal_at_hold_fails_the_booking(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = await agency.flight()
    monkeypatch.setattr(Peers, "hold", failing(unknown()))
    with refused("ABORTED", "SEATS_UNAVAILABLE"):
        await customer.book(journey)
    row = await agency.database.fetchrow("SELECT booking_id, state::text FROM bookings WHERE owner = $1", customer.name)
    assert row is not None
    assert row["state"] == "FAILED"
    assert not await agency.database.fetchval(
        "SELECT count(*) FROM timers WHERE subject = $1 AND fire_time IS NULL AND name = 'reserve'",
        str(row["booking_id"]),
    )


async def test_a_fault_is_retried_and_is_no_refusal(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    booking = await customer.book(await agency.flight())
    fault = PeerFault(PeerRefusal(grpc.StatusCode.INTERNAL, "INTERNAL", {}))
    with monkeypatch.context() as broken:
        broken.setattr(Peers, "confirm", failing(fault))
        await customer.pay(booking)

        async def shown() -> bool:
            timer = await agency.database.fetchrow(
                "SELECT tries, last_error FROM timers WHERE name = 'confirm' AND subject = $1",
                str(UUID(booking.booking_id)),
            )
            return timer is not None and timer["tries"] >= 2 and timer["last_error"] == "PeerFault: INTERNAL INTERNAL"

        await eventually(shown)
        assert (await agency.row(booking))["refund_reason"] is None
    await customer.becomes(booking, "CONFIRMED")


async def test_a_faulty_flight_service_is_not_flight_not_found(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch
) -> None:
    journey = await agency.flight()
    monkeypatch.setattr(Peers, "flight", failing(PeerFault(PeerRefusal(grpc.StatusCode.INTERNAL, "INTERNAL", {}))))
    with refused("INTERNAL", "INTERNAL"):
        await customer.book(journey)


@pytest.mark.parametrize(
    "error", [PeerFault(PeerRefusal(grpc.StatusCode.INTERNAL, "INTERNAL", {})), unknown(), Unavailable()]
)
async def test_known_seats_are_shown_while_the_seat_service_fails(
    agency: Agency, customer: Customer, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    booking = await customer.confirmed(await agency.flight())
    monkeypatch.setattr(Peers, "confirmed_seats", failing(error))
    shown = await customer.get(booking)
    assert shown.state == pb.Booking.CONFIRMED
    assert seats_of(shown) == seats_of(booking) != []
