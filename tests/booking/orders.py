"""What customers see of bookings, and the checks of their end.

At the end of a booking its passengers have all seats and the airline has the money, or neither.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from typing import Any, Final
from uuid import UUID

import asyncpg
from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1 import events_pb2
from skyhigh.payment.v1.payment_service_pb2 import PaymentIntent

from deploy.mocks.payment_provider import Charge, PaymentProvider
from services import db
from services.db import Conn
from tests.aging import make_timer_due
from tests.booking.agency import Agency, Customer, Journey, state_of
from tests.callers import Caller, a_few_at_once
from tests.payment.rules import SUCCEEDS, event
from tests.waiting import eventually

ENDS: Final = frozenset({"CONFIRMED", "FAILED", "EXPIRED", "CANCELLED"})
AT_REST_SECONDS: Final = 60
# Rule 11.10: a timer fires at most this late.
LATEST_SECONDS: Final = 5
# These timers may still be due later: they check the booking, and find nothing to do.
_WATCHERS: Final = ["expire", "look-at-hold", "follow-seats", "release-at-departure"]


def times(usual: int) -> int:
    """Returns the number of rounds: SKYHIGH_TEST_ROUNDS or else `usual`."""
    return int(os.environ.get("SKYHIGH_TEST_ROUNDS", usual))


def switch(provider: PaymentProvider, **switches: object) -> None:
    """Changes switches of the payment provider from now on."""
    provider.behaviour.now = provider.behaviour.now.model_copy(update=switches)


def payer(customer: Customer) -> Caller:
    """Returns the same customer as a caller of the payment service."""
    return customer.agency.payments.callers.customer(customer.name.removeprefix("customer:"))


def intent_of(booking: pb.Booking) -> PaymentIntent:
    """Returns the payment intent of a booking; only its id is set."""
    return PaymentIntent(intent_id=booking.payment_intent_id)


def seen(booking: pb.Booking) -> tuple[str, int, str]:
    """Returns what a customer sees of a payment: state, attempts, last error."""
    return state_of(booking), booking.payment_attempts, booking.last_error


async def shows(customer: Customer, booking: pb.Booking, *step: str | int) -> None:
    """Waits until a booking shows this state, number of attempts and last error."""

    async def there() -> bool:
        return seen(await customer.get(booking)) == step

    await eventually(there)


async def provider_decides(agency: Agency, booking: pb.Booking, *, succeeds: bool = True) -> None:
    """Makes the provider decide the pending charge of a booking now.

    Then delivers the provider's webhook.
    """
    intent = await _intent(agency, booking)

    def pending() -> list[Charge]:
        charges = agency.provider.charges.values()
        return [each for each in charges if each.metadata["intent_id"] == intent.intent_id and each.status == "pending"]

    async def has_one() -> bool:
        return bool(pending())

    # The payment service shows the attempt before the provider receives the charge.
    await eventually(has_one)
    (charge,) = pending()
    decided = replace(charge, status="succeeded" if succeeds else "failed", error=None if succeeds else "DECLINED")
    agency.provider.charges[charge.key] = decided
    body = event(
        intent, f"charge.{decided.status}", key=UUID(charge.key), charge_id=charge.charge_id, amount=charge.amount
    )
    await agency.payments.deliver(body)


async def charge_now(agency: Agency, booking: pb.Booking) -> None:
    """Ends the attempt that runs, or else the pause before the next one."""
    intent = await _intent(agency, booking)
    async with db.transaction(agency.payments.pool) as conn:
        await conn.execute(
            """
            UPDATE intents SET attempt_end = clock_timestamp() - interval '1 millisecond'
            WHERE intent_id = $1 AND attempt_end > clock_timestamp()
            """,
            UUID(intent.intent_id),
        )
        await make_timer_due(conn, "payment", "charge", intent.intent_id)


async def _intent(agency: Agency, booking: pb.Booking) -> PaymentIntent:
    """Returns the payment intent of a booking, also before the booking shows it."""
    async with db.session(agency.payments.pool) as conn:
        intent_id = await conn.fetchval(
            "SELECT intent_id FROM intents WHERE reference = $1", f"booking/{booking.booking_id}"
        )
    return await agency.payments.get(PaymentIntent(intent_id=str(intent_id)))


async def booked_by(customers: Sequence[Customer], journey: Journey) -> list[pb.Booking]:
    """Has each of these customers book a seat, a few at the same time."""
    return await a_few_at_once(customer.book(journey) for customer in customers)


@dataclass(frozen=True, slots=True)
class End:
    """The outcome of a booking."""

    state: str
    paid: bool
    """True if money came, even if it was refunded later."""
    seats: frozenset[tuple[str, str]]
    """Flight and number of each confirmed seat of its passengers."""


async def ends(
    agency: Agency, bookings: Sequence[pb.Booking], *, within_seconds: float = AT_REST_SECONDS
) -> dict[str, End]:
    """Waits until bookings are at rest; returns their outcomes.

    Fails unless seats, money and events of each booking agree with its state.
    """
    await rest(agency, bookings, within_seconds=within_seconds)
    booking_ids = [UUID(booking.booking_id) for booking in bookings]
    await eventually(lambda: _swept(agency, booking_ids))
    async with _reading(agency) as conn:
        rows = await conn.fetch(
            """
            SELECT booking_id::text, state::text, total_minor_units, hold_id, pnr, pay_time, refund_time, expire_time,
                   ARRAY(SELECT passenger_id FROM booking_passengers
                         WHERE booking_passengers.booking_id = bookings.booking_id) AS passenger_ids,
                   ARRAY(SELECT (flight_id, passenger_id, seat_number) FROM booking_seats
                         WHERE booking_seats.booking_id = bookings.booking_id) AS seats
            FROM bookings WHERE booking_id = ANY($1)
            """,
            booking_ids,
        )
    had = await _seats_had(agency, [name for row in rows for name in row["passenger_ids"]])
    kept = await _money_kept(agency, booking_ids)
    told = await _told(agency)
    found = {}
    for row in rows:
        seats = {seat for name in row["passenger_ids"] for seat in had.get(name, ())}
        confirmed, was_confirmed = row["state"] == "CONFIRMED", row["pnr"] is not None
        promised = {(*seat, "CONFIRMED", row["hold_id"]) for seat in row["seats"]} if confirmed else set()
        assert seats == promised, (dict(row), seats)
        assert kept[row["booking_id"]] == ([row["total_minor_units"]] if confirmed else []), dict(row)
        assert (row["refund_time"] is not None) == (row["pay_time"] is not None and not confirmed), dict(row)
        assert told["booking.confirmed.v1", row["booking_id"]] == was_confirmed, dict(row)
        assert told["booking.cancelled.v1", row["booking_id"]] == (was_confirmed and not confirmed), dict(row)
        found[row["booking_id"]] = End(
            row["state"], row["pay_time"] is not None, frozenset((flight, number) for flight, _, number, _, _ in seats)
        )
    assert len(found) == len(bookings)
    return found


async def end(agency: Agency, booking: pb.Booking, *, within_seconds: float = AT_REST_SECONDS) -> End:
    """Waits until a booking is at rest; returns its outcome."""
    return (await ends(agency, [booking], within_seconds=within_seconds))[booking.booking_id]


async def rest(agency: Agency, bookings: Sequence[pb.Booking], *, within_seconds: float = AT_REST_SECONDS) -> None:
    """Waits until no step, timer or payment of these bookings is pending."""
    booking_ids = [UUID(booking.booking_id) for booking in bookings]
    left: list[dict[str, Any]] = []

    async def rests() -> bool:
        # The payments are read first. If a booking learns of money after that, the money starts a step of the booking,
        # and the second query finds the step.
        left[:] = [*await _unsettled(agency, booking_ids), *await _undecided(agency, booking_ids)]
        return not left

    try:
        await eventually(rests, within_seconds=within_seconds)
    except AssertionError as error:
        raise AssertionError(f"after {within_seconds} s there are left: {left}") from error


async def _undecided(agency: Agency, booking_ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """Returns bookings that have not ended, pending steps, and pending refunds."""
    async with _reading(agency) as conn:
        rows = await conn.fetch(
            """
            SELECT booking_id::text, state::text, refund_reason, name, try_time, tries, last_error AS error
            FROM (SELECT booking_id, state, refund_reason, refund_time FROM bookings WHERE booking_id = ANY($1))
                AS bookings
            LEFT JOIN (
                SELECT subject, name, try_time, tries, last_error FROM timers
                WHERE fire_time IS NULL AND (due_time <= now() OR name <> ALL($3))
            ) AS timers ON subject = booking_id::text
            WHERE state::text <> ALL($2) OR name IS NOT NULL OR refund_reason IS NOT NULL AND refund_time IS NULL
            UNION ALL
            SELECT subject, NULL, NULL, name, try_time, tries, last_error FROM timers
            WHERE name = 'drop-hold' AND fire_time IS NULL
            """,
            booking_ids,
            list(ENDS),
            _WATCHERS,
        )
    return [dict(row) for row in rows]


async def _unsettled(agency: Agency, booking_ids: Sequence[UUID]) -> list[dict[str, Any]]:
    """Returns running payments and refunds, and money that no booking knows of yet."""
    async with db.transaction(agency.payments.pool) as conn:
        intents = await conn.fetch(
            "SELECT substr(reference, 9) AS booking_id, state::text FROM intents WHERE reference = ANY($1)",
            [f"booking/{booking_id}" for booking_id in booking_ids],
        )
    async with _reading(agency) as conn:
        paid = await conn.fetch(
            "SELECT booking_id::text FROM bookings WHERE booking_id = ANY($1) AND pay_time IS NOT NULL", booking_ids
        )
    heard = {row["booking_id"] for row in paid}
    return [
        dict(intent)
        for intent in intents
        if intent["state"] in ("PROCESSING", "REFUNDING")
        or (intent["state"] in ("SUCCEEDED", "REFUNDED") and intent["booking_id"] not in heard)
    ]


async def _swept(agency: Agency, booking_ids: Sequence[UUID]) -> bool:
    """Returns whether the seat service has ended all lapsed holds of these bookings."""
    async with _reading(agency) as conn:
        rows = await conn.fetch("SELECT passenger_id FROM booking_passengers WHERE booking_id = ANY($1)", booking_ids)
    return not await agency.seat_database.fetchval(
        """
        SELECT EXISTS (
            SELECT FROM hold_seats JOIN holds USING (hold_id)
            WHERE passenger_id = ANY($1) AND hold_seats.state = 'HELD' AND expire_time <= now())
        """,
        [row["passenger_id"] for row in rows],
    )


def _reading(agency: Agency) -> AbstractAsyncContextManager[Conn]:
    return db.transaction(agency.pool)


async def _seats_had(agency: Agency, passenger_ids: Sequence[str]) -> Mapping[str, set[tuple[Any, ...]]]:
    """Returns the held and confirmed seats of these passengers, by passenger.

    Each seat is flight, passenger, number, state and hold.
    """
    had: dict[str, set[tuple[Any, ...]]] = {}
    for row in await agency.seat_database.fetch(
        """
        SELECT flight_id, passenger_id, seat_number, state, hold_id FROM hold_seats
        WHERE passenger_id = ANY($1) AND state <> 'RELEASED'
        """,
        list(passenger_ids),
    ):
        had.setdefault(row["passenger_id"], set()).add(tuple(row.values()))
    return had


async def _money_kept(agency: Agency, booking_ids: Sequence[UUID]) -> Mapping[str, list[int]]:
    """Returns the amounts of the charges that were not refunded, by booking."""
    async with db.transaction(agency.payments.pool) as conn:
        rows = await conn.fetch(
            "SELECT intent_id::text, substr(reference, 9) AS booking_id FROM intents WHERE reference = ANY($1)",
            [f"booking/{booking_id}" for booking_id in booking_ids],
        )
    booking_of = {row["intent_id"]: row["booking_id"] for row in rows}
    kept: dict[str, list[int]] = {str(booking_id): [] for booking_id in booking_ids}
    for charge in taken(agency.provider):
        booking_id = booking_of.get(charge.metadata["intent_id"])
        if booking_id is not None and charge.charge_id not in agency.provider.refunds:
            kept[booking_id].append(charge.amount["minor_units"])
    return kept


def taken(provider: PaymentProvider) -> list[Charge]:
    """Returns the successful charges, refunded or not."""
    return [charge for charge in provider.charges.values() if charge.status == "succeeded"]


async def _told(agency: Agency) -> Counter[tuple[str, str]]:
    """Counts the events of each booking by routing key."""
    async with _reading(agency) as conn:
        rows = await conn.fetch("SELECT routing_key, body FROM outbox WHERE routing_key <> 'booking.mail.v1'")
    messages: dict[str, Any] = {
        "booking.confirmed.v1": events_pb2.BookingConfirmed,
        "booking.cancelled.v1": events_pb2.BookingCancelled,
    }
    return Counter(
        (row["routing_key"], messages[row["routing_key"]].FromString(row["body"]).booking_id) for row in rows
    )


async def fired(agency: Agency, bookings: Sequence[pb.Booking]) -> list[asyncpg.Record]:
    """Returns the fired timers of these bookings: name, tries, and seconds `late`."""
    async with _reading(agency) as conn:
        return await conn.fetch(
            """
            SELECT name, subject, tries, extract(epoch FROM fire_time - due_time)::float AS late
            FROM timers WHERE subject = ANY($1) AND fire_time IS NOT NULL
            """,
            [booking.booking_id for booking in bookings],
        )


async def fired_well(agency: Agency, bookings: Sequence[pb.Booking]) -> None:
    """Fails unless each timer fired once, not before its time and at most 5 s late."""
    for timer in await fired(agency, bookings):
        assert timer["tries"] == 1, dict(timer)
        assert 0 <= timer["late"] <= LATEST_SECONDS, dict(timer)


async def pay_once_more(customer: Customer, booking: pb.Booking, code: str = SUCCEEDS) -> None:
    """Pays the intent of a booking that has ended, as its owner may: late money."""
    await customer.agency.payments.pay(payer(customer), intent_of(await customer.get(booking)), code)
