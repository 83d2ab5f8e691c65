"""Constraints of the schema refuse rows that must not exist."""

from __future__ import annotations

from contextlib import suppress
from itertools import product
from uuid import UUID

import asyncpg
import pytest
from skyhigh.booking.v1 import booking_service_pb2 as pb

from tests.booking.agency import Agency, Customer


async def refused_by(agency: Agency, booking: pb.Booking, change: str) -> str:
    """Returns the constraint that refuses a change of a booking's row."""
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await agency.database.execute(f"UPDATE bookings SET {change} WHERE booking_id = $1", UUID(booking.booking_id))
    return refusal.value.constraint_name or ""


@pytest.fixture(scope="module")
async def reserved(any_agency: Agency) -> pb.Booking:
    """A booking whose seats are held. Refused changes leave it as it is."""
    return await any_agency.customer().book(await any_agency.flight())


@pytest.fixture(scope="module")
async def party(any_agency: Agency) -> pb.Booking:
    """A booking of two adults and an infant on two flights."""
    return await any_agency.customer().book(await any_agency.journey(2), "ADULT", "ADULT", "INFANT")


INTENT = "payment_intent_id = gen_random_uuid()"
PAID = f"{INTENT}, pay_time = now()"
LOCATOR = "pnr = 'ABC234', confirm_time = now()"
REFUND = "refund_reason = 'LATE', refund_minor_units = total_minor_units"


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        # Columns that a state needs.
        ("state = 'CREATED'", "state_has_what_it_needs"),
        (f"{INTENT}", "state_has_what_it_needs"),
        (f"{LOCATOR}", "state_has_what_it_needs"),
        (f"state = 'PAYMENT_PENDING', payment_code = '00000', {PAID}", "state_has_what_it_needs"),
        ("state = 'PAYMENT_PROCESSING'", "state_has_what_it_needs"),
        (f"state = 'PAYMENT_PROCESSING', {PAID}, {LOCATOR}", "state_has_what_it_needs"),
        (f"state = 'PAYMENT_PROCESSING', {PAID}, {REFUND}", "state_has_what_it_needs"),
        (f"state = 'CONFIRMED', {LOCATOR}", "state_has_what_it_needs"),
        (f"state = 'CONFIRMED', {PAID}", "state_has_what_it_needs"),
        (f"state = 'CONFIRMED', {PAID}, {LOCATOR}, {REFUND}", "state_has_what_it_needs"),
        ("state = 'FAILED'", "state_has_what_it_needs"),
        (f"state = 'FAILED', last_error = 'DECLINED', {LOCATOR}", "state_has_what_it_needs"),
        ("state = 'EXPIRED', hold_id = NULL, expire_time = NULL, first_answer = NULL", "state_has_what_it_needs"),
        (f"state = 'EXPIRED', {PAID}, {LOCATOR}", "state_has_what_it_needs"),
        (f"state = 'CANCELLED', cancel_time = now(), cancel_reason = 'FOG', {PAID}", "state_has_what_it_needs"),
        # Columns that depend on each other.
        ("hold_id = NULL", "hold_has_its_end"),
        ("expire_time = NULL", "hold_has_its_end"),
        ("first_answer = NULL", "reserved_has_its_answer"),
        ("payment_code = '00000'", "code_only_while_it_is_needed"),
        ("state = 'PAYMENT_PENDING'", "code_only_while_it_is_needed"),
        ("state = 'FAILED', last_error = 'DECLINED', pay_time = now()", "money_belongs_to_an_intent"),
        ("refund_reason = 'LATE'", "only_money_that_came_is_given_back"),
        (f"state = 'EXPIRED', {PAID}, refund_time = now()", "only_money_that_came_is_given_back"),
        (f"state = 'EXPIRED', {PAID}, refund_reason = 'LATE'", "refund_has_its_amount"),
        (f"state = 'CONFIRMED', {PAID}, pnr = 'ABC234'", "locator_comes_with_confirmation"),
        (f"state = 'CONFIRMED', {PAID}, confirm_time = now()", "locator_comes_with_confirmation"),
        ("state = 'CANCELLED'", "cancellation_has_its_reason"),
        ("state = 'CANCELLED', cancel_time = now()", "cancellation_has_its_reason"),
        ("cancel_time = now(), cancel_reason = 'FOG'", "cancellation_has_its_reason"),
        ("refusal = '{}'", "refusal_only_without_seats"),
        ("sale_close_time = departure_time + interval '1 second'", "sale_closes_before_departure"),
        # Formats and ranges.
        ("currency = 'usd'", "bookings_currency_check"),
        ("total_minor_units = 0", "bookings_total_minor_units_check"),
        ("state = 'PAYMENT_PENDING', payment_code = '0000'", "bookings_payment_code_check"),
        (f"state = 'CONFIRMED', {PAID}, confirm_time = now(), pnr = 'ABCDE1'", "bookings_pnr_check"),
        ("reserved_pnr = 'ABCDE1'", "bookings_reserved_pnr_check"),
        ("version = 0", "bookings_version_check"),
        ("plan = 0", "bookings_plan_check"),
        ("payment_attempts = -1", "bookings_payment_attempts_check"),
    ],
)
async def test_a_row_cannot_be_inconsistent(agency: Agency, reserved: pb.Booking, change: str, constraint: str) -> None:
    assert await refused_by(agency, reserved, change) == constraint


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        (INTENT, "state_has_what_it_needs"),
        ("state = 'SEATS_RESERVED'", "state_has_what_it_needs"),
        ("state = 'EXPIRED'", "state_has_what_it_needs"),
        ("hold_id = gen_random_uuid(), expire_time = now()", "reserved_has_its_answer"),
        ("refusal = '{}'", "refusal_only_without_seats"),
    ],
)
async def test_a_booking_without_seats_has_only_its_plan(
    agency: Agency, unreserved: pb.Booking, change: str, constraint: str
) -> None:
    assert await refused_by(agency, unreserved, change) == constraint


async def test_a_record_locator_is_unique(agency: Agency, customer: Customer) -> None:
    one, other = [await customer.confirmed(await agency.flight()) for _ in range(2)]
    with pytest.raises(asyncpg.UniqueViolationError) as refusal:
        await agency.database.execute(
            "UPDATE bookings SET pnr = $2 WHERE booking_id = $1", UUID(one.booking_id), other.pnr
        )
    assert refusal.value.constraint_name == "one_booking_per_locator"


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("booking_seats SET seat_number = '10A'", asyncpg.UniqueViolationError),
        ("booking_flights SET flight_id = 'SH101'", asyncpg.UniqueViolationError),
        ("booking_flights SET leg = 5", asyncpg.CheckViolationError),
        ("booking_flights SET price_minor_units = 0", asyncpg.CheckViolationError),
        ("booking_passengers SET number = 10", asyncpg.CheckViolationError),
        ("booking_passengers SET passenger_id = 'P1'", asyncpg.UniqueViolationError),
        ("booking_passengers SET accompanying_passenger_id = NULL", asyncpg.CheckViolationError),
        ("booking_passengers SET type = 'INFANT'", asyncpg.CheckViolationError),
    ],
)
async def test_a_passenger_has_one_seat_per_flight(
    agency: Agency, party: pb.Booking, change: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        await agency.database.execute(f"UPDATE {change} WHERE booking_id = $1", UUID(party.booking_id))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE booking_events SET actor = 'nobody'",
        "DELETE FROM booking_events",
        "DELETE FROM booking_events WHERE false",
    ],
)
@pytest.mark.usefixtures("reserved")
async def test_the_history_is_append_only(agency: Agency, statement: str) -> None:
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await agency.database.execute(statement)


LEGAL = {
    (None, "CREATED"),
    ("CREATED", "SEATS_RESERVED"),
    ("CREATED", "FAILED"),
    ("SEATS_RESERVED", "PAYMENT_PENDING"),
    ("SEATS_RESERVED", "EXPIRED"),
    ("SEATS_RESERVED", "CANCELLED"),
    ("PAYMENT_PENDING", "PAYMENT_PROCESSING"),
    ("PAYMENT_PENDING", "FAILED"),
    ("PAYMENT_PENDING", "EXPIRED"),
    ("PAYMENT_PROCESSING", "CONFIRMED"),
    ("PAYMENT_PROCESSING", "FAILED"),
    ("PAYMENT_PROCESSING", "EXPIRED"),
    ("PAYMENT_PROCESSING", "CANCELLED"),
    ("CONFIRMED", "CANCELLED"),
    # Some of the flights were cancelled, so the state stays the same.
    ("CONFIRMED", "CONFIRMED"),
    ("FAILED", "CONFIRMED"),
    ("EXPIRED", "CONFIRMED"),
}


async def test_only_legal_transitions_can_be_written(agency: Agency, customer: Customer) -> None:
    # A new booking, because the test makes its history inconsistent.
    booked = await customer.book(await agency.flight())
    states = list(pb.Booking.State.keys())[1:]
    written = set()
    for version, (before, after) in enumerate(product((None, *states), states), start=100):
        with suppress(asyncpg.CheckViolationError):
            await agency.database.execute(
                """
                INSERT INTO booking_events (booking_id, version, from_state, to_state, actor, reason)
                VALUES ($1, $2, $3::text::booking_state, $4::text::booking_state, 'nobody', 'NONE')
                """,
                UUID(booked.booking_id),
                version,
                before,
                after,
            )
            written.add((before, after))
    assert written == LEGAL
