"""Imports of manifests: the passengers and facts of a flight (CHK-1).

Each line of an import is checked against the flight as the import would leave it. A wrong line is rejected alone; the
others are written in one transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service.manifests import flights, locators
from checkin_service.manifests.flights import Flight
from checkin_service.manifests.manifest import Passenger, mark_booked, passengers_of, write
from checkin_service.manifests.manifest_lines import PASSENGER_CHECKED_IN, Lines
from services.db import Conn
from services.errors import FieldViolation, InvalidArgument

# Fields by which a check-in began; they can't change while it is live. Names, needs and addresses can.
FIXED_BY_CHECK_IN: Final = ("pnr", "type", "cabin", "fare", "accompanying_passenger_id")


async def import_passengers(conn: Conn, request: pb.ImportManifestRequest) -> pb.ImportManifestResponse:
    """Writes a flight's facts and its accepted passengers in one transaction.

    The response lists the rejected lines. Raises INVALID_FIELD or PASSENGER_CHECKED_IN if every line is rejected, and
    INVALID_FIELD if the flight's facts are wrong.
    """
    flight_id = request.flight_id
    # Imports of a flight run one after the other: each is checked against the manifest that the one before wrote.
    await flights.lock(conn, [flight_id])
    if request.HasField("flight"):
        flight = Flight.of(flight_id, request.flight)
        flight.refuse_other_day()
        await flights.write(conn, flight, replace=True)
    if await conn.fetchval("SELECT flight_id FROM flights WHERE flight_id = $1", flight_id) is None:
        raise InvalidArgument.of(FieldViolation("flight", f"must be given, because flight {flight_id} is not known"))
    lines = Lines(request.passengers)
    known = await passengers_of(conn, flight_id)
    asked = {n: Passenger.of(each, known.get(each.passenger_id)) for n, each in lines.accepted()}
    await _reject_what_check_ins_cannot_follow(conn, flight_id, known, asked, lines)
    _reject_misfits(known, asked, lines)
    bookings = await _reject_foreign_locators(conn, flight_id, known, asked, lines)
    await _reject_cancelled_bookings(conn, known, asked, lines)
    # Again, because the two checks before may have rejected the adult of an accepted infant.
    _reject_misfits(known, asked, lines)
    lines.refuse_if_none_is_left()
    passengers = [asked[n] for n, _ in lines.accepted()]
    changed = [each for each in passengers if known.get(each.passenger_id) != each]
    await write(conn, flight_id, changed, replace=True)
    for booking, its in _by_booking(passengers, bookings).items():
        # The event of the booking may come later. Until then the passenger could lose the booked seat at check-in.
        await mark_booked(conn, flight_id, its, booking=booking)
    added = sum(each.passenger_id not in known for each in changed)
    return pb.ImportManifestResponse(
        flight_id=flight_id,
        added=added,
        changed=len(changed) - added,
        unchanged=len(passengers) - len(changed),
        rejected=lines.rejected(),
    )


async def _reject_foreign_locators(
    conn: Conn, flight_id: str, known: Mapping[str, Passenger], asked: Mapping[int, Passenger], lines: Lines
) -> Mapping[str, str | None]:
    """Rejects the lines whose locator belongs to another party.

    That party would otherwise see and change the passenger's trip. Also rejects another locator for a passenger of a
    booking. Reserves the free locators for the imported party. Returns the booking key of each locator's owner; None
    for an imported party.
    """
    accepted = {n: each for n, each in asked.items() if lines.accepts(n)}
    parties = await locators.reserve_free(conn, [each.pnr for each in accepted.values()], booking=None)
    booked = await _booked(conn, flight_id)
    for n, each in accepted.items():
        booking = parties[each.pnr]
        if booking is not None and not locators.belongs_to(each.passenger_id, booking):
            wrong = (
                f"must not be the record locator of a booking without passenger {each.passenger_id}; import the "
                "passenger with the party's own locator"
            )
        elif each.passenger_id in booked and known[each.passenger_id].pnr != each.pnr:
            wrong = (
                f"must be the record locator of the booking of passenger {each.passenger_id}, "
                f"{known[each.passenger_id].pnr}"
            )
        else:
            continue
        lines.reject(n, FieldViolation("pnr", wrong))
    return parties


def _by_booking(passengers: Sequence[Passenger], bookings: Mapping[str, str | None]) -> dict[str, list[Passenger]]:
    """Groups the passengers with the locator of a booking by the key of that booking."""
    groups: dict[str, list[Passenger]] = {}
    for each in passengers:
        booking = bookings[each.pnr]
        if booking is not None:
            groups.setdefault(booking, []).append(each)
    return groups


async def _reject_cancelled_bookings(
    conn: Conn, known: Mapping[str, Passenger], asked: Mapping[int, Passenger], lines: Lines
) -> None:
    """Rejects the lines that would add a passenger of a cancelled booking again.

    The booking's fare was refunded, and its cancellation removed the passenger from the manifest. A flight that had
    departed kept the passenger; such a line adds no passenger and is not rejected.
    """
    added = {n: each for n, each in asked.items() if lines.accepts(n) and each.passenger_id not in known}
    bookings = {n: booking for n, each in added.items() if (booking := locators.booking_of(each.passenger_id))}
    cancelled = await locators.cancelled(conn, bookings.values())
    for n, booking in bookings.items():
        if booking in cancelled:
            wrong = (
                "must not be of a cancelled booking; import the passenger of a new booking with the id of that booking"
            )
            lines.reject(n, FieldViolation("passenger_id", wrong))


def _reject_misfits(known: Mapping[str, Passenger], asked: Mapping[int, Passenger], lines: Lines) -> None:
    """Rejects each line that would make the manifest inconsistent.

    A rejected line leaves its passenger as it was. That may make another line wrong, such as that of an infant whose
    adult is rejected, so the check runs again. Each round rejects at least one line, so the rounds end.
    """
    while True:
        accepted = {each.passenger_id: n for n, each in asked.items() if lines.accepts(n)}
        after = {**known, **{passenger_id: asked[n] for passenger_id, n in accepted.items()}}
        misfits = list(_misfits(after, accepted))
        if not misfits:
            return
        for n, violation in misfits:
            lines.reject(n, violation)


def _misfits(after: Mapping[str, Passenger], accepted: Mapping[str, int]) -> Iterator[tuple[int, FieldViolation]]:
    """Yields each inconsistency after the import, with the line that causes it.

    An inconsistency that no line of this import causes stays as it is, such as an infant whose adult's booking was
    cancelled.
    """
    infants: dict[str, str] = {}
    for each in after.values():
        if each.type != "INFANT":
            if each.accompanying_passenger_id is not None and each.passenger_id in accepted:
                description = "must be left out: only an infant travels on an adult's lap"
                yield accepted[each.passenger_id], FieldViolation("accompanying_passenger_id", description)
            continue
        adult = after.get(each.accompanying_passenger_id or "")
        wrong: tuple[Passenger, FieldViolation] | None = None
        other: Passenger | None = adult
        field = "accompanying_passenger_id"
        if each.accompanying_passenger_id is None:
            wrong = each, FieldViolation(field, "must be given: an infant travels on an adult's lap")
        elif adult is None:
            wrong = (
                each,
                FieldViolation(field, "must be the id of a passenger of this flight whose line is not rejected"),
            )
        elif adult.type != "ADULT":
            at_adult = each.passenger_id not in accepted
            wrong = (
                each,
                (
                    FieldViolation("type", f"must be ADULT, because infant {each.passenger_id} travels on this lap")
                    if at_adult
                    else FieldViolation(
                        field, f"must be the id of an adult; {adult.passenger_id} is a passenger {adult.type}"
                    )
                ),
            )
        elif adult.pnr != each.pnr:
            party = f"infant {each.passenger_id} and its adult {adult.passenger_id}"
            wrong = each, FieldViolation("pnr", f"must be the same record locator for {party}")
        elif infants.setdefault(adult.passenger_id, each.passenger_id) != each.passenger_id:
            other = after[infants[adult.passenger_id]]
            taken = f"passenger {adult.passenger_id} already has an infant on the lap"
            wrong = each, FieldViolation(field, f"must be the id of another adult: {taken}")
        for blamed in (each, other):
            if wrong is not None and blamed is not None and blamed.passenger_id in accepted:
                yield accepted[blamed.passenger_id], wrong[1]
                break


async def _reject_what_check_ins_cannot_follow(
    conn: Conn, flight_id: str, known: Mapping[str, Passenger], asked: Mapping[int, Passenger], lines: Lines
) -> None:
    unfit = {
        n: [
            FieldViolation(field, "can't change while the passenger is checked in; cancel the check-in first")
            for field in FIXED_BY_CHECK_IN
            if getattr(known[each.passenger_id], field) != getattr(each, field)
        ]
        for n, each in asked.items()
        if each.passenger_id in known
    }
    rows = await conn.fetch(
        """
        SELECT passenger_id FROM check_ins
        WHERE flight_id = $1 AND passenger_id = ANY($2::text[]) AND state <> 'CANCELLED'
        """,
        flight_id,
        [asked[n].passenger_id for n, fields in unfit.items() if fields],
    )
    checked_in = {row["passenger_id"] for row in rows}
    for n, fields in unfit.items():
        if fields and asked[n].passenger_id in checked_in:
            lines.reject(n, *fields, reason=PASSENGER_CHECKED_IN)


async def _booked(conn: Conn, flight_id: str) -> set[str]:
    """Returns the passengers of a flight whose seats a booking includes."""
    rows = await conn.fetch(
        "SELECT passenger_id FROM passengers WHERE flight_id = $1 AND booking IS NOT NULL", flight_id
    )
    return {row["passenger_id"] for row in rows}
