"""A flight that has left changes no more, and the waitlist takes no seat from its passenger.

After the departure no seat is held or confirmed, no caller gives up a confirmed seat, and no entry waits (SEAT-13,
CHK-9, WAIT-9). Only a service may release a seat then, for a decision that was made in time, or the cancellation of the
flight. An offer that its passenger has confirmed is the passenger's seat: leaving the waitlist does not release it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Final

from tests.system.checks.violation import Violation
from tests.system.history import History
from tests.system.truth import BookingFlightRow, DepartureRow, FlightRow, Truth

CHECK: Final = "departures"
# A statement that began before the departure may end after it.
TOLERANCE_SECONDS: Final = 1.0
# Entries end when check-in closes, at the departure at the latest, and within this time after an outage.
ENDED_AFTER_SECONDS: Final = 30.0
_WAITS: Final = ("WAITING", "OFFERED")
WAITLIST: Final = "service:waitlist"


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns what was done with the seats of flights that had left, and the entries that still wait for them."""
    departures = _latest_departures(history, truth)
    return [*_seats(truth, departures), *_entries(truth, departures), *_released_by_the_waitlist(truth)]


def _latest_departures(history: History, truth: Truth) -> Mapping[str, float]:
    """Returns the latest departure time that was named for each flight of which a service knows one."""
    known: dict[str, float] = {}
    asked: dict[str, float] = {}
    rows: list[DepartureRow | BookingFlightRow | FlightRow] = [
        *truth.departures,
        *truth.booking_flights,
        *truth.flights,
    ]
    for row in rows:
        if row.departure_time is not None:
            known[row.flight_id] = max(known.get(row.flight_id, 0.0), row.departure_time)
    for operation in history.of_calls("ImportManifest"):
        flight_id = str(operation.request.get("flight_id", ""))
        named = (operation.request.get("flight") or {}).get("departure_time")
        if named:
            # An import without a response may have changed the time, too.
            asked[flight_id] = max(asked.get(flight_id, 0.0), datetime.fromisoformat(str(named)).timestamp())
            if operation.ok:
                known.setdefault(flight_id, asked[flight_id])
    return {flight_id: max(known[flight_id], asked.get(flight_id, 0.0)) for flight_id in known}


def _seats(truth: Truth, departures: Mapping[str, float]) -> Iterator[Violation]:
    for event in truth.seat_events:
        departure = departures.get(event.flight_id)
        if departure is None or event.event_time is None or event.event_time <= departure + TOLERANCE_SECONDS:
            continue
        late = f"{event.event_time - departure:.1f} s after the departure"
        if event.to_state in ("HELD", "CONFIRMED"):
            yield Violation(CHECK, f"seat {event.seat_number} of {event.flight_id} became {event.to_state} {late}")
        elif event.from_state == "CONFIRMED" and event.actor.startswith(("passenger:", "customer:", "agent:")):
            yield Violation(CHECK, f"{event.actor} gave up seat {event.seat_number} of {event.flight_id} {late}")


def _entries(truth: Truth, departures: Mapping[str, float]) -> Iterator[Violation]:
    read_time = max((event.event_time or 0.0 for event in truth.seat_events), default=0.0)
    for entry in truth.entries:
        departure = departures.get(entry.flight_id)
        if entry.state in _WAITS and departure is not None and read_time > departure + ENDED_AFTER_SECONDS:
            yield Violation(CHECK, f"entry {entry.entry_id} waits for {entry.flight_id}, which has left")


def _released_by_the_waitlist(truth: Truth) -> Iterator[Violation]:
    for event in truth.seat_events:
        # A seat that it assigns replaces the passenger's former one.
        if event.from_state == "CONFIRMED" and event.actor == WAITLIST and event.reason != "MOVED":
            yield Violation(CHECK, f"the waitlist released the confirmed seat {event.seat_number} of {event.flight_id}")
