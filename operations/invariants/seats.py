"""Invariants of seats, holds and the seat ledger."""

from __future__ import annotations

from typing import Final

from skyhigh.seat.v1.seat_service_pb2 import Seat

from operations.invariants.invariant import Invariant
from seat_service.layouts.cabin_layouts import load_layouts

# Special services whose passengers are ineligible for an exit row (14 CFR 121.585), as are all children and infants.
# CHLD marks an adult who cares for a child.
_NO_EXIT_ROW: Final = [
    "WCHR",
    "WCHS",
    "WCHC",
    "BLND",
    "DEAF",
    "STCR",
    "MEDA",
    "DPNA",
    "MAAS",
    "UMNR",
    "INFT",
    "CHLD",
    "PETC",
    "ESCT",
]


def _described_seats() -> str:
    """Returns the seats of all layouts as SQL rows.

    The columns are layout, seat number, cabin, exit row, and whether a lap infant is allowed.
    """
    return ", ".join(
        f"('{layout.layout_id}', '{seat.seat_number}', '{Seat.Cabin.Name(seat.cabin)}', "
        f"{seat.exit_row}, {seat.infant_allowed})"
        for layout in load_layouts().values()
        for seat in layout.seats
    )


SEAT_INVARIANTS: Final = (
    Invariant(
        1,
        "a seat has a hold exactly while it is held or confirmed",
        """
        SELECT flight_id, seat_number, state, hold_id FROM seat.seats
        WHERE (state IN ('HELD', 'CONFIRMED')) <> (hold_id IS NOT NULL)
        """,
    ),
    Invariant(
        1,
        "a held or confirmed seat is released before another hold gets it",
        """
        SELECT flight_id, seat_number, version, from_state, to_state, hold_id, hold_before
        FROM (
            SELECT flight_id, seat_number, version, from_state, to_state, hold_id,
                   lag(to_state) OVER seat AS state_before, lag(hold_id) OVER seat AS hold_before
            FROM seat.seat_events WINDOW seat AS (PARTITION BY flight_id, seat_number ORDER BY version)
        ) AS step
        WHERE 'HELD' IN (from_state, state_before) AND hold_id IS DISTINCT FROM hold_before
           OR 'CONFIRMED' IN (from_state, state_before) AND hold_id IS DISTINCT FROM hold_before
           OR to_state IN ('HELD', 'CONFIRMED') AND hold_id IS NULL
        """,
    ),
    Invariant(
        1,
        "a seat and its hold agree on the state of the seat",
        """
        SELECT hold_id, flight_id, seat_number, seats.state AS seat_state, of_hold.state AS state_in_hold
        FROM (SELECT hold_id, flight_id, seat_number, state::text FROM seat.seats WHERE hold_id IS NOT NULL) AS seats
        FULL JOIN (
            SELECT hold_id, flight_id, seat_number, state FROM seat.hold_seats WHERE state <> 'RELEASED'
        ) AS of_hold USING (hold_id, flight_id, seat_number)
        WHERE seats.state IS DISTINCT FROM of_hold.state
        """,
    ),
    Invariant(
        1,
        "the states of a hold's seats match the state of the hold",
        """
        SELECT hold_id, holds.state AS hold_state, flight_id, seat_number, of_hold.state AS state_in_hold
        FROM seat.holds FULL JOIN seat.hold_seats AS of_hold USING (hold_id)
        -- A confirmed hold may have released seats, because their passengers moved. Every hold has a seat.
        WHERE coalesce(of_hold.state, 'NONE') <> ALL (
            CASE holds.state
                WHEN 'HELD' THEN ARRAY['HELD']
                WHEN 'CONFIRMED' THEN ARRAY['CONFIRMED', 'RELEASED']
                WHEN 'CANCELLED' THEN ARRAY['RELEASED']
                WHEN 'EXPIRED' THEN ARRAY['RELEASED']
                ELSE ARRAY[]::text[]
            END)
        UNION ALL
        SELECT hold_id, state, NULL, NULL, 'RELEASED' FROM seat.holds
        WHERE state = 'CONFIRMED' AND NOT EXISTS (
            SELECT FROM seat.hold_seats AS of_hold
            WHERE of_hold.hold_id = holds.hold_id AND of_hold.state <> 'RELEASED')
        """,
    ),
    Invariant(
        1,
        "a passenger has at most one held and one confirmed seat on a flight",
        """
        SELECT flight_id, passenger_id, state, array_agg(seat_number) AS seat_numbers FROM seat.hold_seats
        WHERE state IN ('HELD', 'CONFIRMED') GROUP BY flight_id, passenger_id, state HAVING count(*) > 1
        """,
    ),
    Invariant(
        2,
        "the versions of a seat are 1..n without a gap",
        """
        SELECT flight_id, seat_number, version, version_before
        FROM (
            SELECT flight_id, seat_number, version,
                   lag(version, 1, 0::bigint) OVER (PARTITION BY flight_id, seat_number ORDER BY version)
                       AS version_before
            FROM seat.seat_events
        ) AS step
        WHERE version <> version_before + 1
        """,
    ),
    Invariant(
        2,
        "each transition of a seat starts in the end state of the previous one, the first in AVAILABLE",
        """
        SELECT flight_id, seat_number, version, from_state, state_before
        FROM (
            SELECT flight_id, seat_number, version, from_state,
                   lag(to_state, 1, 'AVAILABLE') OVER (PARTITION BY flight_id, seat_number ORDER BY version)
                       AS state_before
            FROM seat.seat_events
        ) AS step
        WHERE from_state <> state_before
        """,
    ),
    Invariant(
        2,
        "every transition of a seat is legal",
        """
        SELECT flight_id, seat_number, version, from_state, to_state FROM seat.seat_events
        WHERE (from_state, to_state) NOT IN (
            ('AVAILABLE', 'HELD'), ('HELD', 'CONFIRMED'), ('HELD', 'AVAILABLE'), ('CONFIRMED', 'AVAILABLE'),
            ('HELD', 'OFFERED'), ('CONFIRMED', 'OFFERED'), ('OFFERED', 'HELD'), ('OFFERED', 'AVAILABLE'),
            ('AVAILABLE', 'BLOCKED'), ('OFFERED', 'BLOCKED'), ('BLOCKED', 'AVAILABLE'), ('BLOCKED', 'OFFERED'))
        """,
    ),
    Invariant(
        2,
        "a seat equals the result of its ledger",
        """
        SELECT flight_id, seat_number, seats.version, seats.state, seats.hold_id,
               coalesce(last.version, 0) AS ledger_version, coalesce(last.to_state, 'AVAILABLE') AS ledger_state,
               last.hold_id AS ledger_hold_id
        FROM seat.seats FULL JOIN (
            SELECT DISTINCT ON (flight_id, seat_number) flight_id, seat_number, version, to_state,
                   CASE WHEN to_state IN ('HELD', 'CONFIRMED') THEN hold_id END AS hold_id
            FROM seat.seat_events ORDER BY flight_id, seat_number, version DESC
        ) AS last USING (flight_id, seat_number)
        WHERE (seats.version, seats.state, seats.hold_id)
              IS DISTINCT FROM (coalesce(last.version, 0), coalesce(last.to_state, 'AVAILABLE'), last.hold_id)
        """,
    ),
    Invariant(
        2,
        "a seat is OFFERED exactly while it has an offer",
        """
        SELECT flight_id, seat_number, offered.state, offers.expire_time
        FROM (SELECT flight_id, seat_number, state FROM seat.seats WHERE state = 'OFFERED') AS offered
        FULL JOIN seat.offers USING (flight_id, seat_number)
        WHERE offered.state IS NULL OR offers.expire_time IS NULL
        """,
    ),
    Invariant(
        3,
        "available + held + confirmed + offered + blocked = seats of the flight",
        """
        SELECT flight_id, flights.total_seats, counts.available, counts.held, counts.confirmed, counts.offered,
               counts.blocked
        FROM seat.flights FULL JOIN (
            SELECT flight_id,
                   count(*) FILTER (WHERE state = 'AVAILABLE') AS available,
                   count(*) FILTER (WHERE state = 'HELD') AS held,
                   count(*) FILTER (WHERE state = 'CONFIRMED') AS confirmed,
                   count(*) FILTER (WHERE state = 'OFFERED') AS offered,
                   count(*) FILTER (WHERE state = 'BLOCKED') AS blocked
            FROM seat.seats GROUP BY flight_id
        ) AS counts USING (flight_id)
        WHERE flights.total_seats IS DISTINCT FROM
              counts.available + counts.held + counts.confirmed + counts.offered + counts.blocked
        """,
    ),
    Invariant(
        4,
        "no seat is confirmed at or after the expire time of its hold",
        """
        SELECT hold_id, NULL AS flight_id, NULL AS seat_number, confirm_time AS confirmed_at, expire_time
        FROM seat.holds
        WHERE confirm_time >= expire_time
        UNION ALL
        SELECT hold_id, flight_id, seat_number, event_time, expire_time
        FROM seat.seat_events LEFT JOIN seat.holds USING (hold_id)
        WHERE to_state = 'CONFIRMED' AND (event_time < expire_time AND confirm_time IS NOT NULL) IS NOT TRUE
        """,
    ),
    Invariant(
        4,
        "no hold expires before its expire time, and no other seat is released as EXPIRED",
        """
        SELECT hold_id, NULL AS flight_id, NULL AS seat_number, state, end_time AS freed_at, expire_time FROM seat.holds
        WHERE state = 'EXPIRED' AND (end_time >= expire_time) IS NOT TRUE
        UNION ALL
        SELECT hold_id, flight_id, seat_number, holds.state, event_time, expire_time
        FROM seat.seat_events LEFT JOIN seat.holds USING (hold_id)
        -- A caller may cancel with the reason EXPIRED too. The actor of a caller has a colon, a service's own has none.
        WHERE reason = 'EXPIRED' AND strpos(actor, ':') = 0
          AND (holds.state = 'EXPIRED' AND event_time >= expire_time) IS NOT TRUE
        """,
    ),
    Invariant(
        4,
        "no hold stays HELD and no offer remains for more than 5 s after its expire time",
        """
        SELECT 'hold' AS kind, hold_id::text AS id, expire_time FROM seat.holds
        WHERE state = 'HELD' AND expire_time < now() - interval '5 s'
        UNION ALL
        SELECT 'offer', flight_id || ' ' || seat_number, expire_time FROM seat.offers
        WHERE expire_time < now() - interval '5 s'
        """,
        needs_service=True,
    ),
    Invariant(
        5,
        "the seats of a hold are held in one transaction, confirmed in one, and released in one",
        """
        SELECT hold_id, step, array_agg(flight_id || ' ' || seat_number) AS seats,
               array_agg(transaction::text) AS transactions
        FROM (
            SELECT hold_id, flight_id, seat_number, transaction,
                   CASE WHEN to_state IN ('HELD', 'CONFIRMED') THEN to_state::text ELSE 'FREED' END AS step
            FROM seat.seat_events LEFT JOIN seat.holds USING (hold_id)
            -- Before the hold ends, ChangeHoldSeats may hold and release seats, and a passenger who moves to another
            -- seat may release one of several. Only the releases at its end have to be one transaction.
            WHERE hold_id IS NOT NULL
              AND NOT ('HELD' IN (from_state, to_state) AND to_state <> 'CONFIRMED' AND reason = 'CHANGED')
              AND (to_state IN ('HELD', 'CONFIRMED') OR event_time >= holds.end_time)
        ) AS steps
        GROUP BY hold_id, step HAVING min(transaction::text) <> max(transaction::text)
        """,
    ),
    Invariant(
        5,
        "every seat of a hold has a HELD transition for this hold",
        """
        SELECT hold_id, flight_id, seat_number, of_hold.state AS state_in_hold
        FROM seat.hold_seats AS of_hold LEFT JOIN (
            SELECT hold_id, flight_id, seat_number, true AS held FROM seat.seat_events WHERE to_state = 'HELD'
        ) AS taken USING (hold_id, flight_id, seat_number)
        WHERE taken.held IS NULL
        """,
    ),
    Invariant(
        6,
        "a request changes a seat at most once, and all its seats in one transaction",
        """
        SELECT actor, request_id, flight_id, array_agg(seat_number) AS seats FROM seat.seat_events
        WHERE request_id IS NOT NULL GROUP BY actor, request_id, flight_id, seat_number
        -- A response is stored for two days. After that, the same id is a new request.
        HAVING count(*) > 1 AND max(event_time) - min(event_time) < interval '24 hours'
        UNION ALL
        SELECT actor, request_id, min(flight_id), array_agg(seat_number) FROM seat.seat_events
        WHERE request_id IS NOT NULL GROUP BY actor, request_id
        HAVING min(transaction::text) <> max(transaction::text)
           AND max(event_time) - min(event_time) < interval '24 hours'
        """,
    ),
    Invariant(
        6,
        "the response of a request that changed a seat is stored for 24 hours",
        """
        SELECT DISTINCT seat_events.actor, seat_events.request_id FROM seat.seat_events
        LEFT JOIN seat.idempotency AS answer ON answer.principal = actor AND answer.key = request_id
        WHERE request_id IS NOT NULL AND event_time > now() - interval '24 hours' AND answer.key IS NULL
        """,
    ),
    Invariant(
        6,
        "the hold of every stored response exists",
        """
        SELECT principal, key AS request_id, answered.hold_id
        FROM (
            -- A serialized Hold begins with its id: field 1, of 36 bytes. No other response begins with a UUID.
            SELECT principal, key, encode(substring(response FROM 3 FOR 36), 'escape') AS hold_id
            FROM seat.idempotency WHERE substring(response FROM 1 FOR 2) = '\\x0a24'
        ) AS answered
        LEFT JOIN seat.holds ON holds.hold_id = CASE
            WHEN answered.hold_id ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$' THEN answered.hold_id::uuid END
        LEFT JOIN seat.flights ON flights.flight_id = answered.hold_id
        WHERE holds.hold_id IS NULL AND flights.flight_id IS NULL
        """,
    ),
    Invariant(
        7,
        "every confirmation and every release of a seat has its event",
        """
        SELECT flight_id, seat_number, version, from_state, to_state, event_id, outbox.routing_key
        FROM seat.seat_events LEFT JOIN seat.outbox USING (event_id)
        WHERE (to_state = 'CONFIRMED'
               OR from_state IN ('HELD', 'CONFIRMED', 'BLOCKED') AND to_state IN ('AVAILABLE', 'OFFERED'))
          AND (event_id IS NULL
               -- Published events are kept for 72 hours.
               OR event_time > now() - interval '72 hours' AND outbox.routing_key IS DISTINCT FROM
                  CASE to_state WHEN 'CONFIRMED' THEN 'seat.confirmed.v1' ELSE 'seat.released.v1' END)
        """,
    ),
    Invariant(
        7,
        "the seat counts that a flight last published match its map",
        """
        SELECT flight_id, map.version AS map_version, availability.version AS announced_version, map.change_time
        FROM (
            SELECT flights.flight_id, 1 + coalesce(sum(seats.version), 0) AS version,
                   greatest(max(seats.update_time), flights.create_time) AS change_time
            FROM seat.flights LEFT JOIN seat.seats USING (flight_id) GROUP BY flights.flight_id
        ) AS map
        FULL JOIN seat.availability USING (flight_id)
        WHERE map.version IS NULL OR availability.version > map.version
           -- A flight without any change has nothing to publish: all its seats are free.
           OR coalesce(availability.version, 1) < map.version
              -- The reconciler publishes the counts that the process of the change did not: 200 flights in about 5 s.
              AND map.change_time < now() - interval '30 s' - interval '30 ms' * (SELECT count(*) FROM seat.flights)
        """,
        needs_service=True,
    ),
    Invariant(
        14,
        "no passenger without an entitlement to a seat has one",
        """
        SELECT flight_id, passenger_id, of_hold.seat_number, of_hold.state, passengers.ended, passengers.type,
               passengers.update_time
        FROM seat.passengers JOIN seat.hold_seats AS of_hold USING (flight_id, passenger_id)
        LEFT JOIN seat.holds USING (hold_id) LEFT JOIN seat.departures USING (flight_id)
        WHERE (passengers.ended OR passengers.type = 'INFANT')
          -- The sweeper ends a hold that had lapsed before. A confirmed seat of a departed flight stays confirmed.
          AND (of_hold.state = 'HELD' AND holds.expire_time > passengers.update_time
               OR of_hold.state = 'CONFIRMED'
                  AND (departures.departure_time <= passengers.update_time + interval '5 s') IS NOT TRUE)
        """,
    ),
    Invariant(
        14,
        "every seat is eligible for the cabin and the special services of its passenger",
        f"""
        SELECT flight_id, passenger_id, of_hold.seat_number, of_hold.state, passengers.cabin, passengers.type,
               passengers.special_services, described.cabin AS seat_cabin, described.exit_row, described.infant_allowed
        FROM seat.passengers JOIN seat.hold_seats AS of_hold USING (flight_id, passenger_id)
        JOIN seat.flights USING (flight_id) LEFT JOIN seat.holds USING (hold_id)
        LEFT JOIN seat.departures USING (flight_id)
        JOIN (VALUES {_described_seats()}) AS described (layout_id, seat_number, cabin, exit_row, infant_allowed)
            ON described.layout_id = flights.layout_id AND described.seat_number = of_hold.seat_number
        WHERE (passengers.cabin NOT IN ('CABIN_UNSPECIFIED', described.cabin)
               OR described.exit_row
                  AND (passengers.type <> 'ADULT' OR passengers.special_services && ARRAY{_NO_EXIT_ROW})
               OR NOT described.infant_allowed AND 'INFT' = ANY(passengers.special_services))
          AND (of_hold.state = 'HELD' AND holds.expire_time > passengers.update_time
               OR of_hold.state = 'CONFIRMED'
                  AND (departures.departure_time <= passengers.update_time + interval '5 s') IS NOT TRUE)
        """,  # noqa: S608
    ),
    Invariant(
        14,
        "no seat is held, confirmed or offered after the departure of its flight",
        """
        SELECT flight_id, seat_number, to_state, event_time, departure_time FROM seat.seat_events
        JOIN seat.departures USING (flight_id)
        WHERE to_state IN ('HELD', 'CONFIRMED', 'OFFERED')
          AND event_time > greatest(departure_time, departures.update_time)
        """,
    ),
    Invariant(
        14,
        "no hold stays HELD for more than 5 s after the departure of its flight",
        """
        SELECT hold_id, flight_id, of_hold.seat_number, expire_time, departure_time
        FROM seat.departures JOIN seat.hold_seats AS of_hold USING (flight_id) JOIN seat.holds USING (hold_id)
        WHERE of_hold.state = 'HELD' AND greatest(departure_time, departures.update_time) < now() - interval '5 s'
        """,
        needs_service=True,
    ),
)
