"""Entitlement: whether a passenger may hold, keep or confirm a seat (SEAT-17).

The copy of the manifest and the rules of the layout decide. The check-in service owns the manifest. Its copy here
(`manifest_copy.py`) is read under the shared lock of `lock_seats(with_manifests=True)`, so that no passenger's
entitlement ends between this check and the commit. The profile in a request counts only for passengers without a row,
such as those of a booking that is not paid yet.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import asyncpg
from skyhigh.seat.v1.seat_service_pb2 import PassengerProfile, Seat

from seat_service import refusals
from seat_service.requests import AskedSeat, FlightPassenger, OnHold, Person
from seat_service.rules import eligibility
from services.db import Conn
from services.errors import Refusal

# A condition for statements with `holds` and `request`: true if a seat of the hold has lost its entitlement, so that
# the hold must not be confirmed or extended.
REVOKED: Final = """EXISTS (
    SELECT FROM hold_seats
    WHERE hold_seats.hold_id = holds.hold_id
      AND ((SELECT reason FROM cancelled_flights WHERE flight_id = hold_seats.flight_id) IS NOT NULL
           OR coalesce((SELECT departure_time FROM departures WHERE flight_id = hold_seats.flight_id)
                       <= statement_timestamp(), false)
           OR coalesce((SELECT passengers.ended OR passengers.type = 'INFANT' OR passengers.pnr <> request.locator
                        FROM passengers
                        WHERE passengers.flight_id = hold_seats.flight_id
                          AND passengers.passenger_id = hold_seats.passenger_id),
                       request.locator IS NOT NULL)))"""


@dataclass(frozen=True, slots=True)
class Passenger:
    """A passenger of this service's copy of the manifest."""

    flight_id: str
    passenger_id: str
    pnr: str
    person: Person
    ended: bool


def locator(actor: str) -> str | None:
    """Returns the locator of a passenger session; None for other principals."""
    return actor.removeprefix("passenger:") if actor.startswith("passenger:") else None


async def passengers(conn: Conn, asked: Iterable[FlightPassenger]) -> dict[FlightPassenger, Passenger]:
    """Returns those of the passengers that have a row, by flight and passenger id."""
    ordered = sorted(set(asked))
    rows = await conn.fetch(
        """
        SELECT asked.flight_id, asked.passenger_id, passenger.pnr, passenger.cabin, passenger.type,
               passenger.special_services, passenger.ended
        FROM unnest($1::text[], $2::text[]) AS asked (flight_id, passenger_id)
        CROSS JOIN LATERAL (
            SELECT passengers.pnr, passengers.cabin, passengers.type, passengers.special_services, passengers.ended
            FROM passengers
            WHERE passengers.flight_id = asked.flight_id AND passengers.passenger_id = asked.passenger_id LIMIT 1
        ) AS passenger
        """,
        [flight_id for flight_id, _ in ordered],
        [passenger_id for _, passenger_id in ordered],
    )
    return {(row["flight_id"], row["passenger_id"]): _passenger(row) for row in rows}


async def party(conn: Conn, flight_id: str, *, pnr: str | None, passenger_ids: Collection[str]) -> list[Passenger]:
    """Returns the named passengers of a flight, or all of a locator.

    Without `passenger_ids` these are the passengers of `pnr` whose entitlement has not ended. Raises
    PASSENGER_NOT_FOUND if a named passenger is not on the flight, is no longer entitled to a seat, or belongs to
    another locator than `pnr`.
    """
    if passenger_ids:
        found = await passengers(conn, [(flight_id, passenger_id) for passenger_id in passenger_ids])
        if len(found) < len(set(passenger_ids)) or any(
            each.ended or pnr not in (None, each.pnr) for each in found.values()
        ):
            raise refusals.passenger_not_found()
        return list(found.values())
    if pnr is None:
        return []
    rows = await conn.fetch(
        """
        SELECT flight_id, passenger_id, pnr, cabin, type, special_services, ended
        FROM passengers WHERE flight_id = $1 AND pnr = $2 AND NOT ended
        """,
        flight_id,
        pnr,
    )
    return [_passenger(row) for row in rows]


def _passenger(row: asyncpg.Record) -> Passenger:
    person = Person(
        PassengerProfile.Type.Value(row["type"]), frozenset(row["special_services"]), Seat.Cabin.Value(row["cabin"])
    )
    return Passenger(row["flight_id"], row["passenger_id"], row["pnr"], person, row["ended"])


async def refusals_of(conn: Conn, requests: Sequence[tuple[str, Sequence[AskedSeat]]]) -> dict[int, Refusal]:
    """Returns, by position, the refusals of requests without entitlement.

    Such a request has a seat to which its passenger is not entitled. A request is a pair of its actor and its seats.
    The caller has locked the manifests.
    """
    known = await passengers(conn, {seat.passenger for _, seats in requests for seat in seats})
    refused: dict[int, Refusal] = {}
    for n, (actor, seats) in enumerate(requests):
        for seat in seats:
            refusal = _refusal_of(actor, seat, known.get(seat.passenger))
            if refusal is not None:
                refused[n] = refusal
                break
    if refused:
        # Entitlements also end when a flight is cancelled or departs. FLIGHT_CANCELLED or FLIGHT_DEPARTED then tells
        # the caller more than PASSENGER_NOT_ENTITLED.
        closed = await _closed(conn, {seat.flight_id for n in refused for seat in requests[n][1]})
        refused |= {n: closed[seat.flight_id] for n in refused for seat in requests[n][1] if seat.flight_id in closed}
    return refused


def _refusal_of(actor: str, seat: AskedSeat, passenger: Passenger | None) -> Refusal | None:
    own = locator(actor)
    if passenger is None:
        if own is not None:
            return refusals.passenger_not_found()
        person = seat.person
    elif own not in (None, passenger.pnr) or actor.startswith("customer:"):
        # A guest's hold for a listed passenger would keep that passenger from holding a seat (PASSENGER_HOLDS_SEAT).
        return refusals.passenger_not_found()
    elif passenger.ended:
        return refusals.passenger_not_entitled(seat.flight_id, seat.passenger_id)
    else:
        person = passenger.person
    if person.type == PassengerProfile.INFANT:
        return refusals.lap_infant_has_no_seat(seat.passenger_id)
    return None if seat.described is None else eligibility.refusal(person, seat.described)


async def _closed(conn: Conn, flight_ids: Collection[str]) -> dict[str, Refusal]:
    """Returns the refusals of those flights that are cancelled or departed, by id."""
    rows = await conn.fetch(
        """
        SELECT asked.flight_id,
               (SELECT reason FROM cancelled_flights WHERE flight_id = asked.flight_id) IS NOT NULL AS cancelled,
               (SELECT departure_time FROM departures
                WHERE flight_id = asked.flight_id AND departure_time <= statement_timestamp()) AS departure_time
        FROM unnest($1::text[]) AS asked (flight_id)
        """,
        sorted(flight_ids),
    )
    return {
        row["flight_id"]: refusals.flight_cancelled(row["flight_id"])
        if row["cancelled"]
        else refusals.flight_departed(row["flight_id"], row["departure_time"])
        for row in rows
        if row["cancelled"] or row["departure_time"] is not None
    }


async def departed(conn: Conn, flight_ids: Collection[str]) -> dict[str, Refusal]:
    """Returns FLIGHT_DEPARTED for those of the flights that have departed."""
    rows = await conn.fetch(
        """
        SELECT flight_id, departure_time FROM departures
        WHERE flight_id = ANY($1::text[]) AND departure_time <= statement_timestamp()
        """,
        list(flight_ids),
    )
    return {row["flight_id"]: refusals.flight_departed(row["flight_id"], row["departure_time"]) for row in rows}


async def revocations(conn: Conn, requests: Sequence[OnHold]) -> dict[UUID, Refusal]:
    """Returns for each hold with a revoked seat the refusal that says why.

    The reasons are those of REVOKED, in this order of precedence: FLIGHT_CANCELLED, FLIGHT_DEPARTED,
    PASSENGER_NOT_FOUND, PASSENGER_NOT_ENTITLED, LAP_INFANT_HAS_NO_SEAT. Holds that have ended are included.
    """
    if not requests:
        return {}
    rows = await conn.fetch(
        """
        SELECT request.hold_id, seat.flight_id, seat.passenger_id,
               (SELECT reason FROM cancelled_flights WHERE flight_id = seat.flight_id) IS NOT NULL AS cancelled,
               (SELECT departure_time FROM departures
                WHERE flight_id = seat.flight_id AND departure_time <= statement_timestamp()) AS departure_time,
               coalesce(passenger.pnr <> request.locator, request.locator IS NOT NULL) AS foreign_locator,
               coalesce(passenger.ended, false) AS ended, coalesce(passenger.type = 'INFANT', false) AS infant
        FROM unnest($1::uuid[], $2::text[]) AS request (hold_id, locator)
        CROSS JOIN LATERAL (
            SELECT hold_seats.flight_id, hold_seats.passenger_id FROM hold_seats
            WHERE hold_seats.hold_id = request.hold_id OFFSET 0
        ) AS seat
        LEFT JOIN LATERAL (
            SELECT passengers.pnr, passengers.ended, passengers.type FROM passengers
            WHERE passengers.flight_id = seat.flight_id AND passengers.passenger_id = seat.passenger_id LIMIT 1
        ) AS passenger ON true
        """,
        [request.hold_id for request in requests],
        [locator(request.actor) for request in requests],
    )
    found: dict[UUID, tuple[int, Refusal]] = {}
    for row in rows:
        flight_id, passenger_id = row["flight_id"], row["passenger_id"]
        if row["cancelled"]:
            reason: tuple[int, Refusal] = (0, refusals.flight_cancelled(flight_id))
        elif row["departure_time"] is not None:
            reason = (1, refusals.flight_departed(flight_id, row["departure_time"]))
        elif row["foreign_locator"]:
            reason = (2, refusals.passenger_not_found())
        elif row["ended"]:
            reason = (3, refusals.passenger_not_entitled(flight_id, passenger_id))
        elif row["infant"]:
            reason = (4, refusals.lap_infant_has_no_seat(passenger_id))
        else:
            continue
        known = found.get(row["hold_id"])
        if known is None or reason[0] < known[0]:
            found[row["hold_id"]] = reason
    return {hold_id: refusal for hold_id, (_, refusal) in found.items()}


async def included_in_bookings(conn: Conn, requests: Sequence[OnHold]) -> dict[UUID, Refusal]:
    """Returns SEAT_INCLUDED_IN_BOOKING for holds that callers must not cancel.

    These are holds with a confirmed seat that the passenger's booking includes; services may cancel them. Seats of
    departed flights are left out, because FLIGHT_DEPARTED says more. So are passengers of another locator than the
    caller's, about whom the caller must learn nothing.
    """
    asked = [request for request in requests if not request.manages and not request.unless_confirmed]
    if not asked:
        return {}
    rows = await conn.fetch(
        """
        SELECT request.hold_id, seat.flight_id, seat.passenger_id
        FROM unnest($1::uuid[], $2::text[]) AS request (hold_id, locator)
        CROSS JOIN LATERAL (
            SELECT hold_seats.flight_id, hold_seats.passenger_id FROM hold_seats
            WHERE hold_seats.hold_id = request.hold_id AND hold_seats.state || '' = 'CONFIRMED' OFFSET 0
        ) AS seat
        CROSS JOIN LATERAL (
            SELECT passengers.pnr FROM passengers
            WHERE passengers.flight_id = seat.flight_id AND passengers.passenger_id = seat.passenger_id
              AND passengers.seat_included AND NOT passengers.ended LIMIT 1
        ) AS passenger
        WHERE coalesce(passenger.pnr = request.locator, true)
          AND coalesce((SELECT departure_time FROM departures WHERE flight_id = seat.flight_id)
                       > statement_timestamp(), true)
        """,
        [request.hold_id for request in asked],
        [locator(request.actor) for request in asked],
    )
    return {row["hold_id"]: refusals.seat_included_in_booking(row["flight_id"], row["passenger_id"]) for row in rows}
