"""`skyhigh verify` for the other services.

It finds nothing in a true history, and reports each planted corruption by the invariant that it breaks.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from gateway.limits import DEFAULTS
from operations.invariants import INVARIANTS
from operations.invariants.gateway import LIMITS
from operations.invariants.services import SERVICES, STUCK_TRIES
from operations.verify.check import CACHED_MAPS, USED_LAYOUTS, check
from operations.verify.finding import Finding
from tests.dates import flight_id
from tests.instances import Database, database_with
from tests.operations.true_history import FLIGHT, GONE, ONWARD, TRUE_HISTORY, named

if TYPE_CHECKING:
    from tests.conftest import World

# The constraints and triggers that prevent an accidental corruption.
DEFENCES: Final = """
    ALTER TABLE checkin.check_ins DROP CONSTRAINT state_has_what_it_needs;
    ALTER TABLE checkin.check_ins DROP CONSTRAINT cancellation_has_its_reason;
    DROP INDEX checkin.one_completed_check_in_per_seat;
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
    ALTER TABLE booking.bookings DROP CONSTRAINT state_has_what_it_needs;
    ALTER TABLE booking.bookings DROP CONSTRAINT refund_has_its_amount;
    ALTER TABLE payment.intents DROP CONSTRAINT refunds_within_amount;
    ALTER TABLE payment.intents DROP CONSTRAINT intent_state_has_its_refunds;
    ALTER TABLE booking.bookings DROP CONSTRAINT code_only_while_it_is_needed;
    ALTER TABLE booking.bookings DROP CONSTRAINT cancellation_has_its_reason;
    DROP INDEX booking.one_booking_per_locator;
    ALTER TABLE booking.booking_passengers DROP CONSTRAINT infant_has_its_adult;
    ALTER TABLE booking.booking_events DROP CONSTRAINT legal_transition;
    ALTER TABLE booking.booking_events DISABLE TRIGGER history_is_append_only;
    ALTER TABLE gateway.limits DROP CONSTRAINT limits_requests_per_minute_check;
    ALTER TABLE gateway.limits DROP CONSTRAINT limits_burst_check;
    ALTER TABLE gateway.blocks DROP CONSTRAINT block_ends_after_it_began;
    ALTER TABLE gateway.blocks DROP CONSTRAINT block_lifted_before_its_end;
    ALTER TABLE gateway.blocks DROP CONSTRAINT lifted_block_says_by_whom;
    ALTER TABLE gateway.incidents DROP CONSTRAINT incident_is_over_its_threshold;
""" + "".join(f"ALTER TABLE {service}.timers DROP CONSTRAINT timer_fires_never_early;" for service in SERVICES)

# The digits of a booking that is in no history.
BOOKING: Final = "0" * 16
# The corruptions by the invariant's name.
OF_CHECK_INS: Final = {
    "a completed check-in has the seat that the seat service has confirmed for the passenger": {
        "in another seat": f"""
            UPDATE checkin.check_ins SET seat_number = '30F' WHERE checkin_id = {named("check-in P1")}""",
        "nowhere": f"UPDATE seat.hold_seats SET state = 'RELEASED' WHERE hold_id = {named('hold P1')}",
    },
    "a completed check-in with a baggage fee has a payment of this fee": {
        "an intent that nobody knows": f"""
            UPDATE checkin.check_ins SET payment_intent_id = gen_random_uuid()
            WHERE checkin_id = {named("check-in P2")}""",
        "an intent that is unpaid": f"""
            UPDATE checkin.check_ins SET payment_intent_id = {named("intent P4")}
            WHERE checkin_id = {named("check-in P2")}""",
        "too little": f"UPDATE payment.intents SET minor_units = 2999 WHERE intent_id = {named('intent P2')}",
        "other money": f"UPDATE payment.intents SET currency = 'JPY' WHERE intent_id = {named('intent P2')}",
    },
    "the fee of a check-in that did not complete is refunded": {
        "cancelled": f"""
            UPDATE payment.intents SET state = 'SUCCEEDED', refund_time = NULL
            WHERE intent_id = {named("intent P3")}""",
        "still waiting, and does not know": f"""
            UPDATE checkin.check_ins SET state = 'WAITING_FOR_PAYMENT', fee_pay_time = NULL
            WHERE checkin_id = {named("check-in P2")}""",
        "of no check-in": f"DELETE FROM checkin.check_ins WHERE checkin_id = {named('check-in P2')}",
        "its flight has left": f"""
            UPDATE checkin.check_ins SET state = 'WAITING_FOR_PAYMENT' WHERE checkin_id = {named("check-in P2")};
            UPDATE checkin.flights SET departure_time = now() - interval '31 s' WHERE flight_id = '{FLIGHT}'""",
    },
    "a record locator belongs to one party": {
        "nobody's": "DELETE FROM checkin.locators",
        "a booking's, of other passengers": f"UPDATE checkin.locators SET booking = '{BOOKING}'",
        "another one than its passenger's": f"""
            UPDATE checkin.passengers SET booking = '{BOOKING}' WHERE passenger_id = 'P2'""",
    },
    "a passenger of a confirmed booking has the booking's locator": {
        "another one": f"""
            UPDATE checkin.passengers SET booking = '{BOOKING}' WHERE passenger_id = 'P2';
            UPDATE booking.booking_passengers SET passenger_id = 'P2'
            FROM booking.bookings
            WHERE bookings.booking_id = booking_passengers.booking_id AND state = 'CONFIRMED' AND number = 1""",
    },
    "no check-in is cancelled for a cause after the departure of its flight": {
        "one is": f"""
            UPDATE checkin.check_ins SET cancel_time = now() + interval '21 hours'
            WHERE checkin_id = {named("check-in P3")}""",
    },
    "a cancelled check-in does not release the seat of a confirmed booking": {
        "the check-in released it": f"""
            UPDATE checkin.check_ins
            SET state = 'CANCELLED', cancel_time = now() - interval '31 s', cancel_reason = 'CHANGED_MIND'
            WHERE checkin_id = {named("check-in P1")};
            UPDATE checkin.passengers SET booking = '{BOOKING}' WHERE passenger_id = 'P1';
            INSERT INTO seat.seat_events (flight_id, seat_number, version, from_state, to_state, hold_id, actor,
                                          reason, event_id, event_time)
            VALUES ('{FLIGHT}', '10A', 3, 'CONFIRMED', 'AVAILABLE', {named("hold P1")}, 'service:checkin',
                    'CHANGED_MIND', gen_random_uuid(), now())""",
    },
    "a cancelled check-in keeps no seat": {
        "it keeps it": f"""
            UPDATE checkin.check_ins
            SET state = 'CANCELLED', cancel_time = now() - interval '31 s', cancel_reason = 'CHANGED_MIND'
            WHERE checkin_id = {named("check-in P1")}""",
    },
    "a check-in equals the result of its history": {
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
    "the seat service's copy of each passenger equals the manifest": {
        "not at all": "DELETE FROM seat.passengers WHERE passenger_id = 'P2'",
        "as entitled, who has left": "UPDATE seat.passengers SET ended = false WHERE passenger_id = 'P3'",
        "as ended, who has not": "UPDATE seat.passengers SET ended = true WHERE passenger_id = 'P2'",
        "an older revision": "UPDATE checkin.entitlements SET revision = revision + 1 WHERE passenger_id = 'P2'",
        "a newer revision": "UPDATE seat.passengers SET revision = revision + 1 WHERE passenger_id = 'P2'",
        "another cabin": "UPDATE seat.passengers SET cabin = 'BUSINESS' WHERE passenger_id = 'P2'",
        "another age group": "UPDATE seat.passengers SET type = 'CHILD' WHERE passenger_id = 'P2'",
        "another locator": "UPDATE seat.passengers SET pnr = 'AAAAAA' WHERE passenger_id = 'P2'",
        "without her infant": "UPDATE seat.passengers SET special_services = '{WCHR}' WHERE passenger_id = 'P1'",
        "who was on no manifest": "DELETE FROM checkin.entitlements WHERE passenger_id = 'P3'",
    },
    "the seat service's copy of each departure time equals the manifest": {
        "not at all": f"DELETE FROM seat.departures WHERE flight_id = '{FLIGHT}'",
        "an hour later": f"""
            UPDATE seat.departures SET departure_time = departure_time + interval '1 hour'
            WHERE flight_id = '{FLIGHT}'""",
    },
    "no two completed check-ins of a flight have the same seat": {
        "two": f"""
            UPDATE checkin.check_ins SET seat_number = '10A', update_time = now() - interval '6 s'
            WHERE checkin_id = {named("check-in P2")};
            UPDATE checkin.check_ins SET update_time = now() - interval '6 s'
            WHERE checkin_id = {named("check-in P1")}""",
    },
    "the passenger of every check-in is on the manifest": {
        "who has left": "DELETE FROM checkin.passengers WHERE passenger_id = 'P2'",
        "of another flight": f"UPDATE checkin.check_ins SET flight_id = '{GONE}' WHERE passenger_id = 'P1'",
    },
    "a completed check-in of an infant has a completed check-in of its adult": {
        "the adult is cancelled": f"""
            UPDATE checkin.check_ins SET state = 'CANCELLED', cancel_time = now(), cancel_reason = 'ILL'
            WHERE checkin_id = {named("check-in P1")}""",
    },
    "every unpaid check-in ends within 5 s of its payment deadline": {
        "6 s": """
            UPDATE checkin.check_ins SET payment_deadline = now() - interval '6 s'
            WHERE state = 'WAITING_FOR_PAYMENT'""",
    },
}
OF_PAYMENTS: Final = {
    "every successful charge pays its intent or is refunded": {
        "taken twice": f"""
            UPDATE payment.charges SET state = 'SUCCEEDED', provider_charge_id = 'ch_2', error = NULL
            WHERE key = {named("declined")}""",
        "taken after the cancellation": f"DELETE FROM payment.refunds WHERE charge_key = {named('charge P7')}",
    },
    "a paid intent has a successful charge that pays it, and no other intent has one": {
        "none was": f"""
            UPDATE payment.charges SET state = 'VOIDED', error = 'VOIDED' WHERE key = {named("charge P2")}""",
        "another's was": f"""
            UPDATE payment.intents SET paid_charge = {named("charge P3")} WHERE intent_id = {named("intent P2")}""",
        "it is not known by which": f"""
            UPDATE payment.intents SET paid_charge = NULL WHERE intent_id = {named("intent P2")}""",
        "a paid one is cancelled": f"""
            UPDATE payment.intents SET state = 'CANCELLED' WHERE intent_id = {named("intent P2")}""",
    },
    "the refunds of a charge never exceed its amount": {
        "a part once more": f"""
            INSERT INTO payment.refunds (charge_key, number, intent_id, refund_key, minor_units, reason)
            VALUES ({named("charge P3")}, 2, {named("intent P3")}, gen_random_uuid(), 1, 'AGAIN')""",
    },
    "the refund amounts of an intent equal the sums of its charge's refunds": {
        "a part is not counted": f"""
            UPDATE payment.refunds SET minor_units = 2999 WHERE charge_key = {named("charge P3")}""",
        "it was given back in silence": f"""
            UPDATE payment.intents SET state = 'SUCCEEDED', refund_time = NULL
            WHERE intent_id = {named("intent P3")}""",
        "it is given back by nobody": f"DELETE FROM payment.refunds WHERE charge_key = {named('charge P6')}",
        "it was not given back yet": f"""
            UPDATE payment.intents SET state = 'REFUNDED', refund_time = now()
            WHERE intent_id = {named("intent P6")}""",
    },
    "only successful charges are refunded": {
        "of a charge that was declined": f"""
            UPDATE payment.refunds SET charge_key = {named("declined")} WHERE charge_key = {named("charge P7")}""",
        "for another intent": f"""
            UPDATE payment.refunds SET intent_id = {named("intent P2")} WHERE charge_key = {named("charge P7")}""",
    },
    "an intent equals the result of its history": {
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
# The waitlist has known for an hour that check-in has closed.
CLOSED_FLIGHT: Final = f"""
    UPDATE checkin.flights SET departure_time = now(), arrival_time = now() + interval '2 h'
    WHERE flight_id = '{FLIGHT}';
    UPDATE waitlist.flights SET close_time = now() - interval '1 h', compare_time = now();
"""
OF_WAITLISTS: Final = {
    "every entry ends within 5 s of the close of check-in": {
        "nobody ended it": f"{CLOSED_FLIGHT}; DELETE FROM waitlist.timers",
        "nobody has asked for long": f"""
            {CLOSED_FLIGHT};
            UPDATE waitlist.flights SET close_time = NULL, compare_time = now() - interval '16 s'""",
    },
    "every waiting or offered entry belongs to a passenger of the manifest who needs a seat": {
        "off the manifest": "DELETE FROM checkin.passengers WHERE passenger_id = 'W2'",
        "another locator's": "UPDATE checkin.passengers SET pnr = 'ABCDEF' WHERE passenger_id = 'W2'",
        "a lap infant": """
            UPDATE checkin.passengers SET type = 'INFANT', accompanying_passenger_id = 'W9'
            WHERE passenger_id = 'W2'""",
    },
    "every entry of a cancelled booking ends within 10 s": {
        "waiting": f"""
            INSERT INTO booking.booking_passengers (booking_id, number, passenger_id, given_name, last_name, type)
            VALUES ({named("booking X")}, 9, 'W2', 'Ada', 'Byron', 'ADULT')""",
    },
    "no timer of the waitlist remains for a flight whose check-in has closed": {
        "a sweep": f"""
            {CLOSED_FLIGHT};
            UPDATE waitlist.entries SET state = 'LEFT', end_time = now() WHERE state = 'WAITING';
            DELETE FROM waitlist.timers WHERE name = 'close'""",
        "an offer's end": f"""
            {CLOSED_FLIGHT};
            UPDATE waitlist.timers SET name = 'lapse', subject = {named("entry W4")}::text WHERE name = 'close';
            DELETE FROM waitlist.timers WHERE name = 'sweep'""",
    },
    "a withdrawn offer ends within 30 s": {
        "no timer": f"""
            UPDATE waitlist.entries
            SET state = 'OFFERED', end_time = NULL, withdrawal = 'LEFT', withdraw_actor = 'x', withdraw_reason = 'x'
            WHERE entry_id = {named("entry W4")}""",
    },
    "a waiting entry that is matched with a seat has a timer that claims the seat": {
        "no timer": f"""
            UPDATE waitlist.entries
            SET claim_id = gen_random_uuid(), seat_number = '10A', match_time = now() - interval '31 s'
            WHERE entry_id = {named("entry W2")}""",
    },
    "no seat is matched with a younger entry while an older one is eligible for it": {
        "without a reason": "DELETE FROM waitlist.skips",
        "with a reason that was found later": "UPDATE waitlist.skips SET first_skip_time = now()",
        "any seat would do, and another was passed over": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{}}', positions = '{{}}' WHERE entry_id = {named("entry W2")};
            UPDATE waitlist.skips SET seat_number = '30F'""",
        "it left after that": f"""
            UPDATE waitlist.entries SET state = 'LEFT', end_time = now() WHERE entry_id = {named("entry W2")};
            DELETE FROM waitlist.skips""",
    },
    "a seat is matched with at most one entry at a time, and a hold belongs to at most one entry": {
        "two are matched": f"""
            UPDATE waitlist.entries
            SET state = 'WAITING', hold_id = NULL, end_time = NULL, offer_expire_time = NULL, seat_number = '12A'
            WHERE entry_id IN ({named("entry W1")}, {named("entry W3")})""",
        "two have a hold": f"""
            UPDATE waitlist.entries SET hold_id = {named("hold W1")} WHERE entry_id = {named("entry W3")}""",
    },
    "the hold of an assigned entry was confirmed for its passenger": {
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
    "no free seat and eligible waiting entry coexist for more than 10 s": {
        "free": f"UPDATE waitlist.entries SET seat_numbers = '{{30F}}' WHERE entry_id = {named('entry W2')}",
        "offered": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{}}', positions = '{{}}' WHERE entry_id = {named("entry W2")};
            UPDATE seat.seats SET state = 'OFFERED' WHERE seat_number = '30F'""",
        "passed over, but not any more": f"""
            UPDATE waitlist.entries SET seat_numbers = '{{30F}}' WHERE entry_id = {named("entry W2")};
            UPDATE waitlist.skips SET seat_number = '30F', end_time = now() - interval '11 s'""",
    },
    "an entry equals the result of its history": {
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
    "the seat service knows for each flight whether its waitlist is open": {
        "it does not": "UPDATE seat.flights SET waitlist_open = false",
        "it knows it of another time": "UPDATE seat.flights SET waitlist_revision = 2",
    },
}
OF_SERVICES: Final = {
    name: planted
    for service in SERVICES
    for name, planted in {
        f"every event of {service} is published within 30 s": {
            "31 s": f"""
                INSERT INTO {service}.outbox (event_id, routing_key, body, create_time)
                VALUES (gen_random_uuid(), 'test', '', now() - interval '31 s')""",
        },
        f"no timer of {service} fires early": {
            "a second": f"UPDATE {service}.timers SET fire_time = due_time - interval '1 s' WHERE subject = 'fired'",
        },
        f"every due timer of {service} is tried within 5 s": {
            "nobody looks": f"""
                UPDATE {service}.timers SET due_time = now() - interval '6 s', try_time = now() - interval '6 s'
                WHERE subject = 'far'""",
        },
        f"no timer of {service} fails {STUCK_TRIES} times in a row": {
            "an unexpected answer": f"""
                UPDATE {service}.timers SET tries = {STUCK_TRIES}, last_error = 'PeerFault: INTERNAL INTERNAL'
                WHERE subject = 'far'""",
        },
    }.items()
}
OF_FLIGHTS: Final = {
    "the seat service has every flight of the schedule, with the same layout and number of seats": {
        "none": f"DELETE FROM seat.flights WHERE flight_id = '{ONWARD}'",
        "of another layout": f"UPDATE seat.flights SET layout_id = 'B738-189Y' WHERE flight_id = '{ONWARD}'",
        "fewer": f"UPDATE flight.flight_cabins SET total_seats = 2 WHERE flight_id = '{ONWARD}'",
        "no cabins": f"DELETE FROM flight.flight_cabins WHERE flight_id = '{ONWARD}'",
    },
    "the schedule shows the number of free seats of the map, at most 5 s late": {
        "others at the same version": "UPDATE flight.seat_counts SET available_seats = available_seats + 1",
        "of a version that never was": "UPDATE flight.seat_counts SET version = version + 1",
        "of an hour ago": "UPDATE flight.seat_counts SET version = version - 1",
        "never counted, though some are taken": f"DELETE FROM flight.seat_counts WHERE flight_id = '{ONWARD}'",
    },
    "every cancellation of a flight has its event": {
        "none": "DELETE FROM flight.outbox",
        "another's": f"UPDATE flight.outbox SET body = convert_to('{flight_id('SH9')}', 'UTF8')",
    },
    "a cancelled flight has no live hold": {
        "confirmed": f"UPDATE seat.hold_seats SET flight_id = '{GONE}' WHERE hold_id = {named('hold P1')}",
        "held": f"UPDATE seat.hold_seats SET flight_id = '{GONE}' WHERE hold_id = {named('hold R')}",
    },
    "a cancelled flight has no live check-in": {
        "completed": f"UPDATE checkin.check_ins SET flight_id = '{GONE}' WHERE checkin_id = {named('check-in P1')}",
        "to be paid": f"UPDATE checkin.check_ins SET flight_id = '{GONE}' WHERE checkin_id = {named('check-in P4')}",
    },
    "a cancelled flight has no waiting entry": {
        "waiting": f"UPDATE waitlist.entries SET flight_id = '{GONE}' WHERE entry_id = {named('entry W2')}",
    },
    "a cancelled flight has no live booking": {
        "confirmed": f"""
            UPDATE booking.booking_flights SET flight_id = '{GONE}'
            WHERE booking_id = {named("booking K")} AND leg = 2""",
        "reserved": f"UPDATE booking.booking_flights SET flight_id = '{GONE}' WHERE booking_id = {named('booking R')}",
    },
}
MONEY: Final = {
    "money taken = fares + fees + refunds, for each intent": {
        "a fare for nothing": f"UPDATE booking.bookings SET state = 'EXPIRED' WHERE booking_id = {named('booking K')}",
        "a booking for nothing": f"DELETE FROM payment.charges WHERE key = {named('charge K')}",
        "both the seats and the money": f"""
            UPDATE booking.bookings SET state = 'CONFIRMED' WHERE booking_id = {named("booking X")}""",
        "neither": f"DELETE FROM payment.refunds WHERE charge_key = {named('charge X')}",
        "charged twice": f"""
            INSERT INTO payment.charges (key, intent_id, number, state, provider_charge_id, decide_time)
            VALUES (gen_random_uuid(), {named("intent K")}, 2, 'SUCCEEDED', 'ch_2', now())""",
        "two bookings for one fare": f"""
            UPDATE booking.bookings
            SET state = 'CONFIRMED', payment_intent_id = {named("intent K")} WHERE booking_id = {named("booking X")}""",
        "a fee for nothing": f"""
            UPDATE payment.intents SET update_time = now() - interval '31 s' WHERE intent_id = {named("intent P2")};
            DELETE FROM checkin.check_ins WHERE checkin_id = {named("check-in P2")}""",
    },
}
OF_BOOKINGS: Final = {
    "the intent of a confirmed booking is paid, with the booking's total": {
        "by nobody": f"""
            UPDATE booking.bookings SET payment_intent_id = gen_random_uuid()
            WHERE booking_id = {named("booking K")}""",
        "by another's": f"""
            UPDATE booking.bookings SET payment_intent_id = {named("intent P2")}
            WHERE booking_id = {named("booking K")}""",
        "too little": f"UPDATE payment.intents SET minor_units = 19999 WHERE intent_id = {named('intent K')}",
        "in other money": f"UPDATE payment.intents SET currency = 'JPY' WHERE intent_id = {named('intent K')}",
        "not yet": f"UPDATE payment.intents SET state = 'PROCESSING' WHERE intent_id = {named('intent K')}",
        "and given back": f"UPDATE payment.intents SET state = 'REFUNDED' WHERE intent_id = {named('intent K')}",
    },
    "a booking with seats has one on each flight for each passenger who needs one": {
        "a leg without": f"DELETE FROM booking.booking_seats WHERE booking_id = {named('booking R')}",
        "a passenger without": f"""
            INSERT INTO booking.booking_passengers (booking_id, number, passenger_id, given_name, last_name, type)
            VALUES ({named("booking R")}, 2, 'R-2', 'Zoë', 'Lind', 'CHILD')""",
        "an infant with": "UPDATE booking.booking_passengers SET type = 'INFANT' WHERE passenger_id = 'R-1'",
    },
    "a confirmed booking shows exactly the confirmed seats of its passengers": {
        "another seat": f"""
            UPDATE booking.booking_seats SET seat_number = '9A'
            WHERE booking_id = {named("booking K")} AND flight_id = '{ONWARD}'""",
        "none": f"DELETE FROM booking.booking_seats WHERE booking_id = {named('booking K')} AND flight_id = '{ONWARD}'",
        "one that was given up": f"UPDATE seat.hold_seats SET state = 'RELEASED' WHERE hold_id = {named('hold K')}",
        "an infant's": "UPDATE booking.booking_seats SET passenger_id = 'K-2' WHERE passenger_id = 'K-1'",
    },
    "no flight has more booked passengers who need a seat than it has seats": {
        "one too many": "UPDATE booking.booking_passengers SET type = 'CHILD' WHERE passenger_id = 'K-2'",
        "a seat that is no more": f"DELETE FROM seat.seats WHERE flight_id = '{ONWARD}'",
    },
    "the payment of a live booking is refunded only for its cancelled flights": {
        "whole": f"""
            UPDATE payment.intents SET state = 'REFUNDED', refund_minor_units = minor_units
            WHERE intent_id = {named("intent K")}""",
        "a part": f"UPDATE payment.intents SET refund_minor_units = 1 WHERE intent_id = {named('intent K')}",
    },
    "the refund of a confirmed booking equals the fares of its cancelled flights": {
        "nothing": f"""
            UPDATE booking.booking_flights SET cancel_time = now(), cancel_reason = 'FOG'
            WHERE booking_id = {named("booking K")} AND leg = 2""",
        "without a cancellation": f"""
            UPDATE booking.bookings SET refund_reason = 'FOG', refund_minor_units = 1
            WHERE booking_id = {named("booking K")}""",
    },
    "the seats of a booking equal those of its hold": {
        "another seat": f"""
            UPDATE booking.booking_seats SET seat_number = '9A' WHERE booking_id = {named("booking R")}""",
        "another passenger's": f"UPDATE seat.hold_seats SET passenger_id = 'R-2' WHERE hold_id = {named('hold R')}",
        "one more": f"""
            INSERT INTO seat.hold_seats (hold_id, flight_id, seat_number, passenger_id)
            VALUES ({named("hold R")}, '{ONWARD}', '9A', 'R-1')""",
        "never confirmed": f"""
            UPDATE seat.holds SET state = 'HELD', confirm_time = NULL WHERE hold_id = {named("hold K")}""",
        "no hold": f"UPDATE booking.bookings SET hold_id = gen_random_uuid() WHERE booking_id = {named('booking R')}",
    },
    "every passenger of a confirmed booking has a seat, unless the passenger has changed or released it": {
        "somebody took it": f"""
            UPDATE seat.hold_seats SET state = 'RELEASED'
            WHERE hold_id = {named("hold K")} AND flight_id = '{ONWARD}'""",
    },
    "a failed, expired or cancelled booking has no seat, and no booking has one on its cancelled flights": {
        "a cancelled flight": f"""
            UPDATE booking.booking_flights SET cancel_time = now(), cancel_reason = 'FOG'
            WHERE booking_id = {named("booking K")} AND leg = 2""",
        "cancelled": f"UPDATE seat.hold_seats SET state = 'CONFIRMED' WHERE hold_id = {named('hold X')}",
        "expired": f"UPDATE seat.hold_seats SET state = 'HELD' WHERE hold_id = {named('hold E')}",
        "never had": f"UPDATE seat.hold_seats SET passenger_id = 'F-1' WHERE hold_id = {named('hold R')}",
    },
    "a booking equals the result of its history": {
        "another state": f"UPDATE booking.bookings SET state = 'EXPIRED' WHERE booking_id = {named('booking K')}",
        "an end that is not written": f"""
            DELETE FROM booking.booking_events WHERE booking_id = {named("booking K")} AND version = 7""",
        "a beginning that is missing": f"""
            DELETE FROM booking.booking_events WHERE booking_id = {named("booking K")} AND version = 1""",
        "a jump": f"""
            UPDATE booking.booking_events SET from_state = 'PAYMENT_PENDING'
            WHERE booking_id = {named("booking K")} AND version = 7""",
        "a transition after the last": f"""
            UPDATE booking.bookings SET version = 6 WHERE booking_id = {named("booking K")}""",
    },
    "every unpaid booking ends within 5 s of its expire time": {
        "reserved": f"""
            UPDATE booking.bookings SET expire_time = now() - interval '6 s' WHERE booking_id = {named("booking R")}""",
        "its payment not begun": f"""
            UPDATE booking.bookings SET state = 'PAYMENT_PENDING', expire_time = now() - interval '6 s'
            WHERE booking_id = {named("booking R")}""",
    },
    "no step of a booking takes more than 30 s, except a payment in progress": {
        "reserving": f"UPDATE booking.bookings SET state = 'CREATED' WHERE booking_id = {named('booking R')}",
        "paying": f"UPDATE booking.bookings SET state = 'PAYMENT_PENDING' WHERE booking_id = {named('booking R')}",
        "confirming": f"""
            UPDATE booking.bookings SET state = 'PAYMENT_PROCESSING' WHERE booking_id = {named("booking K")}""",
        "deciding about late money": f"""
            UPDATE booking.bookings SET pay_time = now() - interval '31 s', payment_intent_id = {named("intent E")}
            WHERE booking_id = {named("booking E")}""",
    },
    "a booking records its refund within 30 s": {
        "it does not": f"UPDATE booking.bookings SET refund_time = NULL WHERE booking_id = {named('booking X')}",
        "there is none": f"UPDATE payment.intents SET refunded_minor_units = 0 WHERE intent_id = {named('intent X')}",
    },
    "a booking is on the manifest exactly while it is confirmed, at most 30 s late": {
        "nobody of it": "DELETE FROM checkin.passengers",
        "not on each flight": f"DELETE FROM checkin.passengers WHERE flight_id = '{ONWARD}'",
        "not each passenger": "DELETE FROM checkin.passengers WHERE passenger_id = 'K-2'",
        "by another locator": "UPDATE checkin.passengers SET pnr = 'AAAAAA'",
        "still": "UPDATE checkin.passengers SET passenger_id = 'X-1', pnr = 'KX7T7Q' WHERE passenger_id = 'K-2'",
    },
    "every confirmation of a booking, and every cancellation of a confirmed one, has its event": {
        "none": "DELETE FROM booking.outbox",
        "only of the confirmation": "DELETE FROM booking.outbox WHERE routing_key = 'booking.cancelled.v1'",
        "another booking's": "UPDATE booking.outbox SET body = 'no booking'",
    },
    "a record locator belongs to one booking, and only that booking's passengers have it": {
        "two bookings'": "UPDATE booking.bookings SET pnr = 'KB7T7Q' WHERE pnr IS NOT NULL",
        "a stranger in the trip": f"""
            INSERT INTO checkin.passengers (flight_id, passenger_id, pnr, login_key, given_name, last_name, type, cabin,
                                            fare, special_services, contact_email)
            VALUES ('{FLIGHT}', 'P9', 'KB7T7Q', '', 'Ann', 'Other', 'ADULT', 'ECONOMY', 'STANDARD', '{{}}', '')""",
    },
}
OF_THE_GATEWAY: Final = {
    "the block of an incident has the same source and the scope of its kind, and was active at the detection": {
        "another's": f"UPDATE gateway.incidents SET block_id = {named('block A2')} WHERE source = 'customer:s'",
        "not begun": f"""
            UPDATE gateway.incidents SET detect_time = detect_time - interval '1 ms'
            WHERE incident_id = {named("incident A2")}""",
        "run out": f"""
            UPDATE gateway.incidents SET detect_time = now() WHERE incident_id = {named("incident A3")}""",
        "a guesser is kept from everything": "UPDATE gateway.blocks SET scope = 'EVERYTHING' WHERE scope = 'LOGIN'",
        "a scanner is kept from logins": f"""
            UPDATE gateway.blocks SET scope = 'LOGIN' WHERE block_id = {named("block A2")}""",
    },
    "every block has the incident that caused it": {
        "none": f"DELETE FROM gateway.incidents WHERE block_id = {named('block L')}",
        "a later one": f"DELETE FROM gateway.incidents WHERE incident_id = {named('incident A2')}",
        "of another kind": f"UPDATE gateway.blocks SET kind = 'HOLD_SPINNING' WHERE block_id = {named('block A1')}",
    },
    "an incident exceeds its threshold and has 1 to 10 pieces of evidence": {
        "at it": "UPDATE gateway.incidents SET count = threshold",
        "nothing shows it": "UPDATE gateway.incidents SET evidence = '{}'",
        "eleven things": "UPDATE gateway.incidents SET evidence = array_fill('/v1'::text, ARRAY[11])",
    },
    "a source has at most one active block of each scope at a time": {
        "two": f"""
            UPDATE gateway.blocks SET lift_time = NULL, lifted_by = NULL, lift_reason = NULL
            WHERE block_id = {named("block A1")}""",
    },
    "a block ends after it begins, and a lifted block names who lifted it and why, and was active then": {
        "it never stood": "UPDATE gateway.blocks SET expire_time = create_time WHERE lift_time IS NULL",
        "lifted by nobody": "UPDATE gateway.blocks SET lifted_by = NULL",
        "without a reason": "UPDATE gateway.blocks SET lift_reason = NULL",
        "not lifted, and yet by somebody": "UPDATE gateway.blocks SET lifted_by = 'agent:x'",
        "by who may not": "UPDATE gateway.blocks SET lifted_by = 'customer:a' WHERE lift_time IS NOT NULL",
        "after its end": "UPDATE gateway.blocks SET lift_time = expire_time WHERE lift_time IS NOT NULL",
        "before it began": """
            UPDATE gateway.blocks SET lift_time = create_time - interval '1 ms' WHERE lift_time IS NOT NULL""",
    },
    "every incident has its event": {
        "none": "DELETE FROM gateway.outbox",
        "another's": "UPDATE gateway.outbox SET body = 'another'",
        "of another kind": "UPDATE gateway.outbox SET routing_key = 'test'",
        "told in another transaction": "UPDATE gateway.outbox SET create_time = create_time + interval '1 ms'",
    },
    "every default limit exists and allows calls": {
        "one is missing": "DELETE FROM gateway.limits WHERE limit_id = 'hold-per-principal'",
        "nobody": "UPDATE gateway.limits SET requests_per_minute = 0 WHERE limit_id = 'hold-per-principal'",
        "not even once": "UPDATE gateway.limits SET burst = 0 WHERE limit_id = 'hold-per-principal'",
    },
}
CORRUPTIONS: Final = (
    OF_CHECK_INS | OF_PAYMENTS | OF_WAITLISTS | OF_SERVICES | OF_FLIGHTS | MONEY | OF_BOOKINGS | OF_THE_GATEWAY
)


@pytest.fixture(scope="module")
async def told(world: World) -> str:
    """Creates a database with the history of all services; returns its owner's URL."""
    urls = await database_with(world, *SERVICES)
    owner_url, name = world.servers.database_url(), next(iter(urls.values())).rpartition("/")[2]
    url = f"{owner_url.rpartition('/')[0]}/{name}"
    owner = await asyncpg.connect(url)
    async with owner.transaction():
        for statements in TRUE_HISTORY:
            await owner.execute(statements)
    # The history was made with the constraints; they would prevent the corruptions below.
    await owner.execute(DEFENCES)
    await owner.close()
    return url


@pytest.fixture
async def connection(told: str) -> AsyncIterator[Database]:
    """Yields a connection of the owner, who sees all schemas."""
    connection = await asyncpg.connect(told)
    yield connection
    await connection.close()


def found(findings: Sequence[Finding]) -> dict[str, int]:
    """Returns the violations by name.

    Fails unless all invariants were checked, except the one of the cache, which does not exist here.
    """
    assert [finding for finding in findings if finding.not_checked and finding.number != CACHED_MAPS[0]] == []
    return {finding.name: finding.violations for finding in findings if finding.violations}


async def test_a_true_history_has_no_violation(connection: Database) -> None:
    findings = await check(connection, None)
    assert found(findings) == {}
    # These are not checked by SQL; tests/seat/test_used_layouts.py and tests/operations/test_verify.py corrupt them.
    beyond = {USED_LAYOUTS[1], CACHED_MAPS[1]}
    assert {finding.name for finding in findings} == {invariant.name for invariant in INVARIANTS} | beyond


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
        await connection.execute(statements)
        reported = found(
            await check(connection, None, invariants=[each for each in INVARIANTS if each.name == invariant])
        )
    finally:
        await corrupted.rollback()
    assert reported.keys() == {invariant}


@pytest.mark.parametrize(
    "statements",
    [
        pytest.param(
            """
            UPDATE flight.seat_counts SET version = version - 1;
            INSERT INTO seat.outbox (event_id, routing_key, body, publish_time)
            SELECT gen_random_uuid(), 'seat.availability.v1', convert_to(flight_id, 'UTF8'), now() - interval '1 s'
            FROM flight.flights""",
            id="counts were announced a second ago",
        ),
        pytest.param(
            f"""
            UPDATE flight.seat_counts SET version = version - 1;
            UPDATE seat.seats SET update_time = now() - interval '4 s' WHERE flight_id IN ('{FLIGHT}', '{ONWARD}')""",
            id="seats changed a moment ago",
        ),
        pytest.param(
            f"""
            DELETE FROM checkin.passengers;
            UPDATE booking.bookings SET update_time = now() - interval '9 s' WHERE booking_id = {named("booking K")}""",
            id="the manifest has not heard of it yet",
        ),
        pytest.param(
            f"""
            UPDATE seat.hold_seats SET state = 'CONFIRMED' WHERE hold_id = {named("hold X")};
            UPDATE booking.bookings SET update_time = now() - interval '9 s' WHERE booking_id = {named("booking X")}""",
            id="its seats are being freed",
        ),
        pytest.param(
            f"""
            INSERT INTO seat.hold_seats (hold_id, flight_id, seat_number, passenger_id, state)
            VALUES ({named("hold P1")}, '{ONWARD}', '9A', 'K-1', 'RELEASED');
            UPDATE seat.hold_seats SET state = 'RELEASED'
            WHERE hold_id = {named("hold K")} AND flight_id = '{ONWARD}';
            DELETE FROM booking.booking_seats WHERE booking_id = {named("booking K")} AND flight_id = '{ONWARD}'""",
            id="a passenger moved, and gave that seat up",
        ),
    ],
)
async def test_what_is_on_its_way_is_no_violation_of_bookings_and_flights(
    connection: Database, statements: str
) -> None:
    corrupted = connection.transaction(isolation="repeatable_read")
    await corrupted.start()
    try:
        await connection.execute(statements)
        reported = found(await check(connection, None))
    finally:
        await corrupted.rollback()
    assert not reported.keys() & {*OF_FLIGHTS, *OF_BOOKINGS, *MONEY}


def test_each_invariant_has_a_planted_corruption() -> None:
    own = {
        invariant.name for invariant in INVARIANTS if invariant.schemas != ("seat",) or invariant.name in OF_SERVICES
    }
    assert own == CORRUPTIONS.keys()


def test_the_limits_that_must_be_there_are_those_that_the_gateway_starts_with() -> None:
    assert set(LIMITS) == {limit.limit_id for limit in DEFAULTS}
