"""`skyhigh manifest`: imports the passengers of flights from a file.

docs/manifest.md describes the columns of the file.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from operations.connections import channel_to, metadata_of
from operations.manifest_file import Fault, FileError, Flight, read
from operations.terminal import fail

if TYPE_CHECKING:
    import grpc
    from skyhigh.checkin.v1 import checkin_service_pb2 as pb
    from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

CALL_TIMEOUT_SECONDS: Final = 30
_PASSENGER: Final = re.compile(r"passengers\[(\d+)\]\.?(.*)")
_CAPITAL: Final = re.compile(r"[A-Z]")

manifest = typer.Typer(help="Passengers of flights.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(manifest, name="manifest")


@manifest.callback()
def _group() -> None:
    """Passengers of flights."""


@manifest.command("import")
def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE", exists=True, dir_okay=False, help="A .csv or .json file.")],
    flight: Annotated[
        str | None,
        typer.Option(metavar="FLIGHT", help="Import only this flight; rows without a flight_id belong to it."),
    ] = None,
) -> None:
    """Import manifests. Wrong lines are rejected, the others imported. Importing again changes nothing.

    FILE has a row for each passenger: CSV with a header, or a JSON array of objects. Its columns are flight_id,
    passenger_id, pnr, given_name, last_name; type (ADULT, CHILD, INFANT), cabin (FIRST, BUSINESS, PREMIUM_ECONOMY,
    ECONOMY), fare (BASIC, STANDARD, FLEX, BUSINESS), special_services (WCHR+BLND), accompanying_passenger_id,
    contact_email. An empty cell leaves the value of a known passenger unchanged; cleared_fields
    (special_services+contact_email) deletes it.

    A new flight needs flight_number, origin, destination, departure_time, arrival_time (2026-12-01T09:30:00Z)
    in at least one row, and may have departure_date, gate, check_in_opens_before_minutes,
    check_in_closes_before_minutes, boarding_before_minutes.

    Wrong fields are printed by line. Ends with 1 if a line was rejected or a flight was not imported.
    """
    try:
        flights = read(file, flight)
    except FileError as error:
        fail(f"{file}: {error}; nothing was imported")
    if not flights:
        fail(f"{file} has no passenger of {flight or 'any flight'}")
    if not asyncio.run(_import(file, flights)):
        raise typer.Exit(1)


async def _import(file: Path, flights: Iterable[Flight]) -> bool:
    """Imports the flights and prints the outcomes; returns True if no line had a fault."""
    from skyhigh.checkin.v1.checkin_service_pb2_grpc import CheckInServiceStub

    all_imported = True
    async with channel_to("checkin") as channel:
        stub = CheckInServiceStub(channel)
        for flight in flights:
            outcome, faults = await _import_one(stub, flight)
            faults = [*flight.faults, *faults]
            all_imported &= not faults
            for fault in sorted(faults, key=lambda fault: fault.line):
                print(f"{file}:{fault.line}: {fault}", file=sys.stderr)
            if outcome:
                rejected = f", {lines} rejected" if (lines := len({fault.line for fault in faults})) else ""
                print(f"{outcome}{rejected}")
            else:
                print(
                    f"{flight.request.flight_id or 'rows without a flight_id'}: nothing was imported", file=sys.stderr
                )
    return all_imported


async def _import_one(stub: CheckInServiceStub, flight: Flight) -> tuple[str, list[Fault]]:
    """Imports a flight; returns the outcome and the faults that the service found.

    The outcome is empty if nothing was imported.
    """
    import grpc

    if not flight.lines:
        return "", []
    metadata = metadata_of("operations", "manifest")
    try:
        answer = await stub.ImportManifest(flight.request, metadata=metadata, timeout=CALL_TIMEOUT_SECONDS)
    except grpc.aio.AioRpcError as error:
        return "", list(_faults(flight, error))
    outcome = f"{answer.flight_id}: {answer.added} added, {answer.changed} changed, {answer.unchanged} unchanged"
    return outcome, list(_rejected(flight, answer))


def _rejected(flight: Flight, answer: pb.ImportManifestResponse) -> Iterator[Fault]:
    """Yields the wrong fields of the rejected passengers, as faults of the file's lines."""
    for each in answer.rejected:
        for wrong in each.wrong_fields:
            column = _CAPITAL.sub(lambda letter: f"_{letter[0].lower()}", wrong.field)
            yield Fault(flight.lines[each.index], column, f"{wrong.value!r} {wrong.description}")


def _faults(flight: Flight, error: grpc.aio.AioRpcError) -> Iterator[Fault]:
    """Yields the field violations of an error response as faults of the file's lines.

    Yields the error itself, as a fault of the flight's first line, if it names no field.
    """
    from google.rpc import error_details_pb2, status_pb2

    details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    bad_request = error_details_pb2.BadRequest()
    for detail in status_pb2.Status.FromString(bytes(details)).details:
        if detail.Is(bad_request.DESCRIPTOR):
            detail.Unpack(bad_request)
    for violation in bad_request.field_violations:
        match = _PASSENGER.fullmatch(violation.field)
        if match and int(match[1]) < len(flight.lines):
            yield Fault(flight.lines[int(match[1])], match[2], violation.description)
        else:
            yield Fault(flight.first_line, violation.field.removeprefix("flight."), violation.description)
    if not bad_request.field_violations:
        yield Fault(
            flight.first_line, "", f"the check-in service responded with {error.code().name}: {error.details()}"
        )
