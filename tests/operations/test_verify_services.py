"""`skyhigh verify` beyond seats: silent about a true history, and each planted corruption is reported by its invariant.

The history is written as rows, with times that have passed: what is corrupted is older than every grace.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from operations.invariants import INVARIANTS
from operations.invariants.services import SERVICES
from operations.verify import CACHED_MAPS, Finding, check
from services import migrate
from tests.instances import Database, database_with

if TYPE_CHECKING:
    from tests.conftest import World

FLIGHT: Final = "SH1-2026-12-01"


def named(name: str) -> str:
    """The SQL of a UUID that stands for this name."""
    return f"md5('{name}')::uuid"


# Who sits where since an hour ago. Each passenger's hold, check-in, intent and so on is `named` by the passenger.
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

# P1 without a fee, P2 with one that is paid, P3 cancelled and given back, P4 still to pay, P5 on P1's lap.
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

# The fees of P2 to P4, of P6 that is being given back, and of P7 whose money came after the cancellation. P2's first
# charge was declined.
PAYMENTS: Final = """
    SET LOCAL search_path = payment;
    INSERT INTO intents (intent_id, reference, owner, currency, minor_units, state, version, attempts, max_attempts,
                         paid_charge, succeed_time, refund_time, cancel_time)
    SELECT md5('intent ' || passenger_id)::uuid, 'checkin/' || passenger_id, 'passenger:XK4T7Q', 'EUR', 3000,
           state::intent_state, version, CASE state WHEN 'REQUIRES_PAYMENT' THEN 0 ELSE 2 END, 3,
           CASE WHEN paid THEN md5('charge ' || passenger_id)::uuid END,
           CASE WHEN paid THEN now() - interval '2 hours' END,
           CASE state WHEN 'REFUNDED' THEN now() - interval '1 hour' END,
           CASE state WHEN 'CANCELLED' THEN now() - interval '1 hour' END
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
    INSERT INTO refunds (charge_key, intent_id, refund_key, state, reason, provider_refund_id, finish_time)
    SELECT md5('charge ' || passenger_id)::uuid, md5('intent ' || passenger_id)::uuid, gen_random_uuid(),
           state::refund_state, 'CANCELLED', CASE state WHEN 'SUCCEEDED' THEN 're_1' END,
           CASE state WHEN 'SUCCEEDED' THEN now() END
    FROM (VALUES ('P3', 'SUCCEEDED'), ('P6', 'REQUESTED'), ('P7', 'SUCCEEDED')) AS refund (passenger_id, state);
"""

# W1 got 12A. W2 waits for 10A or 13A, and may not sit in 13A: so W3, who came later, got it. W4 declined an offer.
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
    INSERT INTO skips (entry_id, seat_number, reason, end_time, skip_time)
    VALUES ({named("entry W2")}, '13A', 'EXIT_ROW_NOT_ALLOWED', 'infinity', now() - interval '61 min');
"""
TIMERS: Final = "".join(
    f"""
    INSERT INTO {service}.timers (name, subject, due_time, try_time, fire_time)
    VALUES ('test', 'fired', now() - interval '1 min', now() - interval '1 min', now() - interval '59 s'),
           ('test', 'far', now() + interval '1 day', now() + interval '1 day', NULL);
    """
    for service in SERVICES
)

# What holds back whoever corrupts by mistake.
DEFENCES: Final = """
    ALTER TABLE checkin.check_ins DROP CONSTRAINT state_has_what_it_needs;
    ALTER TABLE checkin.check_ins DROP CONSTRAINT cancellation_has_its_reason;
    ALTER TABLE checkin.check_in_events DROP CONSTRAINT legal_transition;
    ALTER TABLE checkin.check_in_events DISABLE TRIGGER history_is_append_only;
    ALTER TABLE payment.intents DROP CONSTRAINT intent_state_has_its_times;
    ALTER TABLE payment.intents DROP CONSTRAINT paid_has_its_charge;
    ALTER TABLE payment.intents DROP CONSTRAINT code_only_while_processing;
    ALTER TABLE payment.charges DROP CONSTRAINT only_a_refusal_has_an_error;
    ALTER TABLE payment.intent_events DROP CONSTRAINT legal_transition;
    ALTER TABLE payment.intent_events DROP CONSTRAINT begins_with_its_creation;
    ALTER TABLE payment.intent_events DISABLE TRIGGER history_is_append_only;
    ALTER TABLE waitlist.entries DROP CONSTRAINT state_has_what_it_needs;
    DROP INDEX waitlist.one_entry_per_matched_seat;
    ALTER TABLE waitlist.entry_events DROP CONSTRAINT legal_transition;
    ALTER TABLE waitlist.entry_events DISABLE TRIGGER history_is_append_only;
""" + "".join(f"ALTER TABLE {service}.timers DROP CONSTRAINT timer_fires_never_early;" for service in SERVICES)

# By the invariant's name, and what is planted.
OF_CHECK_INS: Final = {
    "who has completed check-in sits where the seat service says": {
        "in another seat": f"""
            UPDATE checkin.check_ins SET seat_number = '30F' WHERE checkin_id = {named("check-in P1")}""",
        "nowhere": f"UPDATE seat.hold_seats SET state = 'RELEASED' WHERE hold_id = {named('hold P1')}",
    },
    "who has completed check-in with bags too heavy has paid for them": {
        "an intent that nobody knows": f"""
            UPDATE checkin.check_ins SET payment_intent_id = gen_random_uuid()
            WHERE checkin_id = {named("check-in P2")}""",
        "an intent that is unpaid": f"""
            UPDATE checkin.check_ins SET payment_intent_id = {named("intent P4")}
            WHERE checkin_id = {named("check-in P2")}""",
        "too little": f"UPDATE payment.intents SET minor_units = 2999 WHERE intent_id = {named('intent P2')}",
        "other money": f"UPDATE payment.intents SET currency = 'JPY' WHERE intent_id = {named('intent P2')}",
    },
    "no fee is kept for a check-in that did not complete": {
        "cancelled": f"""
            UPDATE payment.intents SET state = 'SUCCEEDED', refund_time = NULL
            WHERE intent_id = {named("intent P3")}""",
        "still waiting, and does not know": f"""
            UPDATE checkin.check_ins SET state = 'WAITING_FOR_PAYMENT', fee_pay_time = NULL
            WHERE checkin_id = {named("check-in P2")}""",
        "of no check-in": f"DELETE FROM checkin.check_ins WHERE checkin_id = {named('check-in P2')}",
    },
    "a cancelled check-in keeps no seat": {
        "it keeps it": f"""
            UPDATE checkin.check_ins
            SET state = 'CANCELLED', cancel_time = now() - interval '31 s', cancel_reason = 'CHANGED_MIND'
            WHERE checkin_id = {named("check-in P1")}""",
    },
    "a check-in is what its history adds up to": {
        "another state": f"""
            UPDATE checkin.check_ins SET state = 'INITIATED' WHERE checkin_id = {named("check-in P1")}""",
        "an end that is not written": f"""
            DELETE FROM checkin.check_in_events WHERE checkin_id = {named("check-in P1")} AND version = 3""",
        "a beginning that is missing": f"""
            DELETE FROM checkin.check_in_events WHERE checkin_id = {named("check-in P1")} AND version = 1""",
        "a jump": f"""
            UPDATE checkin.check_in_events SET from_state = 'WAITING_FOR_PAYMENT'
            WHERE checkin_id = {named("check-in P1")} AND version = 3""",
        "a transition after the last": f"""
            UPDATE checkin.check_ins SET version = 2 WHERE checkin_id = {named("check-in P1")}""",
        "a history without a check-in": f"DELETE FROM checkin.check_ins WHERE checkin_id = {named('check-in P5')}",
    },
    "no unpaid check-in outlives its deadline by more than 5 s": {
        "6 s": """
            UPDATE checkin.check_ins SET payment_deadline = now() - interval '6 s'
            WHERE state = 'WAITING_FOR_PAYMENT'""",
    },
}
OF_PAYMENTS: Final = {
    "every charge that was taken pays for its intent, or is given back": {
        "taken twice": f"""
            UPDATE payment.charges SET state = 'SUCCEEDED', provider_charge_id = 'ch_2', error = NULL
            WHERE key = {named("declined")}""",
        "taken after the cancellation": f"DELETE FROM payment.refunds WHERE charge_key = {named('charge P7')}",
    },
    "an intent that is paid has exactly one charge that was taken for it": {
        "none was": f"""
            UPDATE payment.charges SET state = 'VOIDED', error = 'VOIDED' WHERE key = {named("charge P2")}""",
        "another's was": f"""
            UPDATE payment.intents SET paid_charge = {named("charge P3")} WHERE intent_id = {named("intent P2")}""",
        "it is not known by which": f"""
            UPDATE payment.intents SET paid_charge = NULL WHERE intent_id = {named("intent P2")}""",
        "a paid one is cancelled": f"""
            UPDATE payment.intents SET state = 'CANCELLED' WHERE intent_id = {named("intent P2")}""",
    },
    "what an intent says of its refund is what its charge's refund says": {
        "it was given back in silence": f"""
            UPDATE payment.intents SET state = 'SUCCEEDED', refund_time = NULL
            WHERE intent_id = {named("intent P3")}""",
        "it is given back by nobody": f"DELETE FROM payment.refunds WHERE charge_key = {named('charge P6')}",
        "it was not given back yet": f"""
            UPDATE payment.intents SET state = 'REFUNDED', refund_time = now()
            WHERE intent_id = {named("intent P6")}""",
    },
    "only taken money is given back": {
        "of a charge that was declined": f"""
            UPDATE payment.refunds SET charge_key = {named("declined")} WHERE charge_key = {named("charge P7")}""",
        "for another intent": f"""
            UPDATE payment.refunds SET intent_id = {named("intent P2")} WHERE charge_key = {named("charge P7")}""",
    },
    "an intent is what its history adds up to": {
        "another state": f"UPDATE payment.intents SET state = 'FAILED' WHERE intent_id = {named('intent P2')}",
        "another version": "UPDATE payment.intents SET version = version + 1",
        "an end that is not written": f"""
            DELETE FROM payment.intent_events WHERE intent_id = {named("intent P2")} AND version = 3""",
        "a gap": f"DELETE FROM payment.intent_events WHERE intent_id = {named('intent P3')} AND version = 4",
        "a beginning that is missing": f"""
            DELETE FROM payment.intent_events WHERE intent_id = {named("intent P3")} AND version = 1""",
        "a jump": f"""
            UPDATE payment.intent_events SET from_state = 'FAILED'
            WHERE intent_id = {named("intent P2")} AND version = 3""",
    },
}
OF_WAITLISTS: Final = {
    "no older entry that wants a seat is overtaken": {
        "without a reason": "DELETE FROM waitlist.skips",
        "with a reason that was found later": "UPDATE waitlist.skips SET skip_time = now()",
        "any seat would do, and another was passed over": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{}}', positions = '{{}}' WHERE entry_id = {named("entry W2")};
            UPDATE waitlist.skips SET seat_number = '30F'""",
        "it left after that": f"""
            UPDATE waitlist.entries SET state = 'LEFT', end_time = now() WHERE entry_id = {named("entry W2")};
            DELETE FROM waitlist.skips""",
    },
    "a seat is matched with one entry at a time, and a hold serves one entry": {
        "two are matched": f"""
            UPDATE waitlist.entries
            SET state = 'WAITING', hold_id = NULL, end_time = NULL, offer_expire_time = NULL, seat_number = '12A'
            WHERE entry_id IN ({named("entry W1")}, {named("entry W3")})""",
        "two have a hold": f"""
            UPDATE waitlist.entries SET hold_id = {named("hold W1")} WHERE entry_id = {named("entry W3")}""",
    },
    "an assigned entry's hold was confirmed for its passenger": {
        "for another passenger": f"""
            UPDATE waitlist.entries SET hold_id = {named("hold P1")} WHERE entry_id = {named("entry W1")}""",
        "for another seat": f"""
            UPDATE waitlist.entries SET seat_number = '30F' WHERE entry_id = {named("entry W1")}""",
        "it was never confirmed": f"""
            UPDATE seat.holds SET state = 'CANCELLED', confirm_time = NULL, end_time = now()
            WHERE hold_id = {named("hold W1")}""",
        "there is none": f"""
            UPDATE waitlist.entries SET hold_id = gen_random_uuid() WHERE entry_id = {named("entry W1")}""",
    },
    "a free seat and a waiting entry that wants it never coexist for more than 10 s": {
        "free": f"UPDATE waitlist.entries SET seat_numbers = '{{30F}}' WHERE entry_id = {named('entry W2')}",
        "offered": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{}}', positions = '{{}}' WHERE entry_id = {named("entry W2")};
            UPDATE seat.seats SET state = 'OFFERED' WHERE seat_number = '30F'""",
        "passed over, but not any more": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{30F}}' WHERE entry_id = {named("entry W2")};
            UPDATE waitlist.skips SET seat_number = '30F', end_time = now() - interval '11 s'""",
    },
    "an entry is what its history adds up to": {
        "another state": f"UPDATE waitlist.entries SET state = 'LEFT' WHERE entry_id = {named('entry W1')}",
        "another version": "UPDATE waitlist.entries SET version = version + 1",
        "an end that is not written": f"""
            DELETE FROM waitlist.entry_events WHERE entry_id = {named("entry W1")} AND version = 2""",
        "a gap": f"DELETE FROM waitlist.entry_events WHERE entry_id = {named('entry W4')} AND version = 2",
        "a beginning that is missing": f"""
            DELETE FROM waitlist.entry_events WHERE entry_id = {named("entry W4")} AND version = 1""",
        "a jump": f"""
            UPDATE waitlist.entry_events SET from_state = 'ASSIGNED'
            WHERE entry_id = {named("entry W4")} AND version = 3""",
        "a history without an entry": f"DELETE FROM waitlist.entries WHERE entry_id = {named('entry W4')}",
    },
    "the seat service knows whether anybody waits": {
        "it does not": "UPDATE seat.flights SET waitlist_open = false",
        "it knows it of another time": "UPDATE seat.flights SET waitlist_revision = 2",
    },
}
OF_SERVICES: Final = {
    name: planted
    for service in SERVICES
    for name, planted in {
        f"no event of {service} waits for its publication for more than 30 s": {
            "31 s": f"""
                INSERT INTO {service}.outbox (event_id, routing_key, body, create_time)
                VALUES (gen_random_uuid(), 'test', '', now() - interval '31 s')""",
        },
        f"no timer of {service} fires early": {
            "a second": f"UPDATE {service}.timers SET fire_time = due_time - interval '1 s' WHERE subject = 'fired'",
        },
        f"every timer of {service} that is due is taken within 5 s": {
            "nobody looks": f"""
                UPDATE {service}.timers SET due_time = now() - interval '6 s', try_time = now() - interval '6 s'
                WHERE subject = 'far'""",
        },
    }.items()
}
CORRUPTIONS: Final = OF_CHECK_INS | OF_PAYMENTS | OF_WAITLISTS | OF_SERVICES


@pytest.fixture(scope="module")
async def told(world: World) -> str:
    """A database with the history of all services; returns its owner's URL."""
    urls = await database_with(world, *SERVICES)
    for service in SERVICES:
        url = urls[f"SKYHIGH_{service.upper()}_DATABASE_URL"]
        await migrate.migrate(url, schema=service, package=f"{service}_service")
    owner_url, name = world.servers.database_url(), url.rpartition("/")[2]
    url = f"{owner_url.rpartition('/')[0]}/{name}"
    owner = await asyncpg.connect(url)
    async with owner.transaction():
        for statements in (SEATS, CHECK_INS, PAYMENTS, WAITLISTS, TIMERS):
            await owner.execute(statements)
    await owner.close()
    return url


@pytest.fixture
async def connection(told: str) -> AsyncIterator[Database]:
    """A connection as the owner, who sees all schemas."""
    connection = await asyncpg.connect(told)
    yield connection
    await connection.close()


def found(findings: Sequence[Finding]) -> dict[str, int]:
    """The violations by name; all but the cache, which there is none of, must have been checked."""
    assert [finding for finding in findings if finding.not_checked and finding.number != CACHED_MAPS[0]] == []
    return {finding.name: finding.violations for finding in findings if finding.violations}


async def test_a_true_history_has_no_violation(connection: Database) -> None:
    findings = await check(connection, None)
    assert found(findings) == {}
    assert {finding.name for finding in findings} == {invariant.name for invariant in INVARIANTS} | {CACHED_MAPS[1]}


@pytest.mark.parametrize(
    ("invariant", "statements"),
    [
        pytest.param(name, statements, id=f"{name}: {planted}")
        for name, corruptions in CORRUPTIONS.items()
        for planted, statements in corruptions.items()
    ],
)
async def test_a_planted_corruption_is_reported(connection: Database, invariant: str, statements: str) -> None:
    corrupted = connection.transaction(isolation="repeatable_read")
    await corrupted.start()
    try:
        await connection.execute(DEFENCES)
        await connection.execute(statements)
        reported = found(await check(connection, None))
    finally:
        await corrupted.rollback()
    assert invariant in reported


def test_each_invariant_has_a_planted_corruption() -> None:
    own = {
        invariant.name for invariant in INVARIANTS if invariant.schemas != ("seat",) or invariant.name in OF_SERVICES
    }
    assert own == CORRUPTIONS.keys()
