"""Invariants of payments: money in = fares + fees + refunds."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

# For each intent, in minor units: the money taken, and how much of it is fare, fee and refund.
MONEY_OF_INTENTS: Final = """
    SELECT intents.intent_id, intents.reference, intents.currency, intents.update_time,
           coalesce(charges.times, 0) * intents.minor_units AS taken,
           coalesce(bookings.fare, 0) AS fare, coalesce(check_ins.fee, 0) AS fee,
           coalesce(refunds.minor_units, 0) AS given_back
    FROM payment.intents
    LEFT JOIN (SELECT intent_id, count(*) AS times FROM payment.charges WHERE state = 'SUCCEEDED' GROUP BY intent_id)
        AS charges USING (intent_id)
    -- A requested refund counts like a completed one.
    LEFT JOIN (SELECT intent_id, sum(minor_units)::bigint AS minor_units FROM payment.refunds GROUP BY intent_id)
        AS refunds USING (intent_id)
    LEFT JOIN (
        -- Without the fares of cancelled flights, which are refunded.
        SELECT payment_intent_id AS intent_id, sum(total_minor_units - CASE
                   WHEN refund_minor_units < total_minor_units THEN refund_minor_units ELSE 0 END)::bigint AS fare
        FROM booking.bookings WHERE state = 'CONFIRMED' GROUP BY payment_intent_id
    ) AS bookings USING (intent_id)
    LEFT JOIN (
        SELECT payment_intent_id AS intent_id, sum(fee_cents) AS fee
        FROM checkin.check_ins
        -- A check-in that did not complete by departure keeps its state; its fee is refunded.
        WHERE state = 'COMPLETED' OR state = 'WAITING_FOR_PAYMENT' AND fee_pay_time IS NOT NULL AND NOT fee_returned
        GROUP BY payment_intent_id
    ) AS check_ins USING (intent_id)
"""
MONEY_SCHEMAS: Final = ("payment", "booking", "checkin")

PAYMENT_INVARIANTS: Final = (
    Invariant(
        9,
        "money taken = fares + fees + refunds, for each intent",
        f"""
        SELECT intent_id, reference, currency, taken, fare, fee, given_back
        FROM ({MONEY_OF_INTENTS}) AS money
        WHERE taken <> fare + fee + given_back
          -- The booking and the check-in receive a change a moment later, by an event.
          AND update_time < now() - interval '30 s'
          AND NOT EXISTS (
              SELECT FROM booking.bookings
              WHERE payment_intent_id = money.intent_id AND bookings.update_time > now() - interval '30 s')
          AND NOT EXISTS (
              SELECT FROM checkin.check_ins
              WHERE payment_intent_id = money.intent_id AND check_ins.update_time > now() - interval '30 s')
        """,  # noqa: S608
        needs_service=True,
        schemas=MONEY_SCHEMAS,
    ),
    Invariant(
        9,
        "every successful charge pays its intent or is refunded",
        """
        SELECT key, intent_id, charges.number, provider_charge_id
        FROM payment.charges JOIN payment.intents USING (intent_id)
        WHERE charges.state = 'SUCCEEDED' AND charges.key IS DISTINCT FROM intents.paid_charge
          AND NOT EXISTS (SELECT FROM payment.refunds WHERE refunds.charge_key = charges.key)
        """,
        schemas=("payment",),
    ),
    Invariant(
        9,
        "a paid intent has a successful charge that pays it, and no other intent has one",
        """
        SELECT intents.intent_id, intents.state, paid_charge
        FROM payment.intents
        LEFT JOIN payment.charges ON charges.key = intents.paid_charge AND charges.intent_id = intents.intent_id
                                 AND charges.state = 'SUCCEEDED'
        WHERE (intents.state IN ('SUCCEEDED', 'REFUNDING', 'REFUNDED')) <> (charges.key IS NOT NULL)
        """,
        schemas=("payment",),
    ),
    Invariant(
        9,
        "the refund amounts of an intent equal the sums of its charge's refunds",
        """
        SELECT intents.intent_id, intents.state, intents.minor_units, refund_minor_units, refunded_minor_units,
               asked.back, asked.done
        FROM payment.intents
        LEFT JOIN LATERAL (
            SELECT coalesce(sum(refunds.minor_units), 0) AS back,
                   coalesce(sum(refunds.minor_units) FILTER (WHERE state = 'SUCCEEDED'), 0) AS done
            FROM payment.refunds WHERE refunds.charge_key = intents.paid_charge
        ) AS asked ON true
        WHERE intents.paid_charge IS NOT NULL
          AND ((refund_minor_units, refunded_minor_units) <> (asked.back, asked.done)
               OR (intents.state IN ('REFUNDING', 'REFUNDED')) <> (asked.back = intents.minor_units)
               OR (intents.state = 'REFUNDED') <> (asked.done = intents.minor_units))
        """,
        schemas=("payment",),
    ),
    Invariant(
        9,
        "only successful charges are refunded",
        """
        SELECT charge_key, refunds.intent_id, charges.state FROM payment.refunds
        LEFT JOIN payment.charges ON charges.key = refunds.charge_key AND charges.intent_id = refunds.intent_id
        WHERE charges.state IS DISTINCT FROM 'SUCCEEDED'
        """,
        schemas=("payment",),
    ),
    Invariant(
        9,
        "the refunds of a charge never exceed its amount",
        """
        SELECT charge_key, intents.minor_units, sum(refunds.minor_units) AS back
        FROM payment.refunds JOIN payment.intents USING (intent_id)
        GROUP BY charge_key, intents.minor_units HAVING sum(refunds.minor_units) > intents.minor_units
        """,
        schemas=("payment",),
    ),
    Invariant(
        9,
        "an intent equals the result of its history",
        """
        SELECT intent_id, intents.state, intents.version, last.to_state, last.version AS last_version
        FROM payment.intents FULL JOIN (
            SELECT DISTINCT ON (intent_id) intent_id, to_state, version
            FROM payment.intent_events ORDER BY intent_id, version DESC
        ) AS last USING (intent_id)
        WHERE (intents.state, intents.version) IS DISTINCT FROM (last.to_state, last.version)
        UNION ALL
        SELECT intent_id, from_state, version, state_before, version_before
        FROM (
            SELECT intent_id, from_state, version,
                   lag(to_state) OVER intent AS state_before, lag(version, 1, 0) OVER intent AS version_before
            FROM payment.intent_events WINDOW intent AS (PARTITION BY intent_id ORDER BY version)
        ) AS step
        WHERE from_state IS DISTINCT FROM state_before OR version <> version_before + 1
        """,
        schemas=("payment",),
    ),
)
