"""`skyhigh seats`: draws the cabin of a flight, or prints the ledger of a seat."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import fail, print_table, table

if TYPE_CHECKING:
    from rich.text import Text
    from skyhigh.seat.v1 import seat_service_pb2 as pb
    from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub


PAGE_SIZE: Final = 100
# Each state is drawn as its first letter. A state that is missing here is drawn without a style.
STYLES: Final = {
    "AVAILABLE": "green",
    "HELD": "bold yellow",
    "CONFIRMED": "bold red",
    "OFFERED": "bold magenta",
    "BLOCKED": "dim",
}


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command()(seats)


def seats(
    flight_id: Annotated[str, typer.Argument(metavar="FLIGHT", help="Such as SH101-2026-12-01.")],
    seat_number: Annotated[str | None, typer.Argument(metavar="[SEAT]", help="Such as 12A: print its ledger.")] = None,
) -> None:
    """Draw the cabin of a flight with the state of each seat; with SEAT, print the ledger of this seat."""
    asyncio.run(_ask(lambda stub, metadata: _show(stub, metadata, flight_id, seat_number)))


async def _ask(question: Callable[[SeatServiceStub, Metadata], Awaitable[None]]) -> None:
    from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

    await ask("seat", SeatServiceStub, question)


async def _show(stub: SeatServiceStub, metadata: Metadata, flight_id: str, seat_number: str | None) -> None:
    if seat_number is None:
        await _draw(stub, metadata, flight_id)
    else:
        await _list_events(stub, metadata, flight_id, seat_number.upper())


async def _draw(stub: SeatServiceStub, metadata: Metadata, flight_id: str) -> None:
    from rich.console import Console
    from rich.text import Text
    from skyhigh.seat.v1 import seat_service_pb2 as pb

    request = pb.GetSeatMapRequest(flight_id=flight_id)
    seat_map = await stub.GetSeatMap(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    console = Console(highlight=False)
    console.print(
        f"{seat_map.flight_id}  {seat_map.layout_id}  version {seat_map.version}  "
        f"last changed {seat_map.last_updated.ToJsonString()}",
        soft_wrap=True,
    )
    states = {seat.seat_number: pb.Seat.State.Name(seat.state) for seat in seat_map.seats}
    for cabin in seat_map.cabins:
        console.print(f"\n{pb.Seat.Cabin.Name(cabin.cabin)}", style="bold")
        for line in cabin_lines(cabin, states):
            console.print(line)
    counts = Counter(states.values())
    legend = Text("\n")
    for state in [*STYLES, *sorted(counts.keys() - STYLES.keys())]:
        legend.append(state[0], STYLES.get(state, ""))
        legend.append(f" {state.lower()} {counts[state]}   ")
    legend.append(f"all {len(states)}")
    console.print(legend)


def cabin_lines(cabin: pb.SeatMap.Cabin, states: dict[str, str]) -> list[Text]:
    """Returns one line for the letters and one for each row, with a gap for each aisle.

    `states` is by seat number.
    """
    from rich.text import Text

    width = len(str(max(cabin.rows, default=0))) + 2
    gaps = {letter: "   " if letter in cabin.aisles else " " for letter in cabin.letters}
    lines = [Text(" " * width + "".join(letter + gaps[letter] for letter in cabin.letters).rstrip(), "dim")]
    for row in cabin.rows:
        line = Text(f"{row:>{width - 2}}  ", "dim")
        for letter in cabin.letters:
            state = states.get(f"{row}{letter}")
            line.append(state[0] if state is not None else " ", STYLES.get(state or "", ""))
            line.append(gaps[letter])
        line.rstrip()
        lines.append(line)
    return lines


async def _list_events(stub: SeatServiceStub, metadata: Metadata, flight_id: str, seat_number: str) -> None:
    from skyhigh.seat.v1 import seat_service_pb2 as pb

    from services.proto import pattern_of

    pattern = pattern_of(pb.ListSeatEventsRequest.DESCRIPTOR.fields_by_name["seat_number"])
    if not re.fullmatch(pattern, seat_number):
        fail(f"{seat_number!r} is not a seat number such as 12A")
    columns = ("VERSION", "TIME", "FROM", "TO", "REASON", "ACTOR", "HOLD", "REQUEST")
    rows = table(*columns, numbers=("VERSION",))
    request = pb.ListSeatEventsRequest(flight_id=flight_id, seat_number=seat_number, page_size=PAGE_SIZE)
    while True:
        page = await stub.ListSeatEvents(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        for event in page.events:
            from_state, to_state = pb.Seat.State.Name(event.from_state), pb.Seat.State.Name(event.to_state)
            rows.add_row(
                str(event.version),
                event.time.ToJsonString(),
                from_state,
                f"[{STYLES.get(to_state, '')}]{to_state}[/]" if to_state in STYLES else to_state,
                event.reason,
                event.actor,
                event.hold_id or "-",
                event.request_id or "-",
            )
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    print_table(rows, nothing=f"Seat {seat_number} of {flight_id} has no transitions.")
