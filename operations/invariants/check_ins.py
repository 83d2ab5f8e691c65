"""Check-ins: completed with a seat and a paid fee, and no fee kept for nothing."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

CHECK_IN_INVARIANTS: Final = (
    Invariant(
        9,
        "who has completed check-in sits where the seat service says",
        """
        SELECT checkin_id, check_ins.flight_id, check_ins.passenger_id, check_ins.seat_number,
               seated.seat_number AS sits
        FROM checkin.check_ins
        LEFT JOIN seat.hold_seats AS seated
            ON seated.flight_id = check_ins.flight_id AND seated.passenger_id = check_ins.passenger_id
           AND seated.state = 'CONFIRMED'
        WHERE check_ins.state = 'COMPLETED' AND check_ins.seat_number <> 'INF'
          AND check_ins.seat_number IS DISTINCT FROM seated.seat_number
          -- News of a change of seat is on its way.
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
        "who has completed check-in with bags too heavy has paid for them",
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
        "no fee is kept for a check-in that did not complete",
        """
        SELECT intent_id, reference, intents.state, succeed_time
        FROM payment.intents
        WHERE intents.state = 'SUCCEEDED' AND reference LIKE 'checkin/%' AND succeed_time < now() - interval '30 s'
          AND NOT EXISTS (
              SELECT FROM checkin.check_ins
              WHERE check_ins.payment_intent_id = intents.intent_id
                AND (check_ins.state = 'COMPLETED'
                     OR check_ins.state = 'WAITING_FOR_PAYMENT' AND check_ins.fee_pay_time IS NOT NULL))
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
          -- Another check-in with the same hold has it now.
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
        "a check-in is what its history adds up to",
        """
        SELECT checkin_id, check_ins.state, last.to_state, last.version
        FROM checkin.check_ins FULL JOIN (
            SELECT DISTINCT ON (checkin_id) checkin_id, to_state, version
            FROM checkin.check_in_events ORDER BY checkin_id, version DESC
        ) AS last USING (checkin_id)
        -- Changes that are no transitions have versions too, which the history lacks.
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
        10,
        "no unpaid check-in outlives its deadline by more than 5 s",
        """
        SELECT checkin_id, state, payment_deadline FROM checkin.check_ins
        WHERE state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NULL AND payment_deadline < now() - interval '5 s'
        """,
        needs_service=True,
        schemas=("checkin",),
    ),
)
