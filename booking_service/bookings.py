"""The state machine of bookings: one function per transition.

    CREATED → SEATS_RESERVED → PAYMENT_PENDING → PAYMENT_PROCESSING → CONFIRMED → CANCELLED
    CREATED, PAYMENT_PENDING or PAYMENT_PROCESSING → FAILED
    SEATS_RESERVED, PAYMENT_PENDING or PAYMENT_PROCESSING → EXPIRED
    SEATS_RESERVED → CANCELLED
    PAYMENT_PROCESSING → CANCELLED, if a flight was cancelled before the confirmation
    FAILED or EXPIRED → CONFIRMED, if the money came late and the same seats were still free
    CONFIRMED → CONFIRMED, if flights were cancelled after another one had departed

Each function runs in the caller's transaction and decides by one guarded UPDATE. In the same transaction it writes the
history row, events for other services, and timers for the steps that call other services (steps.py). If the guard does
not match, the function changes nothing and returns False or None; its caller finds out the reason.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID, uuid4

from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.booking.v1 import events_pb2

from booking_service import records
from booking_service.records import Booking, Leg, SeatOf, Traveller
from services import idempotency, outbox, timers
from services.db import Conn
from services.idempotency import RequestKey
from services.money import Amount
from services.outbox import Event
from services.proto import timestamp
from services.time_limits import FACTOR

# Timers. Their subject is a booking id, except for CANCEL_FOREIGN_HOLD (a hold id) and CANCEL_FLIGHT (a flight id).
RESERVE: Final = "reserve"
EXPIRE: Final = "expire"
CHECK_HOLD: Final = "look-at-hold"
PAY: Final = "pay"
CHECK_PAYMENT: Final = "look-at-payment"
CONFIRM: Final = "confirm"
RELEASE: Final = "release"
RELEASE_AT_DEPARTURE: Final = "release-at-departure"
REFUND: Final = "refund"
CANCEL_FOREIGN_HOLD: Final = "drop-hold"
CANCEL_FLIGHT: Final = "cancel-flight"
FOLLOW_SEATS: Final = "follow-seats"

# A hold that was confirmed at the departure has committed by then.
NO_HOLD_AFTER: Final = timedelta(seconds=2)
ITSELF: Final = "booking"
FLIGHT_CANCELLED: Final = "FLIGHT_CANCELLED"
PAYMENT_REFUNDED: Final = "PAYMENT_REFUNDED"
SALE_CLOSED: Final = "SALE_CLOSED"
# The longest time of a call that creates or changes a booking. If the booking still waits after it, the process has
# died.
CALL_ENDED_AFTER: Final = timedelta(seconds=6 * FACTOR)


@dataclass(frozen=True, slots=True)
class NewBooking:
    """A booking to create; `seats` are its first plan."""

    booking_id: UUID
    owner: str
    cabin: str
    contact_email: str
    total: Amount
    legs: Sequence[Leg]
    travellers: Sequence[Traveller]
    seats: Sequence[SeatOf]
    request_key: RequestKey | None


@dataclass(frozen=True, slots=True)
class Hold:
    """A hold as the seat service returned it."""

    hold_id: UUID
    state: str
    expire_time: datetime
    seats: Sequence[SeatOf]


async def create(conn: Conn, new: NewBooking) -> bool:
    """(nothing) → CREATED, unless the sale of the first flight has closed.

    Sets the RESERVE timer, which continues the booking if the caller's process dies. Returns False if the sale has
    closed.
    """
    first = new.legs[0]
    created = await conn.fetchval(
        """
        INSERT INTO bookings
            (booking_id, owner, cabin, contact_email, currency, total_minor_units, sale_close_time, departure_time,
             request_key)
        SELECT $1, $2, $3::text::cabin, $4, $5, $6, $7, $8, $9
        WHERE statement_timestamp() < $7
        RETURNING true
        """,
        new.booking_id,
        new.owner,
        new.cabin,
        new.contact_email,
        new.total.currency,
        new.total.minor_units,
        first.sale_close_time,
        first.departure_time,
        new.request_key.key if new.request_key is not None else None,
    )
    if not created:
        return False
    await _write_legs(conn, new.booking_id, new.legs)
    await _write_travellers(conn, new.booking_id, new.travellers)
    await _write_seats(conn, new.booking_id, new.seats)
    await _record(conn, new.booking_id, actor=new.owner, reason="CREATED")
    await timers.set_timer(conn, RESERVE, str(new.booking_id), after=CALL_ENDED_AFTER)
    return True


async def replace_plan(conn: Conn, standing: Booking, seats: Sequence[SeatOf]) -> bool:
    """Stores another seat plan of a CREATED booking, under a new request id.

    Returns False if the booking has left CREATED or has another plan than `standing`.
    """
    planned = await conn.fetchval(
        """
        UPDATE bookings SET plan = plan + 1, version = version + 1, update_time = statement_timestamp()
        WHERE booking_id = $1 AND state = 'CREATED' AND plan = $2 RETURNING true
        """,
        standing.booking_id,
        standing.plan,
    )
    if planned:
        await _write_seats(conn, standing.booking_id, seats)
    return bool(planned)


async def reserve(conn: Conn, standing: Booking, hold: Hold) -> pb.Booking | None:
    """CREATED → SEATS_RESERVED: the seats of the plan are held.

    Returns the response of the request that created the booking, and stores it for retries. Returns None if the booking
    has left CREATED or has another plan than `standing`.
    """
    now: datetime = await conn.fetchval("SELECT statement_timestamp()")
    answer = replace(
        standing,
        state="SEATS_RESERVED",
        hold_id=hold.hold_id,
        expire_time=hold.expire_time,
        seats=in_order(standing, hold.seats),
        update_time=now,
    ).message()
    time_left = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'SEATS_RESERVED', version = version + 1, hold_id = $3, expire_time = $4, first_answer = $5,
            update_time = $6
        WHERE booking_id = $1 AND state = 'CREATED' AND plan = $2
        RETURNING expire_time - statement_timestamp()
        """,
        standing.booking_id,
        standing.plan,
        hold.hold_id,
        hold.expire_time,
        answer.SerializeToString(),
        now,
    )
    if time_left is None:
        return None
    await _write_seats(conn, standing.booking_id, hold.seats)
    await _record(conn, standing.booking_id, actor=ITSELF, reason="SEATS_HELD")
    await timers.set_timer(conn, EXPIRE, str(standing.booking_id), after=max(time_left, timers.NOW))
    await timers.cancel_timer(conn, RESERVE, str(standing.booking_id))
    return answer


async def refuse(
    conn: Conn, standing: Booking, *, reason: str, metadata: Mapping[str, str], retry_after_seconds: float | None
) -> bool:
    """CREATED → FAILED: the booking cannot get seats.

    Deletes the stored response of its request, so that a retry is processed as new. Returns False if the booking has
    left CREATED or has another plan than `standing`.
    """
    row = await conn.fetchrow(
        """
        UPDATE bookings
        SET state = 'FAILED', version = version + 1, last_error = $3, refusal = $4, update_time = statement_timestamp()
        WHERE booking_id = $1 AND state = 'CREATED' AND plan = $2
        RETURNING owner, request_key
        """,
        standing.booking_id,
        standing.plan,
        reason,
        json.dumps({"reason": reason, "metadata": dict(metadata), "retry_after_seconds": retry_after_seconds}),
    )
    if row is None:
        return False
    await _record(conn, standing.booking_id, actor=ITSELF, reason=reason)
    await timers.cancel_timer(conn, RESERVE, str(standing.booking_id))
    if row["request_key"] is not None:
        await idempotency.delete_response(conn, row["owner"], row["request_key"])
    return True


async def adopt(conn: Conn, booking_id: UUID, hold: Hold) -> bool:
    """Copies seats and end of the booking's hold from the seat service.

    For SEATS_RESERVED, PAYMENT_PENDING and PAYMENT_PROCESSING; returns False in any other state. Every change of a hold
    gives it a later end. Therefore a stale response is recognised by its earlier `expire_time`, and changes nothing.
    Sets the EXPIRE timer.
    """
    newer = await conn.fetchval(
        """
        UPDATE bookings SET expire_time = $3, version = version + 1, update_time = statement_timestamp()
        WHERE booking_id = $1 AND hold_id = $2 AND expire_time < $3
          AND state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING')
        RETURNING true
        """,
        booking_id,
        hold.hold_id,
        hold.expire_time,
    )
    if newer:
        await _write_seats(conn, booking_id, hold.seats)
    time_left = await conn.fetchval(
        """
        SELECT expire_time - statement_timestamp() FROM bookings
        WHERE booking_id = $1 AND hold_id = $2
          AND state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING')
        """,
        booking_id,
        hold.hold_id,
    )
    if time_left is None:
        return False
    await timers.set_timer(conn, EXPIRE, str(booking_id), after=max(time_left, timers.NOW))
    return True


async def begin_payment(conn: Conn, booking_id: UUID, *, owner: str, payment_code: str) -> bool:
    """SEATS_RESERVED → PAYMENT_PENDING, before `expire_time`.

    Sets the PAY timer. Only one of several concurrent payments returns True.
    """
    begun = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'PAYMENT_PENDING', version = version + 1, payment_code = $3, update_time = statement_timestamp()
        WHERE booking_id = $1 AND owner = $2 AND state = 'SEATS_RESERVED' AND expire_time > statement_timestamp()
        RETURNING true
        """,
        booking_id,
        owner,
        payment_code,
    )
    if begun:
        await _record(conn, booking_id, actor=owner, reason="SUBMITTED")
        await timers.set_timer(conn, PAY, str(booking_id))
    return bool(begun)


async def keep_locator(conn: Conn, booking_id: UUID, *, pnr: str) -> str | None:
    """Stores the locator that is reserved for the booking, unless one is stored.

    For a booking before its confirmation. Returns the stored locator; None if the booking is CONFIRMED or CANCELLED
    meanwhile.
    """
    kept: str | None = await conn.fetchval(
        """
        UPDATE bookings SET reserved_pnr = coalesce(reserved_pnr, $2)
        WHERE booking_id = $1 AND state IN ('PAYMENT_PENDING', 'PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')
        RETURNING reserved_pnr
        """,
        booking_id,
        pnr,
    )
    return kept


async def process_payment(
    conn: Conn, booking_id: UUID, *, intent_id: UUID, max_attempts: int, look_after: timedelta
) -> bool:
    """PAYMENT_PENDING → PAYMENT_PROCESSING: the payment service has the code.

    Deletes the stored payment code, and sets the CHECK_PAYMENT timer.
    """
    processing = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'PAYMENT_PROCESSING', version = version + 1, payment_code = NULL, payment_intent_id = $2,
            max_payment_attempts = $3, update_time = statement_timestamp()
        WHERE booking_id = $1 AND state = 'PAYMENT_PENDING'
        RETURNING true
        """,
        booking_id,
        intent_id,
        max_attempts,
    )
    if processing:
        await _record(conn, booking_id, actor=ITSELF, reason="PROCESSING")
        await timers.set_timer(conn, CHECK_PAYMENT, str(booking_id), after=look_after)
    return bool(processing)


async def note_attempts(conn: Conn, booking_id: UUID, *, intent_id: UUID, attempts: int, last_error: str) -> bool:
    """Stores the attempts and the last error of a running payment.

    Returns False if they are stored already, or the payment has ended.
    """
    return bool(
        await conn.fetchval(
            """
            UPDATE bookings
            SET payment_attempts = $3, last_error = $4, version = version + 1, update_time = statement_timestamp()
            WHERE booking_id = $1 AND payment_intent_id = $2 AND state = 'PAYMENT_PROCESSING' AND pay_time IS NULL
              AND (payment_attempts, last_error) <> ($3, $4)
            RETURNING true
            """,
            booking_id,
            intent_id,
            attempts,
            last_error,
        )
    )


async def fail_payment(conn: Conn, booking_id: UUID, *, intent_id: UUID | None, attempts: int, error: str) -> bool:
    """PAYMENT_PENDING or PAYMENT_PROCESSING → FAILED: the payment failed finally.

    Sets the RELEASE timer, which releases the seats. Returns False if the booking is paid or in another state.
    """
    failed = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'FAILED', version = version + 1, payment_code = NULL, payment_attempts = $3,
            payment_intent_id = coalesce($2, payment_intent_id), last_error = $4, update_time = statement_timestamp()
        WHERE booking_id = $1 AND pay_time IS NULL AND state IN ('PAYMENT_PENDING', 'PAYMENT_PROCESSING')
        RETURNING true
        """,
        booking_id,
        intent_id,
        attempts,
        error,
    )
    if failed:
        await _record(conn, booking_id, actor=ITSELF, reason=error)
        await timers.set_timer(conn, RELEASE, str(booking_id))
    return bool(failed)


async def receive_money(conn: Conn, booking_id: UUID, *, intent_id: UUID, amount: Amount, attempts: int) -> bool:
    """Records the payment; the CONFIRM timer decides what it buys.

    PAYMENT_PENDING → PAYMENT_PROCESSING. The money may come late: FAILED and EXPIRED bookings keep their state. Returns
    False if a payment is recorded already, the amount is not the booking's total, or the state accepts no payment.
    """
    received = await conn.fetchval(
        """
        UPDATE bookings
        SET state = CASE state WHEN 'PAYMENT_PENDING' THEN 'PAYMENT_PROCESSING' ELSE state END,
            payment_code = NULL, payment_intent_id = $2, payment_attempts = $5, pay_time = statement_timestamp(),
            version = version + 1, update_time = statement_timestamp()
        WHERE booking_id = $1 AND pay_time IS NULL AND hold_id IS NOT NULL
          AND currency = $3 AND total_minor_units = $4
          AND state IN ('PAYMENT_PENDING', 'PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')
        RETURNING true
        """,
        booking_id,
        intent_id,
        amount.currency,
        amount.minor_units,
        attempts,
    )
    if received:
        await _record(conn, booking_id, actor=ITSELF, reason="PAID")
        await timers.set_timer(conn, CONFIRM, str(booking_id))
    return bool(received)


async def confirm(conn: Conn, standing: Booking, hold: Hold, *, pnr: str) -> bool:
    """PAYMENT_PROCESSING, FAILED or EXPIRED → CONFIRMED: paid, with confirmed seats.

    Publishes `booking.confirmed.v1`. Returns False if the booking is unpaid, its refund is decided, one of its flights
    was cancelled, or it is in another state.
    """
    confirm_time = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'CONFIRMED', version = version + 1, hold_id = $2, pnr = $3, last_error = '',
            confirm_time = statement_timestamp(), update_time = statement_timestamp()
        WHERE booking_id = $1 AND state IN ('PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')
          AND pay_time IS NOT NULL AND refund_reason IS NULL
          AND NOT EXISTS (
              SELECT FROM booking_flights JOIN cancelled_flights USING (flight_id)
              WHERE booking_flights.booking_id = bookings.booking_id)
        RETURNING confirm_time
        """,
        standing.booking_id,
        hold.hold_id,
        pnr,
    )
    if confirm_time is None:
        return False
    await _write_seats(conn, standing.booking_id, hold.seats)
    await _record(conn, standing.booking_id, actor=ITSELF, reason="PAID")
    await timers.cancel_timer(conn, EXPIRE, str(standing.booking_id))
    confirmed = events_pb2.BookingConfirmed(
        booking_id=str(standing.booking_id),
        pnr=pnr,
        flights=[_booked_flight(leg) for leg in standing.legs],
        passengers=standing.passengers(),
        cabin=pb.Cabin.Value(standing.cabin),
        contact_email=standing.contact_email,
        confirm_time=timestamp(confirm_time),
    )
    await outbox.enqueue(conn, [Event(uuid4(), "booking.confirmed.v1", confirmed)])
    return True


async def decide_refund(conn: Conn, standing: Booking, *, reason: str) -> bool:
    """Decides to refund the whole payment of an unconfirmed booking.

    PAYMENT_PROCESSING → CANCELLED if the reason is a cancelled flight, otherwise → EXPIRED. FAILED and EXPIRED stay as
    they are. Sets the REFUND and RELEASE timers. Returns False if the booking is unpaid, its refund is decided, or it
    is in another state.
    """
    decided = await conn.fetchval(
        """
        UPDATE bookings
        SET state = CASE WHEN state <> 'PAYMENT_PROCESSING' THEN state WHEN $3 THEN 'CANCELLED' ELSE 'EXPIRED' END,
            cancel_time = CASE WHEN state = 'PAYMENT_PROCESSING' AND $3 THEN statement_timestamp() END,
            cancel_reason = CASE WHEN state = 'PAYMENT_PROCESSING' AND $3 THEN $2 END,
            refund_reason = $2, refund_minor_units = total_minor_units, last_error = $2, version = version + 1,
            update_time = statement_timestamp()
        WHERE booking_id = $1 AND pay_time IS NOT NULL AND refund_reason IS NULL
          AND state IN ('PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')
        RETURNING true
        """,
        standing.booking_id,
        reason,
        reason == FLIGHT_CANCELLED,
    )
    if decided:
        await _record(conn, standing.booking_id, actor=ITSELF, reason=reason)
        await timers.set_timer(conn, REFUND, str(standing.booking_id))
        await timers.set_timer(conn, RELEASE, str(standing.booking_id))
    return bool(decided)


async def expire(conn: Conn, booking_id: UUID) -> bool:
    """SEATS_RESERVED, PAYMENT_PENDING or PAYMENT_PROCESSING → EXPIRED.

    Returns False if the booking is paid, its `expire_time` has not passed, or it is in another state.
    """
    expired = await conn.fetchval(
        """
        UPDATE bookings
        SET state = 'EXPIRED', version = version + 1, payment_code = NULL, update_time = statement_timestamp()
        WHERE booking_id = $1 AND pay_time IS NULL AND expire_time <= statement_timestamp()
          AND state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING')
        RETURNING true
        """,
        booking_id,
    )
    if expired:
        await _record(conn, booking_id, actor=ITSELF, reason="EXPIRED")
    return bool(expired)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """A booking after a cancellation, and the flights that were cancelled."""

    booking: Booking
    """The booking after the cancellation."""
    legs: Sequence[Leg]
    """The flights that this cancellation cancelled."""

    @property
    def whole(self) -> bool:
        """Whether the booking has no flight left."""
        return self.booking.state == "CANCELLED"


async def cancel(conn: Conn, booking_id: UUID, *, owner: str | None, actor: str, reason: str) -> Cancellation | None:
    """Cancels the flights of a booking that have not departed (BKG-8).

    It also cancels departed flights that the airline cancelled. An unpaid booking is cancelled as a whole if one of its
    flights can be cancelled. If no flight is left: SEATS_RESERVED or CONFIRMED → CANCELLED, and everything that was
    paid is refunded. Otherwise the booking stays CONFIRMED, and flown flights keep their seats, their check-ins and
    their share of the fare. A booking with a locator publishes `booking.cancelled.v1`. `owner` None means any owner.
    Returns None if there is nothing to cancel.
    """
    await records.lock(conn, booking_id, owner=owner)
    legs = await conn.fetch(
        """
        UPDATE booking_flights SET cancel_time = statement_timestamp(), cancel_reason = $3, live = false
        FROM bookings
        WHERE booking_flights.booking_id = $1 AND bookings.booking_id = $1 AND owner = coalesce($2, owner)
          AND state IN ('SEATS_RESERVED', 'CONFIRMED') AND booking_flights.cancel_time IS NULL
          -- What is not paid has no flight that was flown: it is given up whole, while one of its flights can be.
          AND EXISTS (
              SELECT FROM booking_flights AS leg LEFT JOIN cancelled_flights USING (flight_id)
              WHERE leg.booking_id = $1
                AND (leg.flight_id = booking_flights.flight_id OR bookings.state = 'SEATS_RESERVED')
                AND (leg.departure_time > statement_timestamp() OR cancelled_flights.flight_id IS NOT NULL))
        RETURNING booking_flights.flight_id, booking_flights.cancel_time
        """,
        booking_id,
        owner,
        reason,
    )
    if not legs:
        return None
    # The time that was compared with the departures. Other services compare it with them again.
    cancel_time = legs[0]["cancel_time"]
    standing = await records.find(conn, booking_id)
    fare = (
        standing.total
        if not standing.live_legs
        else standing.fare_of(*(leg for leg in standing.legs if leg.cancel_time is not None))
    )
    row = await conn.fetchrow(
        """
        UPDATE bookings
        SET state = CASE WHEN $3 THEN 'CANCELLED' ELSE state END,
            cancel_time = CASE WHEN $3 THEN $5::timestamptz END, cancel_reason = CASE WHEN $3 THEN $2 END,
            refund_reason = CASE WHEN pay_time IS NOT NULL THEN $2 END,
            refund_minor_units = CASE WHEN pay_time IS NOT NULL THEN $4::bigint END, refund_time = NULL,
            version = version + 1, update_time = statement_timestamp()
        WHERE booking_id = $1 AND state IN ('SEATS_RESERVED', 'CONFIRMED')
        RETURNING pnr, update_time
        """,
        booking_id,
        reason,
        not standing.live_legs,
        fare.minor_units,
        cancel_time,
    )
    assert row is not None, "it was found in this transaction"
    await _record(conn, booking_id, actor=actor, reason=reason, within_state=True)
    await timers.cancel_timer(conn, EXPIRE, str(booking_id))
    await timers.set_timer(conn, RELEASE, str(booking_id))
    cancelled = {leg["flight_id"] for leg in legs}
    done = Cancellation(
        await records.find(conn, booking_id), [leg for leg in standing.legs if leg.flight_id in cancelled]
    )
    if row["pnr"] is not None:
        await timers.set_timer(conn, REFUND, str(booking_id))
        # Until check-in hears of the cancellation, its sessions can hold a seat again.
        until_departure = max(leg.departure_time for leg in done.legs) - row["update_time"]
        await timers.set_timer(
            conn, RELEASE_AT_DEPARTURE, str(booking_id), after=max(until_departure, timers.NOW) + NO_HOLD_AFTER
        )
        told = events_pb2.BookingCancelled(
            booking_id=str(booking_id),
            pnr=row["pnr"],
            flight_ids=[leg.flight_id for leg in done.legs],
            passenger_ids=[traveller.passenger_id for traveller in standing.travellers],
            reason=reason,
            cancel_time=timestamp(cancel_time),
            kept_flight_ids=[leg.flight_id for leg in standing.live_legs],
        )
        await outbox.enqueue(conn, [Event(uuid4(), "booking.cancelled.v1", told)])
    return done


async def note_refund(conn: Conn, booking_id: UUID, *, intent_id: UUID, total: Amount) -> bool:
    """Records that the decided refund was paid.

    `total` is the sum of all refunds of the intent. Returns False if no refund is open or `total` is less than was
    decided.
    """
    return bool(
        await conn.fetchval(
            """
            UPDATE bookings
            SET refund_time = statement_timestamp(), version = version + 1, update_time = statement_timestamp()
            WHERE booking_id = $1 AND payment_intent_id = $2 AND refund_reason IS NOT NULL AND refund_time IS NULL
              AND refund_minor_units <= $3 AND state IN ('FAILED', 'EXPIRED', 'CANCELLED', 'CONFIRMED')
            RETURNING true
            """,
            booking_id,
            intent_id,
            total.minor_units,
        )
    )


async def was_refunded_elsewhere(conn: Conn, booking_id: UUID, *, intent_id: UUID, total: Amount) -> bool:
    """Whether the whole payment was refunded without the booking's decision."""
    return bool(
        await conn.fetchval(
            """
            SELECT true FROM bookings
            WHERE booking_id = $1 AND payment_intent_id = $2 AND pay_time IS NOT NULL AND total_minor_units <= $3
              AND coalesce(refund_minor_units, 0) < total_minor_units
            """,
            booking_id,
            intent_id,
            total.minor_units,
        )
    )


async def follow_seats(conn: Conn, standing: Booking, seats: Sequence[SeatOf]) -> bool:
    """Replaces the seats of a CONFIRMED booking on its live flights.

    `seats` are the passengers' seats of the seat service. Returns False if the booking has changed since `standing` was
    read.
    """
    live = [leg.flight_id for leg in standing.live_legs]
    followed = await conn.fetchval(
        """
        UPDATE bookings SET version = version + 1, update_time = statement_timestamp()
        WHERE booking_id = $1 AND state = 'CONFIRMED' AND version = $2 RETURNING true
        """,
        standing.booking_id,
        standing.version,
    )
    if followed:
        left = [seat for seat in standing.seats if seat.flight_id not in live]
        await _write_seats(conn, standing.booking_id, [*left, *seats])
    return bool(followed)


async def cancel_foreign_hold_later(conn: Conn, booking_id: UUID, hold_id: UUID) -> None:
    """Sets the CANCEL_FOREIGN_HOLD timer for a hold that is not the booking's own.

    Then another process has completed or ended the booking.
    """
    if await conn.fetchval("SELECT hold_id FROM bookings WHERE booking_id = $1", booking_id) != hold_id:
        await timers.set_timer(conn, CANCEL_FOREIGN_HOLD, str(hold_id))


async def _write_legs(conn: Conn, booking_id: UUID, legs: Sequence[Leg]) -> None:
    await conn.executemany(
        """
        INSERT INTO booking_flights
            (booking_id, leg, flight_id, flight_number, origin, destination, departure_time, arrival_time,
             departure_date, check_in_opens_before, check_in_closes_before, boarding_before, gate, price_minor_units)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)
        """,
        [
            (
                booking_id,
                number,
                leg.flight_id,
                leg.flight_number,
                leg.origin,
                leg.destination,
                leg.departure_time,
                leg.arrival_time,
                leg.departure_date,
                leg.check_in_opens_before,
                leg.check_in_closes_before,
                leg.boarding_before,
                leg.gate,
                leg.price_minor_units,
            )
            for number, leg in enumerate(legs, start=1)
        ],
    )


async def _write_travellers(conn: Conn, booking_id: UUID, travellers: Sequence[Traveller]) -> None:
    await conn.execute(
        """
        INSERT INTO booking_passengers
            (booking_id, number, passenger_id, given_name, last_name, type, accompanying_passenger_id)
        SELECT $1, number, passenger_id, given_name, last_name, type::passenger_type, accompanying_passenger_id
        FROM unnest($2::smallint[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
            AS new (number, passenger_id, given_name, last_name, type, accompanying_passenger_id)
        """,
        booking_id,
        range(1, len(travellers) + 1),
        [each.passenger_id for each in travellers],
        [each.given_name for each in travellers],
        [each.last_name for each in travellers],
        [each.type for each in travellers],
        [each.accompanying_passenger_id for each in travellers],
    )


async def _write_seats(conn: Conn, booking_id: UUID, seats: Sequence[SeatOf]) -> None:
    """Replaces the booking's seats."""
    await conn.execute("DELETE FROM booking_seats WHERE booking_id = $1", booking_id)
    await conn.execute(
        """
        INSERT INTO booking_seats (booking_id, flight_id, passenger_id, seat_number, named)
        SELECT $1, flight_id, passenger_id, seat_number, named
        FROM unnest($2::text[], $3::text[], $4::text[], $5::bool[]) AS new (flight_id, passenger_id, seat_number, named)
        """,
        booking_id,
        [seat.flight_id for seat in seats],
        [seat.passenger_id for seat in seats],
        [seat.seat_number for seat in seats],
        [seat.named for seat in seats],
    )


async def _record(conn: Conn, booking_id: UUID, *, actor: str, reason: str, within_state: bool = False) -> None:
    """Writes the history row of the transition that this transaction has made.

    Writes none if the state is unchanged, unless `within_state` is True.
    """
    await conn.execute(
        """
        INSERT INTO booking_events (booking_id, version, from_state, to_state, actor, reason)
        SELECT bookings.booking_id, bookings.version, last.to_state, bookings.state, $2, $3
        FROM bookings LEFT JOIN LATERAL (
            SELECT to_state FROM booking_events
            WHERE booking_events.booking_id = bookings.booking_id ORDER BY version DESC LIMIT 1
        ) AS last ON true
        WHERE bookings.booking_id = $1 AND ($4 OR last.to_state IS DISTINCT FROM bookings.state)
        """,
        booking_id,
        actor,
        reason,
        within_state,
    )


def in_order(standing: Booking, seats: Sequence[SeatOf]) -> list[SeatOf]:
    """Sorts seats as `records.find` does: by leg, then by passenger."""
    legs = [leg.flight_id for leg in standing.legs]
    return sorted(seats, key=lambda seat: (legs.index(seat.flight_id), seat.passenger_id))


def _booked_flight(leg: Leg) -> events_pb2.BookingConfirmed.BookedFlight:
    flight = events_pb2.BookingConfirmed.BookedFlight(
        flight_id=leg.flight_id,
        flight_number=leg.flight_number,
        origin=leg.origin,
        destination=leg.destination,
        departure_time=timestamp(leg.departure_time),
        arrival_time=timestamp(leg.arrival_time),
        departure_date=leg.departure_date,
        gate=leg.gate,
    )
    flight.check_in_opens_before.FromTimedelta(leg.check_in_opens_before)
    flight.check_in_closes_before.FromTimedelta(leg.check_in_closes_before)
    flight.boarding_before.FromTimedelta(leg.boarding_before)
    return flight
