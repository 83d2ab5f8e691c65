"""Invariants of the waitlist: the order, matches and ends of its entries."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

# The pairs of entries of which the younger was matched with a seat that the older one should have got. The older entry
# was waiting and not matched at that time, the seat fits its cabin and preferences, its passenger's facts have not
# changed since, and no stored skip explains why the seat did not go to it.
_OVERTAKEN: Final = """
    SELECT younger.entry_id, younger.number, younger.seat_number,
           older.entry_id AS overtaken, older.number AS its_number
    FROM waitlist.entries AS younger
    JOIN waitlist.seats AS seat USING (flight_id, seat_number)
    JOIN waitlist.entries AS older ON older.flight_id = younger.flight_id AND older.number < younger.number
    WHERE younger.state IN ('ASSIGNED', 'OFFERED')
      AND coalesce(older.fact_time, older.create_time) < younger.match_time
      AND coalesce(older.end_time, 'infinity') > younger.match_time
      AND coalesce(older.match_time, 'infinity') > younger.match_time
      AND older.cabin = seat.cabin
      AND (older.positions = '{}' OR seat.position = ANY (older.positions))
      AND (older.seat_numbers = '{}' OR seat.seat_number = ANY (older.seat_numbers))
      AND NOT EXISTS (
          SELECT FROM waitlist.skips
          WHERE skips.entry_id = older.entry_id AND skips.seat_number = younger.seat_number
            AND skips.first_skip_time < younger.match_time)
"""

# Check-in of the flight has been closed for more than 5 s according to the check-in service, and also according to the
# waitlist, unless the waitlist last compared the close time more than 15 s ago. So a close time that has just moved
# into the past breaks nothing.
_CLOSED: Final = """
    departure_time - closes_before < now() - interval '5 s'
    AND (known.close_time < now() - interval '5 s' OR known.compare_time < now() - interval '15 s')
"""
# A timer that is due neither about now nor in about a second, as the timer of a step at another service is.
_SET_AHEAD_OR_LATE: Final = "due_time NOT BETWEEN now() - interval '5 s' AND now() + interval '1.5 s'"

WAITLIST_INVARIANTS: Final = (
    Invariant(
        14,
        "every entry ends within 5 s of the close of check-in",
        f"""
        SELECT entry_id, flight_id, entries.state, departure_time - closes_before AS close_time
        FROM waitlist.entries
        JOIN waitlist.flights AS known USING (flight_id)
        JOIN checkin.flights USING (flight_id)
        WHERE entries.state IN ('WAITING', 'OFFERED') AND {_CLOSED}
        """,  # noqa: S608
        needs_service=True,
        schemas=("waitlist", "checkin"),
    ),
    Invariant(
        14,
        "every waiting or offered entry belongs to a passenger of the manifest who needs a seat",
        """
        SELECT entry_id, flight_id, entries.passenger_id, entries.owner, passengers.pnr, passengers.type
        FROM waitlist.entries
        JOIN waitlist.flights AS known USING (flight_id)
        LEFT JOIN checkin.passengers USING (flight_id, passenger_id)
        WHERE entries.state IN ('WAITING', 'OFFERED')
          AND (passengers.pnr IS NULL OR passengers.type = 'INFANT' OR entries.owner <> 'passenger:' || passengers.pnr)
          AND known.compare_time < now() - interval '15 s'
        """,
        needs_service=True,
        schemas=("waitlist", "checkin"),
    ),
    Invariant(
        14,
        "every entry of a cancelled booking ends within 10 s",
        """
        SELECT entry_id, entries.flight_id, entries.passenger_id, bookings.booking_id, bookings.update_time
        FROM waitlist.entries
        JOIN booking.booking_passengers USING (passenger_id)
        JOIN booking.bookings USING (booking_id)
        WHERE entries.state IN ('WAITING', 'OFFERED') AND bookings.state = 'CANCELLED'
          AND bookings.update_time < now() - interval '10 s'
        """,
        needs_service=True,
        schemas=("waitlist", "booking"),
    ),
    Invariant(
        14,
        "no timer of the waitlist remains for a flight whose check-in has closed",
        f"""
        SELECT name, subject, due_time, flights.flight_id
        FROM waitlist.timers
        LEFT JOIN waitlist.entries
            ON name IN ('assign', 'accept', 'lapse', 'withdraw') AND entries.entry_id::text = subject
        JOIN checkin.flights ON flights.flight_id = coalesce(entries.flight_id, subject)
        JOIN waitlist.flights AS known ON known.flight_id = flights.flight_id
        WHERE fire_time IS NULL AND (name IN ('sweep', 'close') OR entries.entry_id IS NOT NULL)
          AND {_CLOSED} AND {_SET_AHEAD_OR_LATE}
        """,  # noqa: S608
        needs_service=True,
        schemas=("waitlist", "checkin"),
    ),
    Invariant(
        8,
        "a withdrawn offer ends within 30 s",
        """
        SELECT entry_id, flight_id, withdrawal, due_time FROM waitlist.entries
        LEFT JOIN waitlist.timers ON name = 'withdraw' AND subject = entry_id::text AND fire_time IS NULL
        WHERE state = 'OFFERED' AND withdrawal IS NOT NULL
          AND coalesce(due_time < now() - interval '30 s', true)
        """,
        needs_service=True,
        schemas=("waitlist",),
    ),
    Invariant(
        8,
        "a waiting entry that is matched with a seat has a timer that claims the seat",
        """
        SELECT entry_id, flight_id, seat_number, match_time FROM waitlist.entries
        WHERE state = 'WAITING' AND claim_id IS NOT NULL AND match_time < now() - interval '30 s'
          AND NOT EXISTS (SELECT FROM waitlist.timers
                          WHERE name = 'assign' AND subject = entry_id::text AND fire_time IS NULL)
        """,
        needs_service=True,
        schemas=("waitlist",),
    ),
    Invariant(
        8,
        "no seat is matched with a younger entry while an older one is eligible for it",
        _OVERTAKEN,
        schemas=("waitlist",),
    ),
    Invariant(
        8,
        "a seat is matched with at most one entry at a time, and a hold belongs to at most one entry",
        """
        SELECT flight_id, seat_number, array_agg(entry_id) AS entries FROM waitlist.entries
        WHERE state = 'WAITING' AND claim_id IS NOT NULL GROUP BY flight_id, seat_number HAVING count(*) > 1
        UNION ALL
        SELECT NULL, hold_id::text, array_agg(entry_id) FROM waitlist.entries
        WHERE hold_id IS NOT NULL GROUP BY hold_id HAVING count(*) > 1
        """,
        schemas=("waitlist",),
    ),
    Invariant(
        8,
        "the hold of an assigned entry was confirmed for its passenger",
        """
        SELECT entry_id, entries.flight_id, entries.passenger_id, entries.seat_number, entries.hold_id
        FROM waitlist.entries
        LEFT JOIN seat.hold_seats
            ON hold_seats.hold_id = entries.hold_id AND hold_seats.passenger_id = entries.passenger_id
           AND hold_seats.seat_number = entries.seat_number AND hold_seats.flight_id = entries.flight_id
        LEFT JOIN seat.holds ON holds.hold_id = entries.hold_id
        WHERE entries.state = 'ASSIGNED' AND (hold_seats.hold_id IS NULL OR holds.confirm_time IS NULL)
        """,
        schemas=("waitlist", "seat"),
    ),
    Invariant(
        8,
        "no free seat and eligible waiting entry coexist for more than 10 s",
        """
        SELECT seats.flight_id, seats.seat_number, seats.state, seats.update_time, waiting.entry_id
        FROM seat.seats
        JOIN waitlist.seats AS facts USING (flight_id, seat_number)
        JOIN waitlist.entries AS waiting ON waiting.flight_id = seats.flight_id AND waiting.state = 'WAITING'
        WHERE seats.state IN ('AVAILABLE', 'OFFERED')
          AND greatest(seats.update_time, waiting.create_time, waiting.update_time) < now() - interval '10 s'
          AND waiting.cabin = facts.cabin
          AND (waiting.positions = '{}' OR facts.position = ANY (waiting.positions))
          AND (waiting.seat_numbers = '{}' OR seats.seat_number = ANY (waiting.seat_numbers))
          AND NOT EXISTS (
              SELECT FROM waitlist.skips
              WHERE skips.entry_id = waiting.entry_id AND skips.seat_number = seats.seat_number
                AND skips.end_time > now() - interval '10 s')
        """,
        needs_service=True,
        schemas=("waitlist", "seat"),
    ),
    Invariant(
        8,
        "an entry equals the result of its history",
        """
        SELECT entry_id, entries.state, entries.version, last.to_state, last.version AS last_version
        FROM waitlist.entries FULL JOIN (
            SELECT DISTINCT ON (entry_id) entry_id, to_state, version
            FROM waitlist.entry_events ORDER BY entry_id, version DESC
        ) AS last USING (entry_id)
        WHERE (entries.state, entries.version) IS DISTINCT FROM (last.to_state, last.version)
        UNION ALL
        SELECT entry_id, from_state, version, state_before, version_before
        FROM (
            SELECT entry_id, from_state, version,
                   lag(to_state) OVER entry AS state_before, lag(version, 1, 0) OVER entry AS version_before
            FROM waitlist.entry_events WINDOW entry AS (PARTITION BY entry_id ORDER BY version)
        ) AS step
        WHERE from_state IS DISTINCT FROM state_before OR version <> version_before + 1
        """,
        schemas=("waitlist",),
    ),
    Invariant(
        8,
        "the seat service knows for each flight whether its waitlist is open",
        """
        SELECT flights.flight_id, flights.open, flights.revision, flights.told_revision, known.waitlist_open
        FROM waitlist.flights JOIN seat.flights AS known USING (flight_id)
        WHERE flights.revision = flights.told_revision AND flights.revision > 0
          AND (known.waitlist_open, known.waitlist_revision) IS DISTINCT FROM (flights.open, flights.revision)
        """,
        schemas=("waitlist", "seat"),
    ),
)
