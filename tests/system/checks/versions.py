"""Versions that a client saw never decrease, and one version always shows one state.

A client's seat map never gets older (SEAT-12). All clients see the same map at one version of a flight. The listed
events of a seat are those of its history, from the first one without a gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from tests.system.checks.violation import Violation
from tests.system.history import LETTERS, History, Operation
from tests.system.truth import SeatEvent, Truth

CHECK: Final = "versions"
_MAPS: Final = ("GetSeatMap", "GetSeatMapJson")


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns maps with a wrong version.

    Such a map is older than an earlier one of its client, or differs from another map of its version.
    """
    return [*_going_back(history), *_two_maps(history), *_not_of_the_ledger(history, truth), *_listings(history, truth)]


def _maps(history: History) -> Iterator[tuple[Operation, str, int, dict[str, Any]]]:
    for operation in history.of_calls(*_MAPS):
        if operation.ok and operation.answer is not None:
            yield (
                operation,
                str(operation.request["flight_id"]),
                int(operation.answer.get("version", 0)),
                operation.answer,
            )


def _going_back(history: History) -> Iterator[Violation]:
    # By client and flight: the highest version, and the operations whose responses it may not have had yet.
    highest: dict[tuple[str, str], tuple[int, Operation]] = {}
    waiting: dict[tuple[str, str], list[tuple[float, int, Operation]]] = {}
    for operation, flight_id, version, answer in sorted(_maps(history), key=lambda each: each[0].invoked):
        name = (operation.client, flight_id)
        had = waiting.setdefault(name, [])
        for returned, seen, earlier in had:
            if returned < operation.invoked and (name not in highest or seen > highest[name][0]):
                highest[name] = (seen, earlier)
        waiting[name] = [each for each in had if each[0] >= operation.invoked]
        if name in highest and version < highest[name][0]:
            yield Violation(
                CHECK,
                f"{operation.client} had version {highest[name][0]} of {flight_id}, and then got {version}",
                [highest[name][1], operation],
            )
        known = int(operation.request.get("known_version", 0))
        if version < known or (answer.get("unchanged") and version != known):
            yield Violation(CHECK, f"knew version {known} of {flight_id}, and got {version}", [operation])
        waiting[name].append((operation.returned or operation.invoked, version, operation))


def _two_maps(history: History) -> Iterator[Violation]:
    """All maps of a version are equal, including snapshots of watches.

    `watches.py` checks the maps built from changes.
    """
    first: dict[tuple[str, int], tuple[str, Operation]] = {}
    for operation, flight_id, version, states in full_maps(history):
        known = first.setdefault((flight_id, version), (states, operation))
        if known[0] != states:
            yield Violation(CHECK, f"two maps of {flight_id} have version {version}", [known[1], operation])


def full_maps(history: History) -> Iterator[tuple[Operation, str, int, str]]:
    """Yields every whole map that a client received.

    As operation, flight, version, and a letter for each seat.
    """
    for operation, flight_id, version, answer in _maps(history):
        if "states" in answer:
            yield operation, flight_id, version, str(answer["states"])
    for operation in history.of_calls("WatchSeatMap"):
        for message in (operation.answer or {}).get("messages", ()):
            if "snapshot" in message:
                seat_map = message["snapshot"]
                yield operation, str(operation.request["flight_id"]), int(seat_map["version"]), str(seat_map["states"])


def _not_of_the_ledger(history: History, truth: Truth) -> Iterator[Violation]:
    """Each seat of a map had that state at some time.

    A map of the last version is the map at rest.
    """
    had: dict[str, list[set[str]]] = {}
    told: set[tuple[str, int, str]] = set()
    for operation, flight_id, version, states in full_maps(history):
        if (flight_id, version, states) in told:
            continue
        told.add((flight_id, version, states))
        seats = truth.seats_of_flight.get(flight_id, [])
        if len(seats) != len(states):
            yield Violation(CHECK, f"a map of {flight_id} has {len(states)} seats, not {len(seats)}", [operation])
            continue
        if flight_id not in had:
            had[flight_id] = [
                {"A", *(LETTERS[event.to_state] for event in truth.ledger.get((flight_id, seat.seat_number), ()))}
                for seat in seats
            ]
        wrong = [
            seat.seat_number
            for seat, letter, possible in zip(seats, states, had[flight_id], strict=True)
            if letter not in possible
        ]
        last = truth.version_of_map(flight_id)
        if version == last:
            wrong += [
                seat.seat_number for seat, letter in zip(seats, states, strict=True) if LETTERS[seat.state] != letter
            ]
        if wrong:
            yield Violation(CHECK, f"map {version} of {flight_id} shows {wrong[0]} as it never was", [operation])
        if version > last:
            yield Violation(CHECK, f"a map of {flight_id} has version {version}; the last is {last}", [operation])


def _listings(history: History, truth: Truth) -> Iterator[Violation]:
    for operation in history.of_calls("ListSeatEvents"):
        if not operation.ok or operation.answer is None or operation.request.get("page_token"):
            continue
        place = (str(operation.request["flight_id"]), str(operation.request["seat_number"]))
        ledger = truth.ledger.get(place, [])
        listed = operation.answer.get("events", ())
        if [_listed(each) for each in listed] != [_named(event) for event in ledger[: len(listed)]]:
            yield Violation(CHECK, f"the events of {place[1]} of {place[0]} are not those of the ledger", [operation])


def _listed(event: dict[str, Any]) -> tuple[str, ...]:
    return (
        str(event.get("version", "")),
        str(event.get("from_state", "")),
        str(event.get("to_state", "")),
        str(event.get("hold_id", "")),
        str(event.get("actor", "")),
        str(event.get("request_id", "")),
    )


def _named(event: SeatEvent) -> tuple[str, ...]:
    return (
        str(event.version),
        event.from_state,
        event.to_state,
        event.hold_id or "",
        event.actor,
        event.request_id or "",
    )
