"""Invariants of bookings: their seats, payments, refunds and deadlines."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

BOOKING_INVARIANTS: Final = (
    Invariant(
        9,
        "the intent of a confirmed booking is paid, with the booking's total",
        """
        SELECT booking_id, pnr, payment_intent_id, intents.state, total_minor_units, intents.minor_units
        FROM booking.bookings LEFT JOIN payment.intents ON intents.intent_id = bookings.payment_intent_id
        WHERE bookings.state = 'CONFIRMED'
          AND (intents.state::text, intents.reference, intents.currency, intents.minor_units)
              IS DISTINCT FROM ('SUCCEEDED', 'booking/' || booking_id, bookings.currency, total_minor_units)
        """,
        schemas=("booking", "payment"),
    ),
    Invariant(
        5,
        "a booking with seats has one on each flight for each passenger who needs one",
        """
        SELECT booking_id, state, legs.flights, people.seated, seats.seats
        FROM booking.bookings
        LEFT JOIN (SELECT booking_id, count(*) AS flights FROM booking.booking_flights GROUP BY booking_id)
            AS legs USING (booking_id)
        LEFT JOIN (
            SELECT booking_id, count(*) FILTER (WHERE type <> 'INFANT') AS seated
            FROM booking.booking_passengers GROUP BY booking_id
        ) AS people USING (booking_id)
        LEFT JOIN (
            SELECT booking_id, count(*) AS seats
            FROM booking.booking_seats
            JOIN booking.booking_flights USING (booking_id, flight_id)
            JOIN booking.booking_passengers USING (booking_id, passenger_id)
            WHERE type <> 'INFANT' GROUP BY booking_id
        ) AS seats USING (booking_id)
        -- Check-in may move and release the seats of a booking that was confirmed.
        WHERE hold_id IS NOT NULL AND confirm_time IS NULL
          AND (legs.flights * people.seated = seats.seats) IS NOT TRUE
        """,
        schemas=("booking",),
    ),
    Invariant(
        5,
        "the seats of a booking equal those of its hold",
        """
        SELECT booking_id, bookings.state, hold_id, holds.state AS hold_state, differing.flight_id,
               differing.seat_number, differing.passenger_id
        FROM booking.bookings
        LEFT JOIN seat.holds USING (hold_id)
        LEFT JOIN LATERAL (
            (SELECT flight_id, seat_number, passenger_id FROM booking.booking_seats
             WHERE booking_seats.booking_id = bookings.booking_id
             EXCEPT SELECT flight_id, seat_number, passenger_id FROM seat.hold_seats
             WHERE hold_seats.hold_id = bookings.hold_id)
            UNION ALL
            (SELECT flight_id, seat_number, passenger_id FROM seat.hold_seats
             WHERE hold_seats.hold_id = bookings.hold_id
             EXCEPT SELECT flight_id, seat_number, passenger_id FROM booking.booking_seats
             WHERE booking_seats.booking_id = bookings.booking_id)
        ) AS differing ON true
        WHERE CASE bookings.state
                  WHEN 'CONFIRMED' THEN holds.confirm_time IS NULL
                  ELSE bookings.state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING')
                       AND (differing.flight_id IS NOT NULL OR holds.state IS NULL)
              END
          -- After a change at the seat service, the booking stores the seats a moment later.
          AND bookings.update_time < now() - interval '10 s'
          AND NOT EXISTS (
              SELECT FROM seat.seat_events
              WHERE seat_events.flight_id = differing.flight_id AND seat_events.seat_number = differing.seat_number
                AND seat_events.event_time > now() - interval '10 s')
        """,
        needs_service=True,
        schemas=("booking", "seat"),
    ),
    Invariant(
        16,
        "a confirmed booking shows exactly the confirmed seats of its passengers",
        """
        SELECT booking_id, bookings.pnr, flight_id, passenger_id, shown.seat_number AS shown, had.seat_number AS had
        FROM booking.bookings
        JOIN booking.booking_flights USING (booking_id)
        JOIN booking.booking_passengers USING (booking_id)
        LEFT JOIN booking.booking_seats AS shown USING (booking_id, flight_id, passenger_id)
        LEFT JOIN seat.hold_seats AS had USING (flight_id, passenger_id)
        WHERE bookings.state = 'CONFIRMED' AND booking_flights.live
          -- An agent may seat a lap infant before the seat service knows the manifest. If that comes after the
          -- departure, the seat stays.
          AND (booking_passengers.type <> 'INFANT' OR booking_flights.departure_time > now())
          AND (had.state = 'CONFIRMED' OR NOT EXISTS (
              SELECT FROM seat.hold_seats AS sitting
              WHERE (sitting.flight_id, sitting.passenger_id, sitting.state)
                    = (booking_flights.flight_id, booking_passengers.passenger_id, 'CONFIRMED')))
          AND shown.seat_number IS DISTINCT FROM CASE had.state WHEN 'CONFIRMED' THEN had.seat_number END
          -- The booking receives a change by an event.
          AND bookings.update_time < now() - interval '30 s'
          AND NOT EXISTS (
              SELECT FROM seat.seat_events
              WHERE seat_events.flight_id = booking_flights.flight_id
                AND seat_events.seat_number IN (shown.seat_number, had.seat_number)
                AND seat_events.event_time > now() - interval '30 s')
        """,
        needs_service=True,
        schemas=("booking", "seat"),
    ),
    Invariant(
        16,
        "no flight has more booked passengers who need a seat than it has seats",
        """
        SELECT flight_id, count(*) AS passengers,
               (SELECT count(*) FROM seat.seats WHERE seats.flight_id = booking_flights.flight_id) AS seats
        FROM booking.bookings JOIN booking.booking_flights USING (booking_id)
        JOIN booking.booking_passengers USING (booking_id)
        WHERE bookings.state = 'CONFIRMED' AND live AND type <> 'INFANT'
        GROUP BY flight_id
        HAVING count(*) > (SELECT count(*) FROM seat.seats WHERE seats.flight_id = booking_flights.flight_id)
        """,
        schemas=("booking", "seat"),
    ),
    Invariant(
        9,
        "the payment of a live booking is refunded only for its cancelled flights",
        """
        SELECT booking_id, bookings.pnr, intents.refund_minor_units, bookings.refund_minor_units AS decided
        FROM booking.bookings JOIN payment.intents ON intents.intent_id = bookings.payment_intent_id
        WHERE bookings.state IN ('PAYMENT_PROCESSING', 'CONFIRMED')
          AND intents.refund_minor_units > coalesce(bookings.refund_minor_units, 0)
          -- The booking ends when it receives the event of the refund.
          AND intents.update_time < now() - interval '30 s'
        """,
        needs_service=True,
        schemas=("booking", "payment"),
    ),
    Invariant(
        9,
        "the refund of a confirmed booking equals the fares of its cancelled flights",
        """
        SELECT booking_id, bookings.refund_minor_units, sum(fare) AS cancelled
        FROM booking.bookings
        LEFT JOIN LATERAL (
            -- An infant pays a tenth of the price, rounded up.
            SELECT CASE type WHEN 'INFANT' THEN (price_minor_units * 10 + 99) / 100 ELSE price_minor_units END AS fare
            FROM booking.booking_flights JOIN booking.booking_passengers USING (booking_id)
            WHERE booking_flights.booking_id = bookings.booking_id AND cancel_time IS NOT NULL
        ) AS of_cancelled ON true
        WHERE bookings.state = 'CONFIRMED'
        GROUP BY booking_id HAVING coalesce(bookings.refund_minor_units, 0) <> coalesce(sum(fare), 0)
        """,
        schemas=("booking",),
    ),
    Invariant(
        9,
        "every passenger of a confirmed booking has a seat, unless the passenger has changed or released it",
        """
        SELECT booking_id, bookings.pnr, booking_seats.flight_id, booking_seats.passenger_id, booking_seats.seat_number
        FROM booking.bookings JOIN booking.booking_seats USING (booking_id)
        JOIN booking.booking_flights USING (booking_id, flight_id)
        WHERE bookings.state = 'CONFIRMED' AND live
          AND NOT EXISTS (
              SELECT FROM seat.hold_seats
              WHERE (hold_seats.flight_id, hold_seats.passenger_id)
                    = (booking_seats.flight_id, booking_seats.passenger_id)
                AND (hold_seats.state = 'CONFIRMED' OR hold_seats.hold_id <> bookings.hold_id))
          AND NOT EXISTS (
              SELECT FROM checkin.check_ins
              WHERE (check_ins.flight_id, check_ins.passenger_id)
                    = (booking_seats.flight_id, booking_seats.passenger_id))
          -- The bookings of a cancelled flight end a moment later, by an event.
          AND NOT EXISTS (
              SELECT FROM flight.flights
              WHERE flights.flight_id = booking_seats.flight_id AND flights.state = 'CANCELLED')
        """,
        schemas=("booking", "seat", "checkin", "flight"),
    ),
    Invariant(
        9,
        "a failed, expired or cancelled booking has no seat, and no booking has one on its cancelled flights",
        """
        SELECT booking_id, bookings.state, seated.hold_id, seated.flight_id, seated.seat_number, seated.passenger_id
        FROM booking.bookings
        JOIN booking.booking_passengers USING (booking_id)
        JOIN booking.booking_flights USING (booking_id)
        JOIN seat.hold_seats AS seated
            ON seated.flight_id = booking_flights.flight_id AND seated.passenger_id = booking_passengers.passenger_id
        WHERE (bookings.state IN ('FAILED', 'EXPIRED', 'CANCELLED') OR booking_flights.cancel_time IS NOT NULL)
          AND seated.state IN ('HELD', 'CONFIRMED')
          AND bookings.update_time < now() - interval '30 s'
        """,
        needs_service=True,
        schemas=("booking", "seat"),
    ),
    Invariant(
        9,
        "a booking equals the result of its history",
        """
        SELECT booking_id, bookings.state, last.to_state, last.version
        FROM booking.bookings FULL JOIN (
            SELECT DISTINCT ON (booking_id) booking_id, to_state, version
            FROM booking.booking_events ORDER BY booking_id, version DESC
        ) AS last USING (booking_id)
        -- The history has only transitions. Other changes also increase the version.
        WHERE bookings.state IS DISTINCT FROM last.to_state OR bookings.version < last.version
        UNION ALL
        SELECT booking_id, from_state, state_before, version
        FROM (
            SELECT booking_id, from_state, version, lag(to_state) OVER booking AS state_before
            FROM booking.booking_events WINDOW booking AS (PARTITION BY booking_id ORDER BY version)
        ) AS step
        WHERE from_state IS DISTINCT FROM state_before
        """,
        schemas=("booking",),
    ),
    Invariant(
        10,
        "every unpaid booking ends within 5 s of its expire time",
        """
        SELECT booking_id, state, expire_time FROM booking.bookings
        WHERE state IN ('SEATS_RESERVED', 'PAYMENT_PENDING') AND expire_time < now() - interval '5 s'
        """,
        needs_service=True,
        schemas=("booking",),
    ),
    Invariant(
        10,
        "no step of a booking takes more than 30 s, except a payment in progress",
        """
        SELECT booking_id, state, update_time, refund_reason FROM booking.bookings
        WHERE update_time < now() - interval '30 s'
          AND (state IN ('CREATED', 'PAYMENT_PENDING')
               -- The payment succeeded, but the seats are not confirmed and no refund is decided.
               OR pay_time IS NOT NULL AND state <> 'CONFIRMED' AND refund_reason IS NULL)
        """,
        needs_service=True,
        schemas=("booking",),
    ),
    Invariant(
        9,
        "a booking records its refund within 30 s",
        """
        SELECT booking_id, bookings.state, payment_intent_id, bookings.refund_time, refunded_minor_units AS given_back
        FROM booking.bookings JOIN payment.intents ON intents.intent_id = bookings.payment_intent_id
        WHERE bookings.refund_time IS NULL AND refunded_minor_units > 0
              AND refunded_minor_units >= coalesce(bookings.refund_minor_units, 0)
              AND intents.update_time < now() - interval '30 s'
           OR bookings.refund_time IS NOT NULL AND refunded_minor_units < bookings.refund_minor_units
        """,
        needs_service=True,
        schemas=("booking", "payment"),
    ),
    Invariant(
        7,
        "a booking is on the manifest exactly while it is confirmed, at most 30 s late",
        """
        SELECT booking_id, bookings.pnr, bookings.state, booked.flight_id, booked.passenger_id,
               listed.pnr AS listed_pnr
        FROM booking.bookings
        JOIN (
            SELECT booking_id, flight_id, passenger_id, booking_flights.cancel_time
            FROM booking.booking_flights JOIN booking.booking_passengers USING (booking_id)
        ) AS booked USING (booking_id)
        LEFT JOIN checkin.passengers AS listed USING (flight_id, passenger_id)
        WHERE bookings.pnr IS NOT NULL AND bookings.update_time < now() - interval '30 s'
          AND listed.pnr IS DISTINCT FROM CASE
              WHEN bookings.state = 'CONFIRMED' AND booked.cancel_time IS NULL THEN bookings.pnr END
        """,
        needs_service=True,
        schemas=("booking", "checkin"),
    ),
    Invariant(
        7,
        "every confirmation of a booking, and every cancellation of a confirmed one, has its event",
        """
        SELECT booking_id, expected.routing_key, expected.since
        FROM booking.bookings CROSS JOIN LATERAL (
            VALUES ('booking.confirmed.v1', confirm_time),
                   ('booking.cancelled.v1', CASE WHEN confirm_time IS NOT NULL THEN (
                       SELECT max(cancel_time) FROM booking.booking_flights
                       WHERE booking_flights.booking_id = bookings.booking_id) END)
        ) AS expected (routing_key, since)
        -- Published events are kept for 72 hours.
        WHERE expected.since > now() - interval '72 hours'
          AND NOT EXISTS (
              SELECT FROM booking.outbox
              WHERE outbox.routing_key = expected.routing_key
                -- A serialized event begins with the booking's id: field 1, of 36 bytes.
                AND substring(body FROM 3 FOR 36) = convert_to(booking_id::text, 'UTF8'))
        """,
        schemas=("booking",),
    ),
    Invariant(
        12,
        "a record locator belongs to one booking, and only that booking's passengers have it",
        """
        SELECT pnr, array_agg(booking_id::text) AS bookings FROM booking.bookings
        WHERE pnr IS NOT NULL GROUP BY pnr HAVING count(*) > 1
        UNION ALL
        SELECT passengers.pnr, ARRAY[passengers.flight_id || ' ' || passengers.passenger_id]
        FROM checkin.passengers JOIN booking.bookings USING (pnr)
        WHERE NOT EXISTS (
            SELECT FROM booking.booking_passengers
            WHERE booking_passengers.booking_id = bookings.booking_id
              AND booking_passengers.passenger_id = passengers.passenger_id)
        """,
        schemas=("booking", "checkin"),
    ),
)
