"""A history of all services that breaks no invariant, written as rows with times in the past.

The times are older than every grace period, so that a corruption is reported at once.
"""

from __future__ import annotations

from typing import Final

from gateway.limits import DEFAULTS
from operations.invariants.services import SERVICES
from tests.dates import DAY, flight_id

FLIGHT: Final = flight_id("SH1")
ONWARD: Final = flight_id("SH2")
GONE: Final = flight_id("SH3")


def named(name: str) -> str:
    """Returns the SQL of a UUID that is derived from this name."""
    return f"md5('{name}')::uuid"


# The confirmed seats for an hour, by passenger. Hold, check-in, intent and so on have ids `named` after the passenger.
CONFIRMED: Final = {"10A": "P1", "11A": "P2", "14A": "P4", "12A": "W1", "13A": "W3"}
SEATS: Final = f"""
    SET LOCAL search_path = seat;
    INSERT INTO flights (flight_id, layout_id, total_seats, waitlist_open, waitlist_revision)
    VALUES ('{FLIGHT}', 'A320-180Y', {len(CONFIRMED) + 1}, true, 1);
    CREATE TEMPORARY TABLE seated ON COMMIT DROP AS
    SELECT seat_number, passenger_id, md5('hold ' || passenger_id)::uuid AS hold_id,
           md5('event ' || passenger_id)::uuid AS event_id
    FROM (VALUES {", ".join(map(str, CONFIRMED.items()))}) AS seated (seat_number, passenger_id);
    INSERT INTO seats (flight_id, seat_number, ordinal, update_time)
    VALUES ('{FLIGHT}', '30F', 180, now() - interval '1 hour');
    INSERT INTO seats (flight_id, seat_number, ordinal, state, hold_id, version, update_time)
    SELECT '{FLIGHT}', seat_number, row_number() OVER (), 'CONFIRMED', hold_id, 2, now() - interval '1 hour'
    FROM seated;
    INSERT INTO holds (hold_id, owner, purpose, state, ttl, extensions_left, create_time, expire_time, confirm_time)
    SELECT hold_id, 'agent:x', 'CHECK_IN', 'CONFIRMED', '2 min', 9,
           now() - interval '61 min', now() - interval '59 min', now() - interval '1 hour'
    FROM seated;
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
    SELECT hold_id, '{FLIGHT}', seat_number, passenger_id, 'CONFIRMED' FROM seated;
    INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, event_id,
                             event_time)
    SELECT '{FLIGHT}', seat_number, 1, 'AVAILABLE'::seat_state, 'HELD'::seat_state, hold_id, 'agent:x', 'HELD',
           NULL::uuid, now() - interval '61 min'
    FROM seated
    UNION ALL
    SELECT '{FLIGHT}', seat_number, 2, 'HELD', 'CONFIRMED', hold_id, 'agent:x', 'CONFIRMED',
           event_id, now() - interval '1 hour'
    FROM seated;
    INSERT INTO outbox (event_id, routing_key, body, publish_time)
    SELECT event_id, 'seat.confirmed.v1', '', now() FROM seated;
    INSERT INTO availability VALUES ('{FLIGHT}', {1 + 2 * len(CONFIRMED)});
"""

# P1 without a fee, P2 with a paid one, P3 cancelled and refunded, P4 with an unpaid one, P5 an infant on P1's lap.
CHECK_INS: Final = f"""
    SET LOCAL search_path = checkin;
    INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, state, version, allowance_grams, seat_number,
                           hold_id, sequence_number, complete_time)
    VALUES ({named("check-in P1")}, '{FLIGHT}', 'P1', 'XK4T7Q', 'COMPLETED', 3, 25000, '10A', {named("hold P1")},
            1, now() - interval '1 hour'),
           ({named("check-in P5")}, '{FLIGHT}', 'P5', 'XK4T7Q', 'COMPLETED', 3, 10000, 'INF', NULL,
            2, now() - interval '1 hour');
    INSERT INTO check_ins (checkin_id, flight_id, passenger_id, pnr, state, version, allowance_grams, seat_number,
                           hold_id, sequence_number, complete_time, cancel_time, cancel_reason, bags_grams,
                           excess_grams, fee_cents, fee_currency, payment_intent_id, payment_deadline, fee_pay_time,
                           fee_refund_time)
    SELECT md5('check-in ' || passenger_id)::uuid, '{FLIGHT}', passenger_id, 'XK4T7Q', state::check_in_state, 4, 25000,
           seat_number, md5('hold ' || passenger_id)::uuid,
           CASE state WHEN 'COMPLETED' THEN 3 END, CASE state WHEN 'COMPLETED' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN 'CHANGED_MIND' END,
           '{{28000}}', 3000, 3000, 'EUR', md5('intent ' || passenger_id)::uuid,
           now() + interval '30 min',
           CASE WHEN state <> 'WAITING_FOR_PAYMENT' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '1 hour' END
    FROM (VALUES ('P2', '11A', 'COMPLETED'), ('P3', '13A', 'CANCELLED'), ('P4', '14A', 'WAITING_FOR_PAYMENT'))
        AS passenger (passenger_id, seat_number, state);
    INSERT INTO check_in_events (checkin_id, version, from_state, to_state, actor, reason)
    SELECT md5('check-in ' || passenger_id)::uuid, version, from_state::check_in_state, to_state::check_in_state,
           'passenger:XK4T7Q', 'TOLD'
    FROM (VALUES ('P1', 1, NULL, 'INITIATED'), ('P1', 2, 'INITIATED', 'BAGGAGE_VALIDATED'),
                 ('P1', 3, 'BAGGAGE_VALIDATED', 'COMPLETED'),
                 ('P5', 1, NULL, 'INITIATED'), ('P5', 2, 'INITIATED', 'BAGGAGE_VALIDATED'),
                 ('P5', 3, 'BAGGAGE_VALIDATED', 'COMPLETED'),
                 -- The version between is the payment's: it is no transition.
                 ('P2', 1, NULL, 'INITIATED'), ('P2', 2, 'INITIATED', 'WAITING_FOR_PAYMENT'),
                 ('P2', 4, 'WAITING_FOR_PAYMENT', 'COMPLETED'),
                 ('P3', 1, NULL, 'INITIATED'), ('P3', 2, 'INITIATED', 'WAITING_FOR_PAYMENT'),
                 ('P3', 3, 'WAITING_FOR_PAYMENT', 'CANCELLED'),
                 ('P4', 1, NULL, 'INITIATED'), ('P4', 2, 'INITIATED', 'WAITING_FOR_PAYMENT'),
                 ('P4', 4, 'WAITING_FOR_PAYMENT', 'WAITING_FOR_PAYMENT'))
        AS step (passenger_id, version, from_state, to_state);
"""

# The passengers on the flight's manifest, which the seat service knows too. P3 has left it.
MANIFEST: Final = f"""
    SET LOCAL search_path = checkin;
    INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
                         opens_before, closes_before, boarding_before, gate)
    SELECT '{FLIGHT}', 'SH1', 'FRA', 'LIS', departure_time, departure_time + interval '2 hours', '{DAY}',
           '1 day', '1 hour', '40 min', 'A12'
    FROM (SELECT now() + interval '20 hours') AS flight (departure_time)
    ON CONFLICT DO NOTHING;
    INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                            special_services, accompanying_passenger_id, contact_email)
    SELECT '{FLIGHT}', passenger_id, 'XK4T7Q', '\\x00', 'Zoe', 'Muller', type::passenger_type, 'ECONOMY', 'STANDARD',
           needs::text[], adult, ''
    FROM (VALUES ('P1', 'ADULT', '{{WCHR}}', NULL), ('P2', 'ADULT', '{{}}', NULL), ('P3', 'ADULT', '{{}}', NULL),
                 ('P4', 'ADULT', '{{}}', NULL), ('P5', 'INFANT', '{{}}', 'P1'))
        AS passenger (passenger_id, type, needs, adult);
    DELETE FROM passengers WHERE passenger_id = 'P3';
    INSERT INTO locators (pnr) SELECT DISTINCT pnr FROM passengers;
    UPDATE entitlements SET known_revision = revision, change_time = now() - interval '1 hour';
    UPDATE flights SET known_times_revision = times_revision;
    DELETE FROM timers WHERE name = 'send-entitlements';
    INSERT INTO seat.passengers (flight_id, passenger_id, pnr, cabin, type, special_services, ended, revision,
                                 update_time)
    SELECT flight_id, passenger_id, entitlements.pnr, coalesce(cabin::text, 'CABIN_UNSPECIFIED'),
           coalesce(type::text, 'ADULT'), CASE WHEN cabin IS NULL THEN '{{}}' ELSE needs_of(passengers) END,
           cabin IS NULL, revision, now() - interval '1 hour'
    FROM entitlements LEFT JOIN passengers USING (flight_id, passenger_id);
    INSERT INTO seat.departures (flight_id, departure_time, revision)
    SELECT flight_id, departure_time, times_revision FROM flights;
"""

# The fees of P2 to P4, of P6 that is being refunded, and of P7 whose money came after the cancellation. P2's first
# charge was declined.
PAYMENTS: Final = """
    SET LOCAL search_path = payment;
    INSERT INTO intents (intent_id, reference, owner, currency, minor_units, state, version, attempts, max_attempts,
                         paid_charge, succeed_time, refund_time, cancel_time, refund_minor_units,
                         refunded_minor_units)
    SELECT md5('intent ' || passenger_id)::uuid, 'checkin/' || passenger_id, 'passenger:XK4T7Q', 'EUR', 3000,
           state::intent_state, version, CASE state WHEN 'REQUIRES_PAYMENT' THEN 0 ELSE 2 END, 3,
           CASE WHEN paid THEN md5('charge ' || passenger_id)::uuid END,
           CASE WHEN paid THEN now() - interval '2 hours' END,
           CASE state WHEN 'REFUNDED' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '1 hour' END,
           CASE WHEN state IN ('REFUNDING', 'REFUNDED') THEN 3000 ELSE 0 END,
           CASE state WHEN 'REFUNDED' THEN 3000 ELSE 0 END
    FROM (VALUES ('P2', 'SUCCEEDED', 3, true), ('P3', 'REFUNDED', 5, true), ('P4', 'REQUIRES_PAYMENT', 1, false),
                 ('P6', 'REFUNDING', 4, true), ('P7', 'CANCELLED', 4, false))
        AS fee (passenger_id, state, version, paid);
    INSERT INTO intent_events (intent_id, version, from_state, to_state, actor, reason, event_time)
    SELECT md5('intent ' || passenger_id)::uuid, step.version, from_state::intent_state, to_state::intent_state,
           'service:checkin', 'TOLD', now()
    FROM (VALUES ('P2', 3), ('P3', 5), ('P4', 1), ('P6', 4)) AS fee (passenger_id, version)
    JOIN (VALUES (1, NULL, 'REQUIRES_PAYMENT'), (2, 'REQUIRES_PAYMENT', 'PROCESSING'), (3, 'PROCESSING', 'SUCCEEDED'),
                 (4, 'SUCCEEDED', 'REFUNDING'), (5, 'REFUNDING', 'REFUNDED'))
        AS step (version, from_state, to_state) ON step.version <= fee.version
    UNION ALL
    SELECT md5('intent P7')::uuid, version, from_state::intent_state, to_state::intent_state,
           'service:checkin', 'TOLD', now()
    FROM (VALUES (1, NULL, 'REQUIRES_PAYMENT'), (2, 'REQUIRES_PAYMENT', 'PROCESSING'), (3, 'PROCESSING', 'FAILED'),
                 (4, 'FAILED', 'CANCELLED')) AS step (version, from_state, to_state);
    INSERT INTO charges (key, intent_id, number, state, provider_charge_id, decide_time)
    SELECT md5('charge ' || passenger_id)::uuid, md5('intent ' || passenger_id)::uuid, 2, 'SUCCEEDED', 'ch_1', now()
    FROM unnest(ARRAY['P2', 'P3', 'P6', 'P7']) AS fee (passenger_id);
    INSERT INTO charges (key, intent_id, number, state, error, decide_time)
    VALUES (md5('declined')::uuid, md5('intent P2')::uuid, 1, 'FAILED', 'DECLINED', now());
    INSERT INTO refunds (charge_key, intent_id, refund_key, minor_units, state, reason, provider_refund_id, finish_time)
    SELECT md5('charge ' || passenger_id)::uuid, md5('intent ' || passenger_id)::uuid, gen_random_uuid(), 3000,
           state::refund_state, 'CANCELLED', CASE state WHEN 'SUCCEEDED' THEN 're_1' END,
           CASE state WHEN 'SUCCEEDED' THEN now() END
    FROM (VALUES ('P3', 'SUCCEEDED'), ('P6', 'REQUESTED'), ('P7', 'SUCCEEDED')) AS refund (passenger_id, state);
"""

# W1 got 12A. W2 waits for 10A or 13A, but is not eligible for 13A, so W3, who came later, got it. W4 declined an offer.
WAITLISTS: Final = f"""
    SET LOCAL search_path = waitlist;
    INSERT INTO flights (flight_id, last_number, open, revision, told_revision) VALUES ('{FLIGHT}', 4, true, 1, 1);
    INSERT INTO seats (flight_id, seat_number, ordinal, cabin, position)
    SELECT '{FLIGHT}', seat_number, ordinal, 'ECONOMY', 'WINDOW'
    FROM unnest(ARRAY['10A', '11A', '12A', '13A', '14A', '30F']) WITH ORDINALITY AS seat (seat_number, ordinal);
    INSERT INTO entries (entry_id, flight_id, number, passenger_id, owner, type, cabin, special_services, positions,
                         seat_numbers, state, version, claim_id, seat_number, match_time, hold_id, offer_expire_time,
                         create_time, update_time, end_time)
    SELECT md5('entry ' || passenger_id)::uuid, '{FLIGHT}', number, passenger_id, 'passenger:XK4T7Q', 'ADULT',
           'ECONOMY', '{{}}', '{{WINDOW}}', wishes::text[], state::entry_state, version,
           CASE WHEN seat_number IS NOT NULL THEN md5('claim ' || passenger_id)::uuid END, seat_number,
           CASE WHEN seat_number IS NOT NULL THEN now() - interval '1 hour' END,
           CASE WHEN seat_number IS NOT NULL THEN md5('hold ' || passenger_id)::uuid END,
           CASE state WHEN 'DECLINED' THEN now() - interval '58 min' END,
           now() - interval '2 hours' + number * interval '1 min', now() - interval '1 hour',
           CASE WHEN seat_number IS NOT NULL THEN now() - interval '1 hour' END
    FROM (VALUES (1, 'W1', '{{12A}}', 'ASSIGNED', 2, '12A'), (2, 'W2', '{{10A,13A}}', 'WAITING', 1, NULL),
                 (3, 'W3', '{{13A,14A}}', 'ASSIGNED', 2, '13A'), (4, 'W4', '{{30F}}', 'DECLINED', 3, '30F'))
        AS entry (number, passenger_id, wishes, state, version, seat_number);
    INSERT INTO entry_events (entry_id, version, from_state, to_state, actor, reason)
    SELECT md5('entry ' || passenger_id)::uuid, version, from_state::entry_state, to_state::entry_state,
           'waitlist', 'TOLD'
    FROM (VALUES ('W1', 1, NULL, 'WAITING'), ('W1', 2, 'WAITING', 'ASSIGNED'), ('W2', 1, NULL, 'WAITING'),
                 ('W3', 1, NULL, 'WAITING'), ('W3', 2, 'WAITING', 'ASSIGNED'),
                 ('W4', 1, NULL, 'WAITING'), ('W4', 2, 'WAITING', 'OFFERED'), ('W4', 3, 'OFFERED', 'DECLINED'))
        AS step (passenger_id, version, from_state, to_state);
    INSERT INTO skips (entry_id, seat_number, reason, end_time, skip_time, first_skip_time)
    VALUES ({named("entry W2")}, '13A', 'EXIT_ROW_NOT_ALLOWED', 'infinity', now() - interval '59 min',
            now() - interval '61 min');
    INSERT INTO timers (name, subject, due_time, try_time)
    VALUES ('sweep', '{FLIGHT}', now() + interval '1 hour', now() + interval '1 hour'),
           ('close', '{FLIGHT}', now() + interval '5 hours', now() + interval '5 hours');
    SET LOCAL search_path = checkin;
    INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
                         opens_before, closes_before, boarding_before, gate)
    VALUES ('{FLIGHT}', 'SH1', 'FRA', 'LIS', now() + interval '6 hours', now() + interval '8 hours', current_date,
            '1 day', '1 hour', '40 min', '');
    INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                            special_services, contact_email)
    VALUES ('{FLIGHT}', 'W2', 'XK4T7Q', '', 'Ada', 'Byron', 'ADULT', 'ECONOMY', 'STANDARD', '{{}}', '');
"""

# K is confirmed on two flights, with an infant; R is not yet paid; X was cancelled after its confirmation; E expired; F
# never got a seat. Hold, intent and so on have ids `named` after the booking.
BOOKED_SEATS: Final = f"""
    SET LOCAL search_path = seat;
    INSERT INTO flights (flight_id, layout_id, total_seats)
    SELECT flight_id, 'A320-180Y', 1 FROM unnest(ARRAY['{ONWARD}', '{GONE}']) AS flight (flight_id);
    UPDATE flights SET total_seats = total_seats + 4 WHERE flight_id = '{FLIGHT}';
    CREATE TEMPORARY TABLE booked ON COMMIT DROP AS
    SELECT flight_id, seat_number, name || '-1' AS passenger_id, md5('hold ' || name)::uuid AS hold_id,
           hold_state::hold_state, seat_state::seat_state, version
    FROM (VALUES ('{FLIGHT}', '20A', 'K', 'CONFIRMED', 'CONFIRMED', 2),
                 ('{ONWARD}', '20A', 'K', 'CONFIRMED', 'CONFIRMED', 2), ('{FLIGHT}', '21A', 'R', 'HELD', 'HELD', 1),
                 ('{FLIGHT}', '22A', 'X', 'CANCELLED', 'AVAILABLE', 3),
                 ('{FLIGHT}', '23A', 'E', 'EXPIRED', 'AVAILABLE', 2))
        AS booked (flight_id, seat_number, name, hold_state, seat_state, version);
    INSERT INTO seats (flight_id, seat_number, ordinal, state, hold_id, version, update_time)
    SELECT flight_id, seat_number, 100 + row_number() OVER (), seat_state,
           CASE WHEN seat_state <> 'AVAILABLE' THEN hold_id END, version, now() - interval '1 hour'
    FROM booked;
    INSERT INTO seats (flight_id, seat_number, ordinal, update_time)
    VALUES ('{GONE}', '20A', 1, now() - interval '2 hours');
    INSERT INTO holds (hold_id, owner, purpose, state, ttl, extensions_left, managed, create_time, expire_time,
                       confirm_time, end_time)
    SELECT DISTINCT hold_id, 'customer:c', 'BOOKING'::hold_purpose, hold_state, interval '15 min', 9, true,
           now() - interval '2 hours',
           CASE hold_state WHEN 'HELD' THEN now() + interval '1 hour' ELSE now() - interval '59 min' END,
           CASE WHEN hold_state IN ('CONFIRMED', 'CANCELLED') THEN now() - interval '1 hour' END,
           CASE WHEN hold_state IN ('CANCELLED', 'EXPIRED') THEN now() - interval '58 min' END
    FROM booked;
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
    SELECT hold_id, flight_id, seat_number, passenger_id,
           CASE seat_state WHEN 'AVAILABLE' THEN 'RELEASED' ELSE seat_state::text END
    FROM booked;
    CREATE TEMPORARY TABLE told ON COMMIT DROP AS
    SELECT flight_id, seat_number, step.version, from_state::seat_state, to_state::seat_state, hold_id, actor, reason,
           CASE WHEN to_state <> 'HELD' THEN gen_random_uuid() END AS event_id, event_time
    FROM booked JOIN (
        VALUES (1, 'AVAILABLE', 'HELD', 'service:booking', 'HELD', now() - interval '2 hours', 'any'),
               (2, 'HELD', 'CONFIRMED', 'service:booking', 'CONFIRMED', now() - interval '1 hour', 'paid'),
               (3, 'CONFIRMED', 'AVAILABLE', 'service:booking', 'CHANGED_MIND', now() - interval '58 min', 'paid'),
               (2, 'HELD', 'AVAILABLE', 'sweeper', 'EXPIRED', now() - interval '58 min', 'lapsed')
    ) AS step (version, from_state, to_state, actor, reason, event_time, course)
        ON step.version <= booked.version
       AND course IN ('any', CASE hold_state WHEN 'EXPIRED' THEN 'lapsed' ELSE 'paid' END);
    INSERT INTO seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, event_id,
                             event_time)
    TABLE told;
    INSERT INTO outbox (event_id, routing_key, body, publish_time)
    SELECT event_id, CASE to_state WHEN 'CONFIRMED' THEN 'seat.confirmed.v1' ELSE 'seat.released.v1' END, '', now()
    FROM told WHERE event_id IS NOT NULL;
    DELETE FROM availability;
    INSERT INTO availability SELECT flight_id, 1 + sum(version) FROM seats GROUP BY flight_id;
"""
FLIGHTS: Final = f"""
    SET LOCAL search_path = flight;
    INSERT INTO flights (flight_id, flight_number, origin, destination, departure_time, arrival_time, departure_date,
                         aircraft_type, layout_id, check_in_opens_before, check_in_closes_before, boarding_before, gate,
                         state, cancel_time, cancel_reason)
    SELECT flight_id, 'SH1', 'FRA', 'LIS', departure_time, departure_time + interval '3 hours', departure_time::date,
           'A320', 'A320-180Y', '24 hours', '60 min', '40 min', '', state::flight_status,
           CASE state WHEN 'CANCELLED' THEN now() - interval '1 hour' END, CASE state WHEN 'CANCELLED' THEN 'STRIKE' END
    FROM (VALUES ('{FLIGHT}', 'SCHEDULED'), ('{ONWARD}', 'SCHEDULED'), ('{GONE}', 'CANCELLED'))
             AS flight (flight_id, state),
         (VALUES (date_trunc('day', now()) + interval '2 days 12 hours')) AS day (departure_time);
    INSERT INTO flight_cabins (flight_id, cabin, fare_cents, total_seats)
    SELECT flight_id, 'ECONOMY', 10000, total_seats FROM seat.flights;
    INSERT INTO seat_counts (flight_id, cabin, available_seats, version)
    SELECT flight_id, 'ECONOMY', count(*) FILTER (WHERE state = 'AVAILABLE'), 1 + sum(version)
    FROM seat.seats WHERE flight_id <> '{GONE}' GROUP BY flight_id;
    INSERT INTO outbox (event_id, routing_key, body, publish_time)
    VALUES (gen_random_uuid(), 'flight.cancelled.v1', convert_to('  {GONE} STRIKE', 'UTF8'), now());
"""
BOOKINGS: Final = f"""
    SET LOCAL search_path = booking;
    INSERT INTO bookings (booking_id, owner, state, version, cabin, contact_email, currency, total_minor_units,
                          sale_close_time, departure_time, hold_id, expire_time, first_answer, payment_intent_id,
                          payment_attempts, max_payment_attempts, last_error, pay_time, refund_reason,
                          refund_minor_units, refund_time, pnr, create_time, update_time, confirm_time, cancel_time,
                          cancel_reason)
    SELECT md5('booking ' || name)::uuid, 'customer:c', state::booking_state, version, 'ECONOMY', '', 'USD', 20000,
           now() + interval '1 day', now() + interval '25 hours',
           CASE WHEN state <> 'FAILED' THEN md5('hold ' || name)::uuid END,
           CASE WHEN state <> 'FAILED'
                THEN CASE state WHEN 'SEATS_RESERVED' THEN now() + interval '1 hour' ELSE now() - interval '59 min' END
           END,
           CASE WHEN state <> 'FAILED' THEN ''::bytea END, CASE WHEN pnr <> '' THEN md5('intent ' || name)::uuid END,
           CASE WHEN pnr <> '' THEN 1 ELSE 0 END, 3, CASE state WHEN 'FAILED' THEN 'SEATS_UNAVAILABLE' ELSE '' END,
           CASE WHEN pnr <> '' THEN now() - interval '61 min' END,
           CASE state WHEN 'CANCELLED' THEN 'CHANGED_MIND' END, CASE state WHEN 'CANCELLED' THEN 20000 END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '57 min' END,
           nullif(pnr, ''), now() - interval '2 hours', now() - interval '57 min',
           CASE WHEN pnr <> '' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '58 min' END,
           CASE state WHEN 'CANCELLED' THEN 'CHANGED_MIND' END
    FROM (VALUES ('K', 'CONFIRMED', 7, 'KB7T7Q'), ('R', 'SEATS_RESERVED', 2, ''), ('X', 'CANCELLED', 9, 'KX7T7Q'),
                 ('E', 'EXPIRED', 3, ''), ('F', 'FAILED', 2, ''))
        AS booking (name, state, version, pnr);
    INSERT INTO booking_flights (booking_id, leg, flight_id, flight_number, origin, destination, departure_time,
                                 arrival_time, departure_date, check_in_opens_before, check_in_closes_before,
                                 boarding_before, gate, price_minor_units)
    SELECT md5('booking ' || name)::uuid, leg, flight_id, 'SH1', 'FRA', 'LIS', now() + interval '25 hours',
           now() + interval '28 hours', '{DAY}', '24 hours', '60 min', '40 min', '', 10000
    FROM (VALUES ('K', 1, '{FLIGHT}'), ('K', 2, '{ONWARD}'), ('R', 1, '{FLIGHT}'), ('X', 1, '{FLIGHT}'),
                 ('E', 1, '{FLIGHT}'), ('F', 1, '{FLIGHT}'))
        AS leg (name, leg, flight_id);
    UPDATE booking_flights
    SET live = false, cancel_time = bookings.cancel_time, cancel_reason = bookings.cancel_reason
    FROM bookings
    WHERE bookings.booking_id = booking_flights.booking_id AND state IN ('CANCELLED', 'EXPIRED', 'FAILED');
    INSERT INTO booking_passengers (booking_id, number, passenger_id, given_name, last_name, type,
                                    accompanying_passenger_id)
    SELECT md5('booking ' || name)::uuid, number, name || '-' || number, 'Zoë', 'Lind', type::passenger_type,
           CASE type WHEN 'INFANT' THEN name || '-1' END
    FROM (VALUES ('K', 1, 'ADULT'), ('K', 2, 'INFANT'), ('R', 1, 'ADULT'), ('X', 1, 'ADULT'), ('E', 1, 'ADULT'),
                 ('F', 1, 'ADULT'))
        AS passenger (name, number, type);
    INSERT INTO booking_seats (booking_id, flight_id, passenger_id, seat_number, named)
    SELECT md5('booking ' || name)::uuid, flight_id, name || '-1', seat_number, false
    FROM (VALUES ('K', '{FLIGHT}', '20A'), ('K', '{ONWARD}', '20A'), ('R', '{FLIGHT}', '21A'), ('X', '{FLIGHT}', '22A'),
                 ('E', '{FLIGHT}', '23A'))
        AS seat (name, flight_id, seat_number);
    INSERT INTO booking_events (booking_id, version, from_state, to_state, actor, reason)
    SELECT md5('booking ' || name)::uuid, version, from_state::booking_state, to_state::booking_state,
           'customer:c', 'TOLD'
    FROM (VALUES (1, NULL, 'CREATED', 'FERXK'), (2, 'CREATED', 'FAILED', 'F'), (2, 'CREATED', 'SEATS_RESERVED', 'ERXK'),
                 (3, 'SEATS_RESERVED', 'EXPIRED', 'E'), (3, 'SEATS_RESERVED', 'PAYMENT_PENDING', 'XK'),
                 (5, 'PAYMENT_PENDING', 'PAYMENT_PROCESSING', 'XK'), (7, 'PAYMENT_PROCESSING', 'CONFIRMED', 'XK'),
                 -- The version after it is the refund's: it is no transition.
                 (8, 'CONFIRMED', 'CANCELLED', 'X')) AS step (version, from_state, to_state, names)
    CROSS JOIN unnest(string_to_array(names, NULL)) AS name;
    INSERT INTO outbox (event_id, routing_key, body, publish_time)
    SELECT gen_random_uuid(), routing_key,
           '\\x0a24'::bytea || convert_to(md5('booking ' || name)::uuid::text, 'UTF8'), now()
    FROM (VALUES ('K', 'booking.confirmed.v1'), ('X', 'booking.confirmed.v1'), ('X', 'booking.cancelled.v1'))
        AS told (name, routing_key);
    SET LOCAL search_path = checkin;
    INSERT INTO passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin, fare,
                            special_services, accompanying_passenger_id, contact_email)
    SELECT flight_id, passenger_id, 'KB7T7Q', '', 'Zoë', 'Lind', type::passenger_type, 'ECONOMY', 'STANDARD', '{{}}',
           CASE type WHEN 'INFANT' THEN 'K-1' END, ''
    FROM (VALUES ('K-1', 'ADULT'), ('K-2', 'INFANT')) AS passenger (passenger_id, type),
         (VALUES ('{FLIGHT}'), ('{ONWARD}')) AS flight (flight_id);
    SET LOCAL search_path = payment;
    INSERT INTO intents (intent_id, reference, owner, currency, minor_units, state, version, attempts, max_attempts,
                         paid_charge, succeed_time, refund_time, update_time, refund_minor_units,
                         refunded_minor_units)
    SELECT md5('intent ' || name)::uuid, 'booking/' || md5('booking ' || name)::uuid, 'customer:c', 'USD', 20000,
           state::intent_state, version, 1, 3, md5('charge ' || name)::uuid, now() - interval '1 hour',
           CASE state WHEN 'REFUNDED' THEN now() - interval '57 min' END, now() - interval '57 min',
           CASE state WHEN 'REFUNDED' THEN 20000 ELSE 0 END, CASE state WHEN 'REFUNDED' THEN 20000 ELSE 0 END
    FROM (VALUES ('K', 'SUCCEEDED', 3), ('X', 'REFUNDED', 5)) AS fare (name, state, version);
    INSERT INTO intent_events (intent_id, version, from_state, to_state, actor, reason, event_time)
    SELECT md5('intent ' || name)::uuid, step.version, from_state::intent_state, to_state::intent_state,
           'service:booking', 'TOLD', now()
    FROM (VALUES ('K', 3), ('X', 5)) AS fare (name, version)
    JOIN (VALUES (1, NULL, 'REQUIRES_PAYMENT'), (2, 'REQUIRES_PAYMENT', 'PROCESSING'), (3, 'PROCESSING', 'SUCCEEDED'),
                 (4, 'SUCCEEDED', 'REFUNDING'), (5, 'REFUNDING', 'REFUNDED'))
        AS step (version, from_state, to_state) ON step.version <= fare.version;
    INSERT INTO charges (key, intent_id, number, state, provider_charge_id, decide_time)
    SELECT md5('charge ' || name)::uuid, md5('intent ' || name)::uuid, 1, 'SUCCEEDED', 'ch_1', now()
    FROM unnest(ARRAY['K', 'X']) AS fare (name);
    INSERT INTO refunds (charge_key, intent_id, refund_key, minor_units, state, reason, provider_refund_id, finish_time)
    VALUES ({named("charge X")}, {named("intent X")}, gen_random_uuid(), 20000, 'SUCCEEDED',
            'CHANGED_MIND', 're_1', now());
"""
LIMITS: Final = ", ".join(
    f"('{limit.limit_id}', '{limit.call_class}', '{limit.key}', '{limit.role}', "
    f"{limit.requests_per_minute}, {limit.burst})"
    for limit in DEFAULTS
)
# A's first burst of map reads, whose block was lifted; A's second burst, whose block a later scan shares; L's login
# guesses; S, who was only recorded.
ABUSE: Final = f"""
    SET LOCAL search_path = gateway;
    INSERT INTO limits (limit_id, call_class, key, role, requests_per_minute, burst)
    SELECT limit_id, call_class, key::limit_key, role, requests_per_minute, burst
    FROM (VALUES {LIMITS}) AS limits (limit_id, call_class, key, role, requests_per_minute, burst);
    INSERT INTO blocks (block_id, source, scope, kind, create_time, expire_time, lift_time, lifted_by, lift_reason)
    SELECT md5('block ' || name)::uuid, source, scope::block_scope, kind::incident_kind,
           now() - began, now() - began + interval '10 min', now() - lifted,
           CASE WHEN lifted IS NOT NULL THEN 'agent:x' END, CASE WHEN lifted IS NOT NULL THEN 'a school class' END
    FROM (VALUES ('A1', 'customer:a', 'EVERYTHING', 'MAP_BURST', interval '1 hour', interval '55 min'),
                 ('A2', 'customer:a', 'EVERYTHING', 'MAP_BURST', interval '54 min', NULL),
                 ('L', 'address:203.0.113.7', 'LOGIN', 'LOGIN_GUESSING', interval '1 hour', NULL))
        AS block (name, source, scope, kind, began, lifted);
    INSERT INTO incidents (incident_id, kind, source, count, threshold, window_seconds, evidence, detect_time, block_id)
    SELECT md5('incident ' || name)::uuid, kind::incident_kind, source, 50, 49, 5, ARRAY['/v1'], now() - found,
           CASE WHEN block <> '' THEN md5('block ' || block)::uuid END
    FROM (VALUES ('A1', 'MAP_BURST', 'customer:a', interval '1 hour', 'A1'),
                 ('A2', 'MAP_BURST', 'customer:a', interval '54 min', 'A2'),
                 ('A3', 'MAP_SCAN', 'customer:a', interval '53 min', 'A2'),
                 ('L', 'LOGIN_GUESSING', 'address:203.0.113.7', interval '1 hour', 'L'),
                 ('S', 'HOLD_SPINNING', 'customer:s', interval '1 hour', ''))
        AS incident (name, kind, source, found, block);
    INSERT INTO outbox (event_id, routing_key, body, create_time, publish_time)
    SELECT gen_random_uuid(), 'abuse.detected.v1',
           '\\x0a720a24'::bytea || convert_to(incident_id::text, 'UTF8'), detect_time, detect_time
    FROM incidents;
"""
TIMERS: Final = "".join(
    f"""
    INSERT INTO {service}.timers (name, subject, due_time, try_time, fire_time)
    VALUES ('test', 'fired', now() - interval '1 min', now() - interval '1 min', now() - interval '59 s'),
           ('test', 'far', now() + interval '1 day', now() + interval '1 day', NULL);
    """
    for service in SERVICES
)

TRUE_HISTORY: Final = (SEATS, CHECK_INS, PAYMENTS, WAITLISTS, BOOKED_SEATS, FLIGHTS, BOOKINGS, MANIFEST, ABUSE, TIMERS)
