"""Planted bugs: each is a small change of one file, with what is expected to catch it.

A mutant is a mistake that a person could make: a guard removed from a transition, an event that is not written, a retry
that does not retry. It is caught by a run of the tester (the checks named in `checks`, of which "verify" is `skyhigh
verify`), or by the tests named in `tests`, or by both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug."""

    name: str
    """The service, and what is wrong."""
    file: str
    edits: tuple[tuple[str, str], ...]
    """Old and new text. Each old text occurs once in the file."""
    checks: tuple[str, ...] = ()
    """The checks of a run of which at least one finds it; empty if only tests do."""
    life: str = ""
    """What the players have to do for that."""
    tests: tuple[str, ...] = ()
    """The tests that fail: files, or single tests of files."""
    with_faults: bool = False
    """Whether a run shows it only with faults."""


VERIFY: Final = "verify"
UNREST: Final = "unrest"
"""The run's own check that the system comes to rest."""

MUTANTS: Final = (
    # Seats.
    Mutant(
        "seat-hold-takes-a-seat-that-is-held",
        "seat_service/holds/hold.py",
        (
            (
                "AND coalesce(seat.state = 'AVAILABLE' OR seat.state = 'OFFERED' AND asked.takes_offers, false))",
                "AND coalesce(seat.state <> 'BLOCKED', false))",
            ),
            ("      AND (seats.state = 'AVAILABLE' OR seats.state = 'OFFERED' AND standing.takes_offers)\n", ""),
            (
                "standing.state AS from_state, standing.hold_id,",
                "'AVAILABLE'::seat_state AS from_state, standing.hold_id,",
            ),
        ),
        checks=("linearizability", VERIFY),
        life="two callers want one seat",
        tests=("tests/seat/test_hold_seat.py::test_a_taken_seat_is_refused_with_its_state",),
    ),
    Mutant(
        "seat-hold-of-two-flights-takes-one",
        "seat_service/holds/hold.py",
        (
            (
                "               OVER (PARTITION BY asked.n) AS granted",
                "               OVER (PARTITION BY asked.n, asked.flight_id) AS granted",
            ),
        ),
        checks=("atomicity", "acknowledged", VERIFY),
        life="a hold on two flights of which one seat is taken",
        tests=("tests/seat/test_hold_seats.py::test_one_taken_seat_of_36_refuses_the_hold",),
    ),
    Mutant(
        "seat-hold-after-departure",
        "seat_service/holds/hold.py",
        (
            (
                "cancelled.flight_id IS NULL AND coalesce(departure.departure_time > $15, true)",
                "cancelled.flight_id IS NULL",
            ),
            ("least($15 + ttl, first_departure)", "$15 + ttl"),
        ),
        checks=(VERIFY,),
        life="a hold of a flight that has just left",
        tests=(
            "tests/seat/test_sync_passengers.py::test_a_departed_flight_accepts_no_hold",
            "tests/seat/test_sync_passengers.py::test_a_hold_ends_at_the_departure",
        ),
    ),
    Mutant(
        "seat-hold-without-entitlement",
        "seat_service/holds/hold.py",
        (
            (
                "    answers: dict[int, pb.Hold | Refusal] = {**not_entitled}\n",
                "    answers: dict[int, pb.Hold | Refusal] = {}\n    assert not_entitled is not None\n",
            ),
        ),
        checks=(VERIFY, "rights"),
        life="a cancelled booking's passenger, or a stranger, holds a seat",
        tests=("tests/seat/test_sync_passengers.py::test_a_session_acts_for_the_passengers_of_its_locator",),
    ),
    Mutant(
        "seat-map-not-invalidated",
        "seat_service/maps/seat_map.py",
        (("                await self._cache.invalidate(list(flight_ids))\n", ""),),
        checks=(VERIFY,),
        life="a map that was read before a change is at rest as it was",
        tests=("tests/seat/test_get_seat_map.py::test_both_processes_show_a_change_within_a_second",),
    ),
    Mutant(
        "seat-map-ignores-the-known-version",
        "seat_service/maps/seat_map.py",
        (
            (
                "return snapshot if snapshot.version >= known_version else await self._truth.submit(flight_id)",
                "return snapshot",
            ),
        ),
        checks=("versions", "watches"),
        life="map readers while Redis comes and goes",
        tests=("tests/seat/test_get_seat_map.py::test_a_client_with_known_version_gets_no_older_map",),
        with_faults=True,
    ),
    Mutant(
        "seat-watch-forgets-what-came-before-it-was-resumed",
        "seat_service/maps/watch.py",
        (
            (
                "            sent = feed.remembered(known_version)\n",
                "            sent = feed.latest if feed.remembered(known_version) else None\n",
            ),
        ),
        checks=("watches",),
        life="a watch that goes on from a version after a change",
        tests=("tests/seat/test_watch_seat_map.py::test_a_watch_continues_from_a_known_version_without_gap",),
    ),
    Mutant(
        "seat-confirmation-without-request-id",
        "seat_service/holds/confirm.py",
        (
            (
                "        [request_id(requests[seat.hold_id].request_key) for seat in seats],\n",
                "        [None for _ in seats],\n",
            ),
        ),
        checks=("refusals",),
        life="a confirmation with a key",
        tests=("tests/seat/test_list_seat_events.py::test_the_ledger_lists_changes_in_order",),
    ),
    Mutant(
        "seat-cancel-of-anothers-hold",
        "seat_service/holds/cancel.py",
        (
            (
                "          AND (request.owner IS NULL OR holds.owner = request.owner)\n"
                "          AND (holds.state = 'CONFIRMED' AND NOT request.unless_confirmed\n",
                "          AND (holds.state = 'CONFIRMED' AND NOT request.unless_confirmed\n",
            ),
        ),
        checks=("rights",),
        life="a stranger cancels a hold whose id it learned",
        tests=("tests/seat/test_cancel_hold.py::test_a_foreign_hold_is_not_cancelled",),
    ),
    Mutant(
        "seat-release-without-event",
        "seat_service/holds/releases.py",
        (
            (
                '    await announce(conn, "seat.released.v1", events, messages, effects=effects)\n',
                "    effects.flights.update(events)\n",
            ),
        ),
        checks=(VERIFY,),
        life="any cancelled hold",
        tests=("tests/seat/test_cancel_hold.py::test_the_ledger_and_the_event_have_the_reason",),
    ),
    Mutant(
        "seat-sweeper-switched-off",
        "seat_service/holds/sweeper.py",
        (("            holds = await sweep_holds(pool, inventory)\n", "            holds = False\n"),),
        checks=(VERIFY, UNREST),
        life="a hold that lapses",
        tests=("tests/seat/test_expiry.py::test_the_sweeper_expires_lapsed_holds_only_within_five_seconds",),
    ),
    Mutant(
        "seat-older-manifest-overwrites-newer",
        "seat_service/manifests/manifest_copy.py",
        (
            ("        WHERE passengers.revision < excluded.revision\n", ""),
            ("        WHERE coalesce(known.revision, 0) < asked.revision\n", ""),
        ),
        checks=(VERIFY,),
        life="manifests that change while messages are late",
        tests=("tests/seat/test_sync_passengers.py::test_an_older_revision_is_ignored",),
        with_faults=True,
    ),
    Mutant(
        "seat-of-an-ended-passenger-is-kept",
        "seat_service/manifests/manifest_copy.py",
        (("        if passenger.ended or foreign:\n", "        if foreign:\n"),),
        checks=(VERIFY, "acknowledged"),
        life="a cancelled booking whose passengers have seats",
        tests=("tests/seat/test_sync_passengers.py::test_an_ended_passenger_loses_held_and_confirmed_seats",),
    ),
    # Code that all services share.
    Mutant(
        "services-answers-are-not-remembered",
        "services/transitions.py",
        (
            (
                "            if key is not None:\n"
                "                await idempotency.store_response(conn, key, answer)\n",
                "",
            ),
        ),
        checks=("idempotency", "refusals"),
        life="repeats with keys of check-ins, bookings and entries",
        tests=("tests/services/test_transitions.py::test_concurrent_repeats_have_one_effect_and_one_response",),
    ),
    Mutant(
        "services-key-with-other-parameters",
        "services/idempotency.py",
        (
            (
                'answer_type.FromString(row["response"]) if row["fingerprint"] == key.fingerprint else _reused()',
                'answer_type.FromString(row["response"]) if key is not None else _reused()',
            ),
        ),
        checks=("idempotency", "acknowledged"),
        life="a key that is used for two requests",
        tests=("tests/seat/test_idempotency.py::test_a_key_with_other_parameters_is_refused",),
    ),
    Mutant(
        "services-consumer-acks-before-it-commits",
        "services/inbox.py",
        (
            (
                "        try:\n            fresh = await self._apply_with_retries(message)\n",
                "        await message.ack()\n"
                "        try:\n            fresh = await self._apply_with_retries(message)\n",
            ),
            (
                '        await message.ack()\n        telemetry.EVENTS_CONSUMED.labels(self._queue, "applied"',
                '        telemetry.EVENTS_CONSUMED.labels(self._queue, "applied"',
            ),
        ),
        checks=(VERIFY,),
        life="a consumer that is killed with a message in hand",
        tests=(
            "tests/services/test_outages.py::test_an_event_outlasts_an_outage_without_a_try",
            "tests/chaos/test_killed_waitlist.py",
        ),
        with_faults=True,
    ),
    Mutant(
        "services-consumer-applies-repeats",
        "services/inbox.py",
        (
            (
                "once = {each.event_id: each for each in received if each.event_id in fresh}",
                "once = {each.event_id: each for each in received}",
            ),
        ),
        checks=(VERIFY, "money"),
        life="messages that are delivered twice",
        tests=(
            "tests/flight/test_seat_counts.py::test_events_are_applied_once_each",
            "tests/booking/test_payment.py",
        ),
        with_faults=True,
    ),
    Mutant(
        "services-relay-marks-what-no-queue-took",
        "services/outbox.py",
        (
            (
                'await self._mark([row["event_id"] for row in rows if row["event_id"] not in returned], conn)',
                'await self._mark([row["event_id"] for row in rows], conn)',
            ),
        ),
        checks=(VERIFY,),
        life="a broker that lost its data",
        tests=("tests/services/test_outbox.py::test_an_event_without_a_queue_is_published_later",),
        with_faults=True,
    ),
    Mutant(
        "services-relay-does-not-know-a-new-broker",
        "services/outbox.py",
        (("            again = await self._unmark()\n", "            again = 0\n"),),
        checks=(VERIFY,),
        life="a broker that lost its data",
        tests=("tests/services/test_outbox.py::test_a_new_broker_gets_the_last_hours_events",),
        with_faults=True,
    ),
    Mutant(
        "services-reconciler-switched-off",
        "services/reconciler.py",
        (("            await asyncio.gather(*(self.look(comparison) for comparison in self._comparisons))\n", ""),),
        checks=(VERIFY,),
        life="a broker that lost its data",
        tests=("tests/services/test_reconciler.py::test_a_lost_event_is_repaired_while_the_service_runs",),
        with_faults=True,
    ),
    Mutant(
        "services-failed-timer-counts-as-fired",
        "services/timers.py",
        (
            (
                "await self._settle(timer, error, pause_seconds=OUTAGE_RETRY_SECONDS, tries=timer.tries - 1)",
                "await self._settle(timer, None, pause_seconds=0, tries=timer.tries)",
            ),
        ),
        checks=(VERIFY, UNREST),
        life="payments and offers while a service or a server is down",
        tests=("tests/services/test_outages.py::test_an_outage_does_not_count_as_a_timers_try",),
        with_faults=True,
    ),
    Mutant(
        "services-watch-forgets-a-change",
        "services/watch.py",
        (("        if row.version > self.latest.version:\n", "        if row.version > self.latest.version + 1:\n"),),
        checks=("lifecycles", "acknowledged"),
        life="a watch of a booking or a check-in",
        tests=("tests/booking/test_watch_booking.py::test_changed_seats_and_expire_time_are_shown",),
    ),
    # Bookings.
    Mutant(
        "booking-repeat-gets-the-present-state",
        "booking_service/reserving.py",
        (
            (
                "                return pb.Booking.FromString(booking.first_answer)\n",
                "                return booking.message()\n",
            ),
        ),
        checks=("idempotency",),
        life="a repeat of CreateBooking after the booking was paid",
        tests=("tests/booking/test_idempotency.py::test_a_repeat_returns_the_first_response_after_later_changes",),
    ),
    Mutant(
        "booking-shown-to-a-stranger",
        "booking_service/servicer.py",
        (
            (
                "    return None if principal.acts_for_others else principal.name\n",
                "    return None if principal.name else principal.name\n",
            ),
        ),
        checks=("rights",),
        life="a customer asks for another's booking",
        tests=("tests/booking/test_get_booking.py::test_a_foreign_booking_is_not_found",),
    ),
    Mutant(
        "booking-price-of-the-first-flight-only",
        "booking_service/fares.py",
        (("for leg in legs for kind in types]", "for leg in legs[:1] for kind in types]"),),
        checks=("money",),
        life="a booking of two flights",
        tests=("tests/booking/test_create_booking.py::test_the_total_covers_all_passengers_and_flights",),
    ),
    Mutant(
        "booking-cancellation-keeps-the-seats",
        "booking_service/bookings.py",
        (
            (
                "    await timers.cancel_timer(conn, EXPIRE, str(booking_id))\n"
                "    await timers.set_timer(conn, RELEASE, str(booking_id))\n",
                "    await timers.cancel_timer(conn, EXPIRE, str(booking_id))\n",
            ),
        ),
        checks=(VERIFY, "acknowledged"),
        life="a booking that is cancelled before and after it was paid",
        tests=("tests/booking/test_cancel_booking.py::test_a_cancelled_confirmed_booking_is_released_and_refunded",),
    ),
    Mutant(
        "booking-refund-by-amount-instead-of-by-leg",
        "booking_service/bookings.py",
        (
            (
                "        else standing.fare_of(*(leg for leg in standing.legs if leg.cancel_time is not None))\n",
                "        else standing.fare_of(standing.legs[0])\n",
            ),
        ),
        checks=(VERIFY,),
        life="a booking of two flights of which the second is cancelled after the first has left",
        tests=("tests/booking/test_partial_cancellation.py::test_customer_and_airline_at_once_refund_the_fare_once",),
    ),
    Mutant(
        "booking-late-money-is-kept",
        "booking_service/bookings.py",
        (
            (
                "state IN ('PAYMENT_PENDING', 'PAYMENT_PROCESSING', 'FAILED', 'EXPIRED')\n        RETURNING true",
                "state IN ('PAYMENT_PENDING', 'PAYMENT_PROCESSING')\n        RETURNING true",
            ),
        ),
        checks=(VERIFY,),
        life="a payment that succeeds after the booking has expired",
        tests=("tests/booking/test_late_money.py",),
    ),
    Mutant(
        "booking-confirmed-on-a-cancelled-flight",
        "booking_service/bookings.py",
        (
            (
                "          AND NOT EXISTS (\n"
                "              SELECT FROM booking_flights JOIN cancelled_flights USING (flight_id)\n"
                "              WHERE booking_flights.booking_id = bookings.booking_id)\n"
                "        RETURNING confirm_time\n",
                "        RETURNING confirm_time\n",
            ),
        ),
        checks=(VERIFY,),
        life="a flight that is cancelled while a booking is paid",
        tests=(
            "tests/booking/test_cancelled_flight.py::test_a_booking_confirmed_after_the_event_is_cancelled",
            "tests/booking/test_cancelled_flight.py::test_confirm_during_the_cancellation_leaves_no_confirmed_booking",
        ),
    ),
    Mutant(
        "booking-second-payment-while-one-runs",
        "booking_service/bookings.py",
        (
            (
                "AND owner = $2 AND state = 'SEATS_RESERVED' AND expire_time > statement_timestamp()",
                "AND owner = $2 AND state = 'SEATS_RESERVED'",
            ),
        ),
        checks=(VERIFY, "money", "linearizability"),
        life="a payment that begins after the hold has lapsed",
        tests=(
            "tests/booking/test_expired_booking.py::test_an_unpaid_booking_expires_and_releases_its_seats",
            "tests/booking/test_pay_booking.py::test_only_reserved_bookings_can_be_paid",
        ),
    ),
    # Check-in.
    Mutant(
        "checkin-pass-without-asking-for-the-seat",
        "checkin_service/servicer.py",
        (("        check_in = await self._seating.seat_for_pass(check_in)\n", ""),),
        checks=("linearizability",),
        life="a boarding pass after the passenger moved or lost the seat",
        tests=("tests/checkin/test_one_pass_per_seat.py::test_no_pass_is_issued_for_a_released_seat",),
    ),
    Mutant(
        "checkin-session-is-not-checked-again",
        "checkin_service/servicer.py",
        (
            (
                "    return await records.find(conn, UUID(checkin_id), pnr=pnr_of(running().principal))\n",
                "    return await records.find(conn, UUID(checkin_id), pnr=None)\n",
            ),
        ),
        checks=("rights",),
        life="a session asks for a check-in of another locator",
        tests=("tests/checkin/test_get_check_in.py::test_a_foreign_check_in_is_not_found",),
    ),
    Mutant(
        "checkin-cancellation-keeps-the-seat",
        "checkin_service/check_ins/cancellation.py",
        (
            (
                "    if cancelled.seat_number != INFANT_SEAT:\n"
                "        await timers.set_timer(conn, RELEASE_SEAT, str(checkin_id))\n",
                "",
            ),
        ),
        checks=(VERIFY,),
        life="a check-in with a seat of its own that is cancelled",
        tests=("tests/checkin/test_cancel_check_in.py::test_a_cancelled_check_in_releases_its_seat",),
    ),
    Mutant(
        "checkin-fee-of-a-cancelled-check-in-is-kept",
        "checkin_service/check_ins/cancellation.py",
        (
            (
                "    if cancelled.payment_intent_id is not None:\n"
                "        await timers.set_timer(conn, SETTLE_FEE, str(checkin_id))\n",
                "",
            ),
        ),
        checks=(VERIFY,),
        life="a check-in that is cancelled after its fee was paid",
        tests=("tests/checkin/test_cancel_check_in.py::test_a_paid_fee_is_refunded",),
    ),
    # Waitlist.
    Mutant(
        "waitlist-youngest-first",
        "waitlist_service/released_seats.py",
        (("        ORDER BY number LIMIT $3\n", "        ORDER BY number DESC LIMIT $3\n"),),
        checks=("waitlist", VERIFY),
        life="several entries that want one seat",
        tests=(
            "tests/waitlist/test_assignment.py",
            "tests/waitlist/test_fairness.py",
        ),
    ),
    Mutant(
        "waitlist-ignores-the-position-that-is-wished",
        "waitlist_service/matching.py",
        (
            ("            and (not self.positions or seat.position in self.positions)\n", ""),
            ("            self.positions.index(seat.position) if self.positions else 0,\n", "            0,\n"),
        ),
        checks=("waitlist",),
        life="an entry that wants a window seat",
        tests=("tests/waitlist/test_matching.py",),
    ),
    Mutant(
        "waitlist-claim-with-new-parameters",
        "waitlist_service/assignment.py",
        (
            (
                "        request = seat.ClaimSeatRequest.FromString(entry.claim_request)\n",
                "        request = seat.ClaimSeatRequest.FromString(self._claim(entry, str(self._settings.mode)))\n",
            ),
        ),
        checks=(VERIFY, UNREST, "idempotency"),
        life="a flight whose mode changes while a claim is repeated",
        tests=("tests/waitlist/test_claims.py::test_a_claim_with_lost_response_is_repeated_unchanged",),
    ),
    Mutant(
        "waitlist-decline-takes-the-confirmed-seat",
        "waitlist_service/peers.py",
        (("            unless_confirmed=True,\n", "            unless_confirmed=False,\n"),),
        checks=("acknowledged", VERIFY),
        life="a passenger who confirms the offered hold and then declines",
        tests=("tests/waitlist/test_claims.py::test_a_confirmed_seat_survives_the_end_of_its_offer",),
    ),
    Mutant(
        "waitlist-position-counts-those-who-left",
        "waitlist_service/entries.py",
        (
            (
                "            WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1 "
                "AND number <= $2\n"
                "              AND state = 'WAITING'\n",
                "            WHERE flight_id = $1 AND number <= $2\n",
            ),
        ),
        checks=(),
        life="",
        tests=(
            "tests/waitlist/test_join_waitlist.py",
            "tests/waitlist/test_assignment.py",
            "tests/waitlist/test_offers.py",
        ),
    ),
    # Payments.
    Mutant(
        "payment-refund-of-the-whole-each-time",
        "payment_service/refunds.py",
        (('        total_minor_units - before["sum"],\n', "        total_minor_units,\n"),),
        checks=(VERIFY, "money"),
        life="two refunds of one intent",
        tests=("tests/payment/test_refund_payment.py::test_a_partial_refund_leaves_the_intent_paid",),
    ),
    Mutant(
        "payment-second-success-is-kept",
        "payment_service/verdicts.py",
        (
            (
                "await refunds.request(conn, key, intent_id=intent_id, reason=reason, "
                'total_minor_units=charge["minor_units"])',
                '_log.warning("kept", reason=reason)',
            ),
        ),
        checks=(VERIFY, "money"),
        life="a charge that succeeds after its intent was cancelled",
        tests=("tests/payment/test_refund_payment.py::test_a_second_success_is_refunded",),
    ),
    Mutant(
        "payment-new-key-for-each-attempt",
        "payment_service/charging.py",
        (
            (
                '    return uuid5(intent_id, f"charge/{number}")\n',
                '    return uuid5(intent_id, f"charge/{number}/{datetime.now().timestamp()}")\n',
            ),
        ),
        checks=("money",),
        life="a provider whose answers are lost",
        tests=(
            "tests/payment/test_attempts.py::test_an_attempt_killed_before_commit_charges_once",
            "tests/payment/test_attempts.py::test_a_lost_response_never_charges_twice",
        ),
        with_faults=True,
    ),
    Mutant(
        "payment-other-amount-is-believed",
        "payment_service/verdicts.py",
        (
            (
                'return Quarantine.AMOUNT_DIFFERS if verdict.amount.minor_units != charge["minor_units"] else None',
                "return None",
            ),
        ),
        checks=("money",),
        life="a provider that tells another amount",
        tests=("tests/payment/test_receive_webhook.py::test_a_mismatch_is_quarantined_and_reported",),
        with_faults=True,
    ),
    # Flights.
    Mutant(
        "flight-cancellation-without-event",
        "flight_service/flights.py",
        (
            (
                '    await enqueue(conn, [Event(uuid4(), "flight.cancelled.v1", cancelled, trace)])\n',
                "    assert cancelled and trace and Event and enqueue and uuid4\n",
            ),
        ),
        checks=(VERIFY,),
        life="a flight with bookings that is cancelled",
        tests=("tests/flight/test_cancel_flight.py::test_a_cancelled_flight_is_published_and_not_found",),
    ),
    Mutant(
        "flight-older-count-overwrites-newer",
        "flight_service/counts.py",
        (("        WHERE seat_counts.version < excluded.version\n", ""),),
        checks=(VERIFY,),
        life="counts that come late or twice",
        tests=("tests/flight/test_seat_counts.py::test_an_older_count_never_overwrites_a_newer",),
        with_faults=True,
    ),
)
