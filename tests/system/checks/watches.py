"""Watches have no gaps: the messages of a watch add up to the map of their version.

A stream begins with a snapshot, or continues from the version that its client knows; versions increase from message to
message. The map from the messages is compared with every whole map of the same version that any client received, with
the seat history around that time, and, if the watch saw the last version, with the map at rest. A watch that stayed
open until rest has seen the last version.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from typing import Any, Final

from tests.system.checks.versions import full_maps
from tests.system.checks.violation import Violation
from tests.system.history import LETTERS, STREAMS, History, Operation
from tests.system.truth import SeatEvent, Truth

CHECK: Final = "watches"
# The history's times are those of statements; under faults a transaction may commit up to this much later.
COMMIT_SECONDS: Final = 30.0
# The number of messages between two comparisons with the seat history.
LEDGER_EVERY: Final = 16
# A watch shows a change within this time after the system is at rest.
REST_SECONDS: Final = 10.0


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns streams whose messages are out of order or do not add up."""
    maps = {(flight_id, version): (states, operation) for operation, flight_id, version, states in full_maps(history)}
    flights: dict[str, _Flight] = {}
    found: list[Violation] = []
    # The sum of the messages by client, flight and version: a reopened stream continues from there.
    known: dict[tuple[str, str, int], dict[str, str]] = {}
    rest = _rest(history)
    for operation in sorted(history.of_calls("WatchSeatMap"), key=lambda each: each.invoked):
        flight_id = str(operation.request["flight_id"])
        if flight_id not in flights:
            flights[flight_id] = _Flight(flight_id, truth, maps)
        found += _stream(operation, flights[flight_id], known)
        found += _late(operation, flight_id, truth, rest)
    return found


def _rest(history: History) -> float | None:
    """Returns the time from which nothing changed any more.

    It is the time of the mark, or else the end of the last call and the last fault.
    """
    marked = [mark.at for mark in history.marks if mark.kind == "rest"]
    if marked:
        return min(marked)
    ends = [each.returned for each in history if each.returned is not None and each.call not in STREAMS]
    return max([*ends, *(mark.at for mark in history.marks)], default=None)


def _stream(
    operation: Operation, flight: _Flight, known: dict[tuple[str, str, int], dict[str, str]]
) -> Iterator[Violation]:
    version = int(operation.request.get("known_version", 0))
    seats = known.get((operation.client, flight.flight_id, version))
    messages: list[dict[str, Any]] = (operation.answer or {}).get("messages", [])
    for position, message in enumerate(messages):
        at = int(message["version"])
        text = _misplaced(message, at, version)
        if text:
            yield Violation(CHECK, f"{text} of {flight.flight_id}", [operation])
            return
        version = at
        if "snapshot" in message:
            seats = flight.seats(str(message["snapshot"]["states"]))
        elif "changes" in message and seats is not None:
            seats = {**seats, **{number: LETTERS[state] for number, state in message["changes"].items()}}
        if seats is None:
            continue
        known[operation.client, flight.flight_id, version] = seats
        # Compared only at intervals and at the end, because a missing change stays missing.
        with_ledger = position % LEDGER_EVERY == 0 or position == len(messages) - 1
        text, other = flight.differs(seats, version, with_ledger=with_ledger)
        if text:
            yield Violation(CHECK, text, [operation, *other])
            return


def _misplaced(message: dict[str, Any], at: int, version: int) -> str:
    if at < version or (at == version and "changes" in message):
        return f"version {at} came after {version}"
    if "changes" in message and version == 0:
        return "changes came before a snapshot"
    # A heartbeat may have a later version: then the changes in between cancelled each other out, and the sum of the
    # messages is the map of that version, too.
    return ""


def _late(operation: Operation, flight_id: str, truth: Truth, rest: float | None) -> Iterator[Violation]:
    """A watch that is still open at rest has seen all changes."""
    messages: list[dict[str, Any]] = (operation.answer or {}).get("messages", [])
    if rest is None or operation.returned is None or operation.returned < rest + REST_SECONDS or not messages:
        return
    seen, last = int(messages[-1]["version"]), truth.version_of_map(flight_id)
    # A stream that was cut shortly before its end had no time to show the last changes.
    if operation.ok and seen < last:
        yield Violation(CHECK, f"it ended at version {seen} of {flight_id}, {last} was there at rest", [operation])


class _Flight:
    """The known maps of a flight: whole maps by version, and its changes in the order of their times.

    That is roughly the order of the versions. Transactions may commit in another order than their statements began, so
    a version is compared with the states within some time around it.
    """

    def __init__(self, flight_id: str, truth: Truth, maps: dict[tuple[str, int], tuple[str, Operation]]) -> None:
        self.flight_id = flight_id
        self._maps = maps
        rows = truth.seats_of_flight.get(flight_id, [])
        self._numbers = [row.seat_number for row in rows]
        self._at_rest = "".join(LETTERS[row.state] for row in rows)
        self._last_version = truth.version_of_map(flight_id)
        self._by_seat: dict[str, list[SeatEvent]] = {
            number: truth.ledger.get((flight_id, number), []) for number in self._numbers
        }
        every = (event for events in self._by_seat.values() for event in events)
        self._times = sorted(event.event_time for event in every if event.event_time is not None)

    def seats(self, states: str) -> dict[str, str]:
        """Returns a whole map by seat number."""
        return dict(zip(self._numbers, states, strict=False))

    def differs(self, seats: dict[str, str], version: int, *, with_ledger: bool) -> tuple[str, list[Operation]]:
        """Returns why the sum of a watch's messages is not the map of its version.

        Also returns another operation that shows it. The text is empty if the sum is right.
        """
        states = "".join(seats.get(number, "?") for number in self._numbers)
        whole = self._maps.get((self.flight_id, version))
        if whole is not None and whole[0] != states:
            return f"its messages up to version {version} of {self.flight_id} do not add up to the map", [whole[1]]
        if version == self._last_version and states != self._at_rest:
            return f"its messages up to the last version {version} of {self.flight_id} do not add up to the map", []
        wrong = self._impossible(seats, version) if with_ledger else ""
        if wrong:
            return f"at version {version} of {self.flight_id} it shows {wrong} as it was not at that time", []
        return "", []

    def _impossible(self, seats: dict[str, str], version: int) -> str:
        """Returns a seat that was not as shown at any time around a version.

        Returns "" if there is none.
        """
        if not self._times or version > len(self._times) + 1:
            return ""
        moment = self._times[max(0, version - 2)]
        for number, letter in seats.items():
            events = self._by_seat.get(number, [])
            times = [event.event_time or 0.0 for event in events]
            first = bisect_left(times, moment - COMMIT_SECONDS)
            last = bisect_right(times, moment + COMMIT_SECONDS)
            before = LETTERS[events[first - 1].to_state] if first else "A"
            if letter not in {before, *(LETTERS[event.to_state] for event in events[first:last])}:
                return number
        return ""
