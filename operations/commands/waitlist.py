"""`skyhigh waitlist`: prints a flight's waitlist and sets its mode of assignment."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.connections import CALL_TIMEOUT_SECONDS, Metadata, ask
from operations.terminal import print_table, table

if TYPE_CHECKING:
    from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub
    from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb
    from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

FlightId = Annotated[str, typer.Argument(metavar="FLIGHT", help="Such as SH101-2026-12-01.")]

PAGE_SIZE: Final = 100
STYLES: Final = {"WAITING": "yellow", "OFFERED": "bold magenta", "ASSIGNED": "green"}


class Mode(StrEnum):
    """How a released seat is assigned: at once, or as an offer."""

    AUTO = "auto"
    OFFER = "offer"


waitlist = typer.Typer(help="Waitlists of flights.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(waitlist, name="waitlist")


@waitlist.command()
def show(flight_id: FlightId) -> None:
    """Print a flight's waitlist in order of joining, including ended entries."""
    asyncio.run(_ask(lambda stub, metadata: _show(stub, metadata, flight_id)))


@waitlist.command()
def mode(
    flight_id: FlightId,
    how: Annotated[
        Mode, typer.Argument(metavar="auto|offer", help="auto assigns a seat at once, offer waits for acceptance.")
    ],
) -> None:
    """Set how a flight's released seats are assigned from now on. Existing offers stay."""
    asyncio.run(_ask(lambda stub, metadata: _set_mode(stub, metadata, flight_id, how)))


async def _ask(question: Callable[[WaitlistServiceStub, Metadata], Awaitable[None]]) -> None:
    from skyhigh.waitlist.v1.waitlist_service_pb2_grpc import WaitlistServiceStub

    await ask("waitlist", WaitlistServiceStub, question)


async def _show(stub: WaitlistServiceStub, metadata: Metadata, flight_id: str) -> None:
    from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub
    from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

    rows = table("POSITION", "PASSENGER", "STATE", "SEAT", "PREFERENCES", "JOINED", "ENTRY", numbers=("POSITION",))
    request = pb.ListWaitlistRequest(flight_id=flight_id, page_size=PAGE_SIZE)
    while True:
        page = await stub.ListWaitlist(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
        for entry in page.entries:
            state = pb.WaitlistEntry.State.Name(entry.state)
            rows.add_row(
                str(entry.position) if entry.position else "-",
                entry.passenger_id,
                f"[{STYLES[state]}]{state}[/]" if state in STYLES else state,
                entry.seat_number or "-",
                wishes(entry.preferences),
                entry.create_time.ToJsonString(),
                entry.entry_id,
            )
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    if not rows.row_count:
        await ask("seat", SeatServiceStub, lambda seats, metadata: _expect_flight(seats, metadata, flight_id))
    print_table(rows, nothing=f"The waitlist of {flight_id} has no entries.")


async def _expect_flight(stub: SeatServiceStub, metadata: Metadata, flight_id: str) -> None:
    """Reads the seat map of the flight. Raises the NOT_FOUND error of an unknown flight."""
    from skyhigh.seat.v1 import seat_service_pb2 as pb

    request = pb.GetSeatMapRequest(flight_id=flight_id)
    await stub.GetSeatMap(request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)


def wishes(preferences: pb.SeatPreferences) -> str:
    """Returns the seat preferences of an entry as one line."""
    from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

    positions = [pb.SeatPreferences.Position.Name(each).lower() for each in preferences.positions]
    parts = [" or ".join(positions), ", ".join(preferences.seat_numbers)]
    return "; ".join(part for part in parts if part) or "any seat"


async def _set_mode(stub: WaitlistServiceStub, metadata: Metadata, flight_id: str, how: Mode) -> None:
    from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

    wanted = {Mode.AUTO: pb.AUTO_CONFIRM, Mode.OFFER: pb.OFFER}[how]
    answer = await stub.SetWaitlistMode(
        pb.SetWaitlistModeRequest(flight_id=flight_id, mode=wanted), metadata=metadata, timeout=CALL_TIMEOUT_SECONDS
    )
    text = {
        pb.AUTO_CONFIRM: "assigned to waiting passengers at once",
        pb.OFFER: "offered to waiting passengers, who must accept them",
    }
    print(f"Released seats of {answer.flight_id} are {text[answer.mode]}.")
