"""The waitlist is first come, first served, as its clients saw it.

An entry that joined before another one's call is older; a position never increases; a seat that an older entry asked
for is not assigned to a younger one. The wishes of an entry are those in its client's request, not in the database.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any, Final

from tests.system.checks.calls import ENTRY_CALLS, changed_holds, shown
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import EntryRow, Truth

CHECK: Final = "waitlist"


@dataclass(slots=True)
class _Joining:
    """The origin of an entry.

    It has the first call that can have created the entry, and the first response that showed it.
    """

    invoked: Operation
    returned: float
    shown: Operation


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns entries that did not get a seat in their turn."""
    joined = _joined(history)
    return [
        *_out_of_line(joined, truth),
        *_unwanted(joined, truth, changed_holds(history)),
        *_overtaken(joined, truth),
        *_positions(history),
    ]


def _joined(history: History) -> dict[str, _Joining]:
    by_key = history.by_key()
    found: dict[str, _Joining] = {}
    for operation in history.of_calls("JoinWaitlist"):
        for moment, entry in shown(operation, ENTRY_CALLS):
            entry_id = str(entry["entry_id"])
            first = operation
            if operation.request_id is not None:
                first = min(by_key[operation.principal, operation.request_id], key=lambda each: each.invoked)
            if entry_id not in found or moment < found[entry_id].returned:
                found[entry_id] = _Joining(first, moment, operation)
    return found


def _out_of_line(joined: Mapping[str, _Joining], truth: Truth) -> Iterator[Violation]:
    """If a call to join ended before another one began, its entry comes first."""
    by_flight: dict[str, list[tuple[EntryRow, _Joining]]] = defaultdict(list)
    for entry_id, joining in joined.items():
        if entry_id in truth.entry:
            by_flight[truth.entry[entry_id].flight_id].append((truth.entry[entry_id], joining))
    for flight_id, entries in by_flight.items():
        returned = sorted(entries, key=lambda each: each[1].returned)
        last: tuple[int, _Joining] | None = None
        position = 0
        for entry, joining in sorted(entries, key=lambda each: each[1].invoked.invoked):
            while position < len(returned) and returned[position][1].returned < joining.invoked.invoked:
                other, its_joining = returned[position]
                if last is None or other.number > last[0]:
                    last = (other.number, its_joining)
                position += 1
            if last is not None and entry.number < last[0]:
                yield Violation(
                    CHECK,
                    f"entry {entry.number} of {flight_id} joined after entry {last[0]}",
                    [last[1].shown, joining.invoked],
                )


def _unwanted(joined: Mapping[str, _Joining], truth: Truth, changed: set[str]) -> Iterator[Violation]:
    """An entry gets a seat that its client asked for, unless the passenger changed the offered hold."""
    facts = {(row.flight_id, row.seat_number): row for row in truth.waitlist_seats}
    for entry_id, joining in joined.items():
        entry = truth.entry.get(entry_id)
        seat = None if entry is None else facts.get((entry.flight_id, entry.seat_number or ""))
        if entry is None or seat is None or entry.state not in ("OFFERED", "ASSIGNED") or entry.hold_id in changed:
            continue
        if not _wants(joining.shown.request.get("preferences") or {}, seat.seat_number, seat.position, seat.cabin):
            text = f"entry {entry.number} of {entry.flight_id} got seat {seat.seat_number}, which it did not ask for"
            yield Violation(CHECK, text, [joining.shown])


def _overtaken(joined: Mapping[str, _Joining], truth: Truth) -> Iterator[Violation]:
    skipped = {(row.entry_id, row.seat_number) for row in truth.skips}
    facts = {(row.flight_id, row.seat_number): row for row in truth.waitlist_seats}
    by_flight: dict[str, list[EntryRow]] = defaultdict(list)
    for entry in sorted(truth.entries, key=lambda each: each.number):
        by_flight[entry.flight_id].append(entry)
    for entries in by_flight.values():
        for place, younger in enumerate(entries):
            seat = facts.get((younger.flight_id, younger.seat_number or ""))
            if younger.state not in ("OFFERED", "ASSIGNED") or seat is None or younger.match_time is None:
                continue
            for older in entries[:place]:
                # A later match replaced an earlier one, which was undone for a reason; so the entry may have been
                # matched before.
                waited = (
                    (older.fact_time or older.create_time or inf) < younger.match_time
                    and (older.end_time or inf) > younger.match_time
                    and (older.match_time or inf) > younger.match_time
                )
                if not waited or (older.entry_id, seat.seat_number) in skipped or older.entry_id not in joined:
                    continue
                joining = joined[older.entry_id].shown
                if older.cabin == seat.cabin and _wants(
                    joining.request.get("preferences") or {}, seat.seat_number, seat.position, seat.cabin
                ):
                    yield Violation(
                        CHECK,
                        f"seat {seat.seat_number} of {younger.flight_id} went to entry {younger.number}; "
                        f"entry {older.number} had asked for it",
                        [joining, *([joined[younger.entry_id].shown] if younger.entry_id in joined else [])],
                    )
                    break


def _wants(preferences: Mapping[str, Any], seat_number: str, position: str, cabin: str) -> bool:
    return (
        preferences.get("cabin", cabin) == cabin
        and (not preferences.get("positions") or position in preferences["positions"])
        and (not preferences.get("seat_numbers") or seat_number in preferences["seat_numbers"])
    )


def _positions(history: History) -> Iterator[Violation]:
    """A position never increases, and only a WAITING entry has one.

    Compares each read with those that had returned before its call.
    """
    lowest: dict[str, list[tuple[float, int, Operation]]] = defaultdict(list)
    for operation in sorted(history.of_calls("GetWaitlistEntry"), key=lambda each: each.invoked):
        for moment, entry in shown(operation, ENTRY_CALLS):
            entry_id, position = str(entry["entry_id"]), int(entry.get("position", 0))
            if (position > 0) != (entry.get("state") == "WAITING"):
                yield Violation(CHECK, f"an entry that is {entry.get('state')} has position {position}", [operation])
                continue
            if position == 0:
                continue
            before = [each for each in lowest[entry_id] if each[0] < operation.invoked]
            smaller = min(before, key=lambda each: each[1], default=None)
            if smaller is not None and smaller[1] < position:
                yield Violation(
                    CHECK, f"entry {entry_id} went from position {smaller[1]} to {position}", [smaller[2], operation]
                )
            after = [each for each in lowest[entry_id] if each[0] >= operation.invoked]
            lowest[entry_id] = [*([smaller] if smaller else []), *after, (moment, position, operation)]
