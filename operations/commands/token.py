"""`skyhigh token`: mints demo tokens for the local stack."""

from __future__ import annotations

import re
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from operations.tokens import TTL_SECONDS, mint

if TYPE_CHECKING:
    from google.protobuf.descriptor import FieldDescriptor


class Role(StrEnum):
    """The role in a token."""

    PASSENGER = "passenger"
    CUSTOMER = "customer"
    AGENT = "agent"
    OPERATIONS = "operations"
    SERVICE = "service"


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command("token")(token)


def token(
    role: Annotated[Role, typer.Option(help="Role of the token.")],
    sub: Annotated[
        str | None,
        typer.Option(
            "--sub", "--subject", metavar="NAME", help="Name of the agent, customer or service. Default: demo."
        ),
    ] = None,
    pnr: Annotated[str | None, typer.Option(metavar="PNR", help="Record locator of a passenger session.")] = None,
    passenger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ID:FLIGHT[:CABIN[:TYPE]]",
            help="A passenger on a flight; repeatable. Not needed: services look up the passengers of the locator. "
            "CABIN defaults to ECONOMY and TYPE to ADULT. Codes of special services follow the type: ADULT+INFT+WCHR.",
        ),
    ] = None,
    ttl_seconds: Annotated[
        int, typer.Option(min=1, max=30 * 86400, help="Seconds until the token expires.")
    ] = TTL_SECONDS,
) -> None:
    """Print only a token for the local stack."""
    if role is Role.PASSENGER:
        if sub is not None:
            raise typer.BadParameter("a passenger session has --pnr instead", param_hint="--sub")
        subject, claims = _passenger_session(pnr, passenger or [])
    else:
        for value, option in ((pnr, "--pnr"), (passenger, "--passenger")):
            if value:
                raise typer.BadParameter("only allowed with --role passenger", param_hint=option)
        subject, claims = "demo" if sub is None else sub, {}
        from services.auth import SUBJECT

        if not SUBJECT.fullmatch(subject):
            raise typer.BadParameter(
                f"{subject!r} is not 1 to 64 letters, digits, '.', '_', '@' or '-'", param_hint="--sub"
            )
    print(mint(role, subject, ttl_seconds=ttl_seconds, **claims))


def _passenger_session(pnr: str | None, passengers: list[str]) -> tuple[str, dict[str, Any]]:
    if pnr is None:
        raise typer.BadParameter("required by --role passenger", param_hint="--pnr")
    from skyhigh.checkin.v1 import checkin_service_pb2 as checkin

    if not _fits(checkin.ManifestPassenger.DESCRIPTOR.fields_by_name["pnr"], pnr):
        raise typer.BadParameter(
            f"{pnr!r} is not a letter and 5 letters or digits, without 0, 1, I and O", param_hint="--pnr"
        )
    return pnr, {"passengers": [_passenger(text) for text in passengers]} if passengers else {}


def _passenger(text: str) -> dict[str, Any]:
    """Parses `ID:FLIGHT[:CABIN[:TYPE[+CODE]…]]` by the rules of the contract."""
    from skyhigh.seat.v1 import seat_service_pb2 as seat

    def refuse(reason: str) -> typer.BadParameter:
        return typer.BadParameter(f"{text!r}: {reason}", param_hint="--passenger")

    parts = text.split(":")
    if not 2 <= len(parts) <= 4:
        raise refuse("expected ID:FLIGHT[:CABIN[:TYPE]]")
    passenger_id, flight_id = parts[:2]
    cabin, profile = (*parts[2:], *("", "")[len(parts) - 2 :])
    kind, *codes = (profile or "ADULT").split("+")
    fields = {**seat.SeatAssignment.DESCRIPTOR.fields_by_name, **seat.PassengerProfile.DESCRIPTOR.fields_by_name}
    cabins, kinds = seat.Seat.Cabin.keys()[1:], seat.PassengerProfile.Type.keys()[1:]
    if not _fits(fields["passenger_id"], passenger_id):
        raise refuse(f"ID {passenger_id!r} is not 1 to 64 letters, digits, '.', '_' or '-'")
    if not _fits(fields["flight_id"], flight_id):
        raise refuse(f"FLIGHT {flight_id!r} is not 3 to 40 letters, digits or '-'")
    if (cabin or "ECONOMY") not in cabins:
        raise refuse(f"CABIN {cabin!r} is not one of {', '.join(cabins)}")
    if kind not in kinds:
        raise refuse(f"TYPE {kind!r} is not one of {', '.join(kinds)}")
    for code in codes:
        if not _fits(fields["special_services"], code):
            raise refuse(f"service code {code!r} is not 4 capital letters")
    return {
        "id": passenger_id,
        "flight": flight_id,
        "cabin": cabin or "ECONOMY",
        "type": kind,
        "ssr": codes,
    }


def _fits(field: FieldDescriptor, text: str) -> bool:
    """Returns True if the text matches the pattern of this field in the contract."""
    from services.proto import pattern_of

    return re.fullmatch(pattern_of(field), text) is not None
