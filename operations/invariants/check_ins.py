"""Invariants of check-ins: their seats, fees and passengers."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

CHECK_IN_INVARIANTS: Final = (
    Invariant(
        9,
        "a completed check-in has the seat that the seat service has confirmed for the passenger",
        """
        SELECT checkin_id, check_ins.flight_id, check_ins.passenger_id, check_ins.seat_number,
               seated.seat_number AS sits
        FROM checkin.check_ins
        LEFT JOIN seat.hold_seats AS seated
            ON seated.flight_id = check_ins.flight_id AND seated.passenger_id = check_ins.passenger_id
           AND seated.state = 'CONFIRMED'
        WHERE check_ins.state = 'COMPLETED' AND check_ins.seat_number <> 'INF'
          AND check_ins.seat_number IS DISTINCT FROM seated.seat_number
          -- The check-in receives a change of seat a moment later, by an event.
          AND NOT EXISTS (
              SELECT FROM seat.seat_events
              WHERE seat_events.flight_id = check_ins.flight_id
                AND seat_events.seat_number IN (check_ins.seat_number, seated.seat_number)
                AND seat_events.event_time > now() - interval '10 s')
        """,
        needs_service=True,
        schemas=("checkin", "seat"),
    ),
    Invariant(
        9,
        "a completed check-in with a baggage fee has a payment of this fee",
        """
        SELECT checkin_id, payment_intent_id, fee_cents, intents.state, intents.minor_units
        FROM checkin.check_ins LEFT JOIN payment.intents ON intents.intent_id = check_ins.payment_intent_id
        WHERE check_ins.state = 'COMPLETED' AND fee_cents > 0
          AND (intents.succeed_time IS NULL OR intents.minor_units <> fee_cents OR intents.currency <> fee_currency)
        """,
        schemas=("checkin", "payment"),
    ),
    Invariant(
        9,
        "the fee of a check-in that did not complete is refunded",
        """
        SELECT intent_id, reference, intents.state, succeed_time
        FROM payment.intents
        WHERE intents.state = 'SUCCEEDED' AND reference LIKE 'checkin/%' AND succeed_time < now() - interval '30 s'
          AND NOT EXISTS (
              SELECT FROM checkin.check_ins
              WHERE check_ins.payment_intent_id = intents.intent_id
                AND (check_ins.state = 'COMPLETED'
                     OR check_ins.state = 'WAITING_FOR_PAYMENT' AND check_ins.fee_pay_time IS NOT NULL
                        -- A paid check-in may complete until the departure of its flight.
                        AND NOT EXISTS (
                            SELECT FROM checkin.flights
                            WHERE flights.flight_id = check_ins.flight_id
                              AND departure_time < now() - interval '30 s')))
        """,
        needs_service=True,
        schemas=("checkin", "payment"),
    ),
    Invariant(
        9,
        "a cancelled check-in keeps no seat",
        """
        SELECT checkin_id, check_ins.flight_id, check_ins.passenger_id, seated.seat_number, cancel_time
        FROM checkin.check_ins
        JOIN seat.hold_seats AS seated
            ON seated.hold_id = check_ins.hold_id AND seated.flight_id = check_ins.flight_id
           AND seated.passenger_id = check_ins.passenger_id AND seated.state = 'CONFIRMED'
        WHERE check_ins.state = 'CANCELLED' AND cancel_time < now() - interval '30 s'
          -- The seat stays confirmed if a confirmed booking has it or its flight has departed.
          AND NOT EXISTS (
              SELECT FROM checkin.passengers
              WHERE passengers.flight_id = check_ins.flight_id AND passengers.passenger_id = check_ins.passenger_id
                AND booking IS NOT NULL)
          AND NOT EXISTS (
              SELECT FROM checkin.flights
              WHERE flights.flight_id = check_ins.flight_id AND departure_time < now())
          -- A later check-in with the same hold may have the seat.
          AND NOT EXISTS (
              SELECT FROM checkin.check_ins AS later
              WHERE later.flight_id = check_ins.flight_id AND later.passenger_id = check_ins.passenger_id
                AND later.state <> 'CANCELLED')
        """,
        needs_service=True,
        schemas=("checkin", "seat"),
    ),
    Invariant(
        9,
        "a check-in equals the result of its history",
        """
        SELECT checkin_id, check_ins.state, last.to_state, last.version
        FROM checkin.check_ins FULL JOIN (
            SELECT DISTINCT ON (checkin_id) checkin_id, to_state, version
            FROM checkin.check_in_events ORDER BY checkin_id, version DESC
        ) AS last USING (checkin_id)
        -- The history has only transitions. Other changes also increase the version.
        WHERE check_ins.state IS DISTINCT FROM last.to_state OR check_ins.version < last.version
        UNION ALL
        SELECT checkin_id, from_state, state_before, version
        FROM (
            SELECT checkin_id, from_state, version, lag(to_state) OVER check_in AS state_before
            FROM checkin.check_in_events WINDOW check_in AS (PARTITION BY checkin_id ORDER BY version)
        ) AS step
        WHERE from_state IS DISTINCT FROM state_before
        """,
        schemas=("checkin",),
    ),
    Invariant(
        14,
        "a record locator belongs to one party",
        """
        SELECT passengers.flight_id, passenger_id, pnr, passengers.booking, locators.booking AS locator_booking
        FROM checkin.passengers LEFT JOIN checkin.locators USING (pnr)
        WHERE locators.pnr IS NULL
           OR passengers.booking IS DISTINCT FROM locators.booking
              AND (passengers.booking IS NOT NULL
                   OR left(passenger_id, length(locators.booking) + 1) <> locators.booking || '-')
        """,
        schemas=("checkin",),
    ),
    Invariant(
        14,
        "a passenger of a confirmed booking has the booking's locator",
        """
        SELECT passengers.flight_id, passengers.passenger_id, passengers.pnr, bookings.pnr AS booking_pnr
        FROM booking.bookings
        JOIN booking.booking_passengers AS booked USING (booking_id)
        JOIN checkin.passengers ON passengers.passenger_id = booked.passenger_id
        WHERE bookings.state = 'CONFIRMED' AND passengers.booking IS NOT NULL AND passengers.pnr <> bookings.pnr
        """,
        schemas=("checkin", "booking"),
    ),
    Invariant(
        14,
        "no check-in is cancelled for a cause after the departure of its flight",
        """
        SELECT checkin_id, flight_id, passenger_id, cancel_reason, check_ins.cancel_time, cancel_cause_time,
               departure_time
        FROM checkin.check_ins JOIN checkin.flights USING (flight_id)
        WHERE coalesce(cancel_cause_time, check_ins.cancel_time) > departure_time AND flights.cancel_time IS NULL
          AND cancel_reason <> 'PAYMENT_TIMEOUT'
          -- A departure that was moved to an earlier time may now be before the cancellation.
          AND times_revision = 1
        """,
        schemas=("checkin",),
    ),
    Invariant(
        16,
        "a cancelled check-in does not release the seat of a confirmed booking",
        """
        SELECT checkin_id, check_ins.flight_id, check_ins.passenger_id, check_ins.seat_number, cancel_time
        FROM checkin.check_ins
        JOIN checkin.passengers USING (flight_id, passenger_id)
        WHERE check_ins.state = 'CANCELLED' AND passengers.booking IS NOT NULL AND passengers.type <> 'INFANT'
          -- With these reasons the seat was released before, by the seat service or with the flight or booking.
          AND cancel_reason NOT IN ('SEAT_RELEASED', 'SEAT_NO_LONGER_FITS', 'FLIGHT_CANCELLED', 'BOOKING_CANCELLED')
          AND cancel_time < now() - interval '30 s'
          AND EXISTS (
              SELECT FROM seat.seat_events AS released
              WHERE released.flight_id = check_ins.flight_id AND released.hold_id = check_ins.hold_id
                AND released.seat_number = check_ins.seat_number AND released.from_state = 'CONFIRMED'
                AND released.reason = check_ins.cancel_reason AND released.event_time >= check_ins.cancel_time)
        """,
        schemas=("checkin", "seat"),
    ),
    Invariant(
        14,
        "the seat service's copy of each passenger equals the manifest",
        """
        WITH listed AS (
            SELECT flight_id, passenger_id, passengers.pnr, cabin::text, type::text, cancel_time IS NOT NULL AS ended,
                   ARRAY(SELECT unnest(special_services)
                         UNION
                         SELECT 'INFT' FROM checkin.passengers AS infant
                         WHERE infant.flight_id = passengers.flight_id
                           AND infant.accompanying_passenger_id = passengers.passenger_id
                         UNION
                         SELECT 'CHLD' FROM checkin.passengers AS child
                         WHERE passengers.type = 'ADULT' AND child.type = 'CHILD'
                           AND (child.flight_id, child.pnr) = (passengers.flight_id, passengers.pnr)
                         ORDER BY 1) AS needs
            FROM checkin.passengers LEFT JOIN checkin.flights USING (flight_id)
        )
        SELECT flight_id, passenger_id, entitlements.revision, copy.revision AS known_revision, listed.pnr,
               copy.pnr AS known_pnr, coalesce(listed.ended, true) AS ended, copy.ended AS known_ended
        FROM checkin.entitlements
        FULL JOIN listed USING (flight_id, passenger_id)
        FULL JOIN seat.passengers AS copy USING (flight_id, passenger_id)
        WHERE coalesce(entitlements.change_time, '-infinity') < now() - interval '5 s'
          AND coalesce(copy.update_time, '-infinity') < now() - interval '5 s'
          AND (entitlements.revision IS NULL OR copy.revision IS DISTINCT FROM entitlements.revision
               OR copy.ended <> coalesce(listed.ended, true)
               OR NOT copy.ended AND (
                   (copy.pnr, copy.cabin, copy.type) IS DISTINCT FROM (listed.pnr, listed.cabin, listed.type)
                   -- At most 8 special services are sent.
                   OR cardinality(listed.needs) <= 8
                      AND ARRAY(SELECT unnest(copy.special_services) ORDER BY 1) <> listed.needs))
        """,
        needs_service=True,
        schemas=("checkin", "seat"),
    ),
    Invariant(
        14,
        "the seat service's copy of each departure time equals the manifest",
        """
        SELECT flight_id, flights.departure_time, departures.departure_time AS known_departure_time
        FROM checkin.flights LEFT JOIN seat.departures USING (flight_id)
        WHERE departures.departure_time IS DISTINCT FROM flights.departure_time
          AND NOT EXISTS (
              SELECT FROM checkin.timers
              WHERE name = 'send-entitlements' AND subject = flight_id
                AND coalesce(fire_time, due_time) > now() - interval '5 s')
        """,
        needs_service=True,
        schemas=("checkin", "seat"),
    ),
    Invariant(
        14,
        "no two completed check-ins of a flight have the same seat",
        """
        SELECT flight_id, seat_number, count(*) AS check_ins, max(update_time) AS update_time
        FROM checkin.check_ins WHERE state = 'COMPLETED' AND seat_number <> 'INF'
        GROUP BY flight_id, seat_number HAVING count(*) > 1 AND max(update_time) < now() - interval '5 s'
        """,
        needs_service=True,
        schemas=("checkin",),
    ),
    Invariant(
        14,
        "the passenger of every check-in is on the manifest",
        """
        SELECT checkin_id, flight_id, passenger_id, state FROM checkin.check_ins
        WHERE state <> 'CANCELLED' AND NOT EXISTS (
            SELECT FROM checkin.passengers
            WHERE passengers.flight_id = check_ins.flight_id AND passengers.passenger_id = check_ins.passenger_id)
        """,
        schemas=("checkin",),
    ),
    Invariant(
        14,
        "a completed check-in of an infant has a completed check-in of its adult",
        """
        SELECT checkin_id, flight_id, passenger_id, accompanying_passenger_id
        FROM checkin.check_ins JOIN checkin.passengers USING (flight_id, passenger_id)
        WHERE type = 'INFANT' AND state = 'COMPLETED' AND NOT EXISTS (
            SELECT FROM checkin.check_ins AS adult
            WHERE adult.flight_id = check_ins.flight_id AND adult.passenger_id = accompanying_passenger_id
              AND adult.state = 'COMPLETED')
        """,
        schemas=("checkin",),
    ),
    Invariant(
        10,
        "every unpaid check-in ends within 5 s of its payment deadline",
        """
        SELECT checkin_id, state, payment_deadline FROM checkin.check_ins
        WHERE state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NULL AND payment_deadline < now() - interval '5 s'
        """,
        needs_service=True,
        schemas=("checkin",),
    ),
)
