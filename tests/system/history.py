"""The requests of a run's clients, the responses, and their times: the evidence for the checks.

Times are `time.monotonic()` of this machine, which all processes of a run share. Requests and responses are messages as
dictionaries with the field names of the proto (`seat_number`, not `seatNumber`), enums by name, int64 as strings and
timestamps as RFC 3339. `as_record` makes them; a JSON response of the gateway is parsed into the message first. Seat
maps are kept compact (`SeatMap` below); tokens are left out.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TextIO

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from skyhigh.seat.v1 import seat_service_pb2 as seat_pb

Outcome = Literal["ok", "refused", "unknown"]

# One letter for each state of a seat in a recorded map.
LETTERS: Final[Mapping[str, str]] = {"AVAILABLE": "A", "HELD": "H", "CONFIRMED": "C", "OFFERED": "O", "BLOCKED": "B"}
STATES: Final[Mapping[str, str]] = {letter: state for state, letter in LETTERS.items()}
_LETTER_OF_NUMBER: Final = {seat_pb.Seat.State.Value(state): letter for state, letter in LETTERS.items()}

# Streams: one operation per connection, with its messages in the answer.
STREAMS: Final = frozenset({"WatchSeatMap", "WatchBooking", "WatchCheckIn"})
_SECRETS: Final = ("token",)


@dataclasses.dataclass(slots=True)
class Operation:
    """One call of one client.

    A stream (`STREAMS`) is one operation from its call to its end. Its answer is `{"messages": [...]}`, and each
    message has its time of arrival in `at`. The outcome is that of the end: "ok" if the client or the server ended the
    stream normally, "refused" with the server's reason, "unknown" if the connection was lost.
    """

    index: int
    client: str
    """The player. One client awaits each call before it makes the next, except for its streams."""
    principal: str
    """The owner of the token, as the seat history names it:

    `passenger:XK4T7Q`, `customer:5d0c…`, `agent:desk`; "" without a token.
    """
    call: str
    """The RPC without its service, such as `HoldSeat`."""
    request: dict[str, Any]
    request_id: str | None
    """The idempotency key, from the body or the header."""
    invoked: float
    returned: float | None = None
    """The time at which the client learned the outcome; None if it never did."""
    outcome: Outcome = "unknown"
    code: str | None = None
    """The name of the gRPC code of a refusal or of a lost call."""
    reason: str | None = None
    """`ErrorInfo.reason` of a refusal."""
    answer: dict[str, Any] | None = None
    """The response; for a refusal the metadata of its ErrorInfo."""

    @property
    def ok(self) -> bool:
        """Whether the client received a success."""
        return self.outcome == "ok"

    @property
    def end(self) -> float:
        """The time after which the call has no further effect: infinity for an unknown outcome."""
        return self.returned if self.returned is not None and self.outcome != "unknown" else float("inf")

    @property
    def role(self) -> str:
        """The principal's role, such as `passenger`; "" without a token."""
        return self.principal.partition(":")[0]

    def __str__(self) -> str:
        end = "…" if self.returned is None else f"{self.returned:.3f}"
        key = f" key={self.request_id}" if self.request_id else ""
        about = " ".join(f"{name}={self.request[name]}" for name in _NAMING if self.request.get(name))
        said = (
            self.outcome if self.reason is None and self.code is None else f"{self.outcome} {self.reason or self.code}"
        )
        return f"#{self.index} {self.principal or '-'} {self.call} {about}{key} [{self.invoked:.3f}, {end}] {said}"


# The fields that name the resources of a call.
_NAMING: Final = (
    "flight_id", "seat_number", "passenger_id", "hold_id", "booking_id", "checkin_id", "entry_id", "intent_id", "pnr",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """An event of the run at a time: a fault that began or ended, or a phase of the run."""

    at: float
    kind: str
    text: str


class History:
    """The operations of a run in the order of their invocation.

    They are kept in memory and, with a path, written as JSON lines. An operation is written when it ends; `close`
    writes those that never ended.
    """

    def __init__(self, path: Path | None = None, **about: Any) -> None:
        self.operations: list[Operation] = []
        self.marks: list[Mark] = []
        self.layouts: dict[str, tuple[str, ...]] = {}
        """The seat numbers of each cabin layout, in the order of the letters of a recorded map."""
        self.about: dict[str, Any] = {"monotonic": time.monotonic(), "unix": time.time(), **about}
        """The run: its seed and settings, and one moment by both clocks."""
        self._open: dict[int, Operation] = {}
        self._file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w")
            self._write({"about": self.about})

    def __len__(self) -> int:
        return len(self.operations)

    def __iter__(self) -> Iterator[Operation]:
        return iter(self.operations)

    def __enter__(self) -> History:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def begin(
        self,
        *,
        client: str,
        principal: str,
        call: str,
        request: Message | dict[str, Any],
        request_id: str | None = None,
    ) -> Operation:
        """Records that a client makes a call now.

        Without `request_id` the key is the request's own.
        """
        asked = self.record(request) if isinstance(request, Message) else request
        operation = Operation(
            index=len(self.operations),
            client=client,
            principal=principal,
            call=call,
            request=asked,
            request_id=(request_id or asked.get("request_id") or "").lower() or None,
            invoked=time.monotonic(),
        )
        self.operations.append(operation)
        self._open[operation.index] = operation
        return operation

    def end(
        self,
        operation: Operation,
        outcome: Outcome,
        *,
        code: str | None = None,
        reason: str | None = None,
        answer: Message | dict[str, Any] | None = None,
    ) -> None:
        """Records how a call ended, now."""
        operation.returned = time.monotonic()
        operation.outcome, operation.code, operation.reason = outcome, code, reason
        operation.answer = self.record(answer) if isinstance(answer, Message) else answer
        self._open.pop(operation.index, None)
        self._write(dataclasses.asdict(operation))

    def fail(self, operation: Operation, error: grpc.RpcError, *, messages: list[dict[str, Any]] | None = None) -> None:
        """Records that a call ended with an error.

        `messages` are those that a stream had received before.
        """
        outcome, code, reason, metadata = outcome_of(error)
        answer: dict[str, Any] = dict(metadata)
        self.end(
            operation, outcome, code=code, reason=reason, answer=answer | {"messages": messages} if messages else answer
        )

    def append(self, operation: Operation) -> None:
        """Adds a complete operation; its index becomes its position."""
        operation.index = len(self.operations)
        self.operations.append(operation)
        self._write(dataclasses.asdict(operation))

    def mark(self, kind: str, text: str) -> None:
        """Records an event of the run that happens now."""
        mark = Mark(time.monotonic(), kind, text)
        self.marks.append(mark)
        self._write({"mark": dataclasses.asdict(mark)})

    def record(self, message: Message) -> dict[str, Any]:
        """Converts a message to a dictionary.

        Seat maps become compact, and their layouts are kept.
        """
        return as_record(message, self._layout)

    def close(self) -> None:
        """Writes the operations that never ended, and closes the file."""
        for operation in self._open.values():
            self._write(dataclasses.asdict(operation))
        self._open.clear()
        if self._file is not None:
            self._file.close()
            self._file = None

    @classmethod
    def load(cls, *paths: Path) -> History:
        """Reads the files of a run, one per process that played.

        Sorts and numbers their operations.
        """
        history = cls()
        found: list[Operation] = []
        for path in paths:
            with path.open() as lines:
                for text in lines:
                    line = json.loads(text)
                    if "about" in line:
                        history.about = line["about"]
                    elif "mark" in line:
                        history.marks.append(Mark(**line["mark"]))
                    elif "layout" in line:
                        history.layouts[line["layout"]] = tuple(line["seat_numbers"])
                    else:
                        found.append(Operation(**line))
        history.extend(found)
        return history

    def extend(self, operations: Iterable[Operation]) -> None:
        """Adds operations in the order of their invocation, and numbers them."""
        for operation in sorted(operations, key=lambda each: (each.invoked, each.index)):
            self.append(operation)

    def only(self, wanted: Callable[[Operation], bool]) -> History:
        """Returns the part of the history whose operations are wanted.

        They keep their numbers.
        """
        part = History(**self.about)
        part.layouts, part.marks = self.layouts, self.marks
        part.operations = [operation for operation in self.operations if wanted(operation)]
        return part

    def of_calls(self, *calls: str) -> Iterator[Operation]:
        """Returns the operations of these RPCs."""
        return (operation for operation in self.operations if operation.call in calls)

    def by_key(self) -> dict[tuple[str, str], list[Operation]]:
        """Returns the operations with a key, by principal and key.

        These are the first request and its repeats, in the order of invocation.
        """
        groups: dict[tuple[str, str], list[Operation]] = defaultdict(list)
        for operation in self.operations:
            if operation.request_id is not None:
                groups[operation.principal, operation.request_id].append(operation)
        return groups

    def about_seat(self, flight_id: str, seat_number: str) -> list[Operation]:
        """Returns the operations that name a seat in their request or response."""
        return [operation for operation in self.operations if (flight_id, seat_number) in seats_named(operation)]

    def about_id(self, identifier: str) -> list[Operation]:
        """Returns the operations that name an id, such as a passenger's, in their request or response."""
        return [
            operation
            for operation in self.operations
            if identifier in strings_in(operation.request) or identifier in strings_in(operation.answer)
        ]

    def _layout(self, layout_id: str, seat_numbers: tuple[str, ...]) -> None:
        if layout_id not in self.layouts:
            self.layouts[layout_id] = seat_numbers
            self._write({"layout": layout_id, "seat_numbers": seat_numbers})

    def _write(self, line: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line, separators=(",", ":")) + "\n")


def as_record(message: Message, layout: Callable[[str, tuple[str, ...]], None] | None = None) -> dict[str, Any]:
    """Converts a message to a dictionary, without tokens.

    In a `SeatMap`, the string `states` replaces `seats` and `cabins`: one of `LETTERS` per seat, in the order of the
    map. `layout` receives that order.
    """
    if isinstance(message, seat_pb.SeatMap):
        return _map_record(message, layout)
    if isinstance(message, seat_pb.SeatMapUpdate):
        record: dict[str, Any] = {"version": str(message.version)}
        kind = message.WhichOneof("update")
        if kind == "snapshot":
            record["snapshot"] = _map_record(message.snapshot, layout)
        elif kind == "changes":
            record["changes"] = {
                change.seat_number: seat_pb.Seat.State.Name(change.state) for change in message.changes.seats
            }
        elif kind is not None:
            record[kind] = {}
        return record
    record = MessageToDict(message, preserving_proto_field_name=True)
    for secret in _SECRETS:
        record.pop(secret, None)
    return record


def _map_record(seat_map: seat_pb.SeatMap, layout: Callable[[str, tuple[str, ...]], None] | None) -> dict[str, Any]:
    record: dict[str, Any] = {
        "flight_id": seat_map.flight_id,
        "layout_id": seat_map.layout_id,
        "version": str(seat_map.version),
    }
    if seat_map.HasField("last_updated"):
        record["last_updated"] = seat_map.last_updated.ToJsonString()
    if seat_map.unchanged:
        record["unchanged"] = True
    else:
        record["states"] = "".join(_LETTER_OF_NUMBER.get(seat.state, "?") for seat in seat_map.seats)
        if layout is not None:
            layout(seat_map.layout_id, tuple(seat.seat_number for seat in seat_map.seats))
    return record


def outcome_of(error: grpc.RpcError) -> tuple[Outcome, str, str | None, dict[str, str]]:
    """Returns what a client knows after an error: outcome, code, reason and metadata.

    The outcome is "refused" if a service or the gateway answered with a reason, except an exceeded deadline. Any other
    error comes from the transport: the call may have had its effect, or may still have it.
    """
    code = error.code().name
    given: Any = error.trailing_metadata()
    trailers = dict(given or ())
    details = trailers.get("grpc-status-details-bin")
    if not isinstance(details, bytes):
        return "unknown", code, None, {}
    for detail in status_pb2.Status.FromString(details).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            outcome: Outcome = "unknown" if info.reason == "DEADLINE_EXCEEDED" else "refused"
            return outcome, code, info.reason, dict(info.metadata)
    return "unknown", code, None, {}


def seats_named(operation: Operation) -> set[tuple[str, str]]:
    """Returns the seats in the request and the response of an operation.

    As (flight, seat number). Maps name none.
    """
    return {*_seats_in(operation.request), *_seats_in(operation.answer)}


def _seats_in(record: Any) -> Iterator[tuple[str, str]]:
    if isinstance(record, dict):
        if isinstance(record.get("flight_id"), str) and isinstance(record.get("seat_number"), str):
            yield record["flight_id"], record["seat_number"]
        for value in record.values():
            yield from _seats_in(value)
    elif isinstance(record, list):
        for value in record:
            yield from _seats_in(value)


def strings_in(record: Any) -> set[str]:
    """Returns every string in a record, except the keys of dictionaries."""
    found: set[str] = set()
    waiting = [record]
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return found
