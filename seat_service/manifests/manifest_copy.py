"""The copy of the manifest, and the revocation of entitlements (SEAT-17).

Its owner, the check-in service, writes it, and so revokes entitlements. The revision of a passenger says which of two
messages is newer. A transaction that holds or changes seats locks the manifest of the flight in shared mode until its
commit (`locks.lock_seats`), and then reads the passenger's row. A transaction here takes the exclusive lock: it finds
each seat that was taken before, and a transaction that takes a seat later reads the new row (docs/decisions/0031).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.holds import passenger_seats
from seat_service.holds.locks import HeldSeat, StandingHold, lock_holds, lock_manifests
from seat_service.holds.releases import Release, release_seats
from seat_service.layouts.cabin_layouts import Layout
from seat_service.layouts.layout_register import LayoutUnusable
from seat_service.requests import Effects, FlightPassenger, Person
from seat_service.rules import eligibility, entitlements
from seat_service.rules.entitlements import Passenger
from services.db import Conn, GuardMissed
from services.errors import Refusal
from services.idempotency import RequestKey

if TYPE_CHECKING:
    pass

# The reasons that the ledger records for a release.
ENTITLEMENT_ENDED: Final = "ENTITLEMENT_ENDED"
SEAT_NO_LONGER_FITS: Final = "SEAT_NO_LONGER_FITS"
# The actor that the ledger records if a new departure time causes a release.
DEPARTURE_ACTOR: Final = "departure"


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the manifest: the passenger, and the revision of the row.

    `seat_included` is true while the passenger's confirmed booking includes a seat: then only services may cancel the
    confirmed hold (`holds.cancel`).
    """

    passenger: Passenger
    revision: int
    seat_included: bool

    @property
    def key(self) -> FlightPassenger:
        """The identity of the passenger: flight id and passenger id."""
        return self.passenger.flight_id, self.passenger.passenger_id


@dataclass(frozen=True, slots=True)
class ManifestChange:
    """A request to write changed passengers; `actor` is the service that sends them."""

    entries: tuple[Entry, ...]
    actor: str
    request_key: RequestKey | None = None


def entry(message: pb.SyncPassengersRequest.ManifestPassenger) -> Entry:
    """Converts a passenger of a request; the default age group is ADULT."""
    profile = message.profile
    person = Person(profile.type or pb.PassengerProfile.ADULT, frozenset(profile.special_services), profile.cabin)
    return Entry(
        Passenger(message.flight_id, message.passenger_id, message.pnr, person, message.ended),
        message.revision,
        message.seat_included,
    )


async def sync(
    conn: Conn, requests: Sequence[ManifestChange], *, layouts: Mapping[str, Layout], effects: Effects
) -> list[pb.SyncPassengersResponse | Refusal]:
    """Writes newer rows of passengers; releases seats without entitlement.

    A row is newer if its revision is higher. HELD or CONFIRMED → AVAILABLE, or OFFERED while the flight's waitlist is
    open. Other seats of the same hold stay; a hold whose last seat is released is CANCELLED. A confirmed seat of a
    departed flight stays for the record.

    Returns for each request the released seats, and the passengers that were not written because this process cannot
    use the layout of their flight. Refuses no request. Raises GuardMissed if a passenger got a seat in a new hold while
    this transaction waited for its locks.
    """
    return [await _sync(conn, request, layouts, effects) for request in requests]


async def _sync(
    conn: Conn, request: ManifestChange, layouts: Mapping[str, Layout], effects: Effects
) -> pb.SyncPassengersResponse:
    newest: dict[FlightPassenger, Entry] = {}
    for each in request.entries:
        if each.key not in newest or newest[each.key].revision < each.revision:
            newest[each.key] = each
    # The check-in service sends the passengers again with each login. If nothing is new, no lock is taken.
    changed = await _unknown(conn, newest)
    if not changed:
        return pb.SyncPassengersResponse()
    live, standing = await _lock(conn, changed)
    verdict = await _find_unfit(conn, live, {key: newest[key].passenger for key in changed}, standing, layouts)
    written = await _write(conn, [newest[key] for key in sorted(changed - verdict.undecided.keys())])
    lost = [(seat, reason) for seat, reason in verdict.lost if seat.passenger in written]
    await _release(conn, lost, standing, actor=request.actor, effects=effects)
    return pb.SyncPassengersResponse(
        freed_seats=[
            pb.FindPassengerSeatsResponse.PassengerSeat(
                flight_id=seat.flight_id,
                passenger_id=seat.passenger_id,
                seat_number=seat.seat_number,
                state=pb.Seat.State.Value(seat.state),
                hold_id=str(seat.hold_id),
            )
            for seat, _ in lost
        ],
        undecided=[
            pb.FindPassengerSeatsRequest.FlightPassenger(flight_id=flight_id, passenger_id=passenger_id)
            for flight_id, passenger_id in sorted(verdict.undecided)
        ],
    )


async def _lock(conn: Conn, passengers: Collection[FlightPassenger]) -> tuple[list[HeldSeat], dict[UUID, StandingHold]]:
    """Locks passengers' manifests and holds; returns their seats and holds.

    Holds must be locked before manifests (locks.py), and their ids are read without a lock. Raises GuardMissed if a
    passenger has a seat in another hold by the time when the manifests are locked.
    """
    standing = await lock_holds(conn, {seat.hold_id for seat in await passenger_seats.live(conn, passengers)})
    await lock_manifests(conn, {flight_id for flight_id, _ in passengers})
    live = await passenger_seats.live(conn, passengers)
    if any(seat.hold_id not in standing for seat in live):
        raise GuardMissed
    return live, standing


async def _unknown(conn: Conn, newest: Mapping[FlightPassenger, Entry]) -> set[FlightPassenger]:
    """Returns the passengers that have no row here, or an older one."""
    rows = await conn.fetch(
        """
        SELECT asked.flight_id, asked.passenger_id
        FROM unnest($1::text[], $2::text[], $3::bigint[]) AS asked (flight_id, passenger_id, revision)
        LEFT JOIN LATERAL (
            SELECT passengers.revision FROM passengers
            WHERE passengers.flight_id = asked.flight_id AND passengers.passenger_id = asked.passenger_id LIMIT 1
        ) AS known ON true
        WHERE coalesce(known.revision, 0) < asked.revision
        """,
        [flight_id for flight_id, _ in newest],
        [passenger_id for _, passenger_id in newest],
        [each.revision for each in newest.values()],
    )
    return {(row["flight_id"], row["passenger_id"]) for row in rows}


async def _write(conn: Conn, entries: Sequence[Entry]) -> set[FlightPassenger]:
    """Writes rows with a newer revision; returns their passengers."""
    rows = await conn.fetch(
        """
        INSERT INTO passengers
            (flight_id, passenger_id, pnr, cabin, type, special_services, ended, seat_included, revision)
        SELECT flight_id, passenger_id, pnr, cabin, type, string_to_array(special_services, ' '), ended, seat_included,
               revision
        FROM unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bool[], $8::bool[],
                    $9::bigint[])
            AS new (flight_id, passenger_id, pnr, cabin, type, special_services, ended, seat_included, revision)
        ON CONFLICT (flight_id, passenger_id) DO UPDATE
        SET pnr = excluded.pnr, cabin = excluded.cabin, type = excluded.type,
            special_services = excluded.special_services, ended = excluded.ended,
            seat_included = excluded.seat_included, revision = excluded.revision, update_time = statement_timestamp()
        WHERE passengers.revision < excluded.revision
        RETURNING flight_id, passenger_id
        """,
        [each.passenger.flight_id for each in entries],
        [each.passenger.passenger_id for each in entries],
        [each.passenger.pnr for each in entries],
        [pb.Seat.Cabin.Name(each.passenger.person.cabin) for each in entries],
        [pb.PassengerProfile.Type.Name(each.passenger.person.type) for each in entries],
        [" ".join(sorted(each.passenger.person.special_services)) for each in entries],
        [each.passenger.ended for each in entries],
        [each.seat_included for each in entries],
        [each.revision for each in entries],
    )
    return {(row["flight_id"], row["passenger_id"]) for row in rows}


async def _release(
    conn: Conn,
    lost: Sequence[tuple[HeldSeat, str]],
    standing: Mapping[UUID, StandingHold],
    *,
    actor: str,
    effects: Effects,
) -> None:
    """Releases seats, each with its reason; `standing` has the locked holds."""
    releases = [Release(seat, actor, reason, None) for seat, reason in lost]
    await release_seats(conn, list(standing), releases, effects=effects)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of checking seats against the manifest.

    `lost` has the seats to release, each with a reason for the ledger. `undecided` has the passengers whose seat cannot
    be checked, because this process cannot use the layout of the flight.
    """

    lost: Sequence[tuple[HeldSeat, str]]
    undecided: Mapping[FlightPassenger, LayoutUnusable]


async def _find_unfit(
    conn: Conn,
    live: Sequence[HeldSeat],
    passengers: Mapping[FlightPassenger, Passenger],
    standing: Mapping[UUID, StandingHold],
    layouts: Mapping[str, Layout],
) -> Verdict:
    """Finds seats that their passengers must lose.

    A passenger loses a seat if the entitlement has ended, or if the seat no longer fits. A seat is undecided while this
    process cannot use the layout of its flight. An entitlement that ended needs no layout: the seat is lost in that
    case, too (SEAT-1).
    """
    flight_ids = {seat.flight_id for seat in live}
    if not flight_ids:
        return Verdict([], {})
    rows = await conn.fetch("SELECT flight_id, layout_id FROM flights WHERE flight_id = ANY($1::text[])", [*flight_ids])
    layout_ids = {row["flight_id"]: row["layout_id"] for row in rows}
    departed = await entitlements.departed(conn, flight_ids)
    lost: list[tuple[HeldSeat, str]] = []
    undecided: dict[FlightPassenger, LayoutUnusable] = {}
    for seat in live:
        passenger, hold = passengers[seat.passenger], standing[seat.hold_id]
        if hold.present_state == "EXPIRED" or (seat.state == "CONFIRMED" and seat.flight_id in departed):
            continue
        foreign = seat.state == "HELD" and entitlements.locator(hold.owner) not in (None, passenger.pnr)
        if passenger.ended or foreign:
            lost.append((seat, ENTITLEMENT_ENDED))
            continue
        try:
            described = layouts[layout_ids[seat.flight_id]].by_number[seat.seat_number]
        except LayoutUnusable as refusal:
            undecided[seat.passenger] = refusal
            continue
        if not eligibility.fits(passenger.person, described):
            lost.append((seat, SEAT_NO_LONGER_FITS))
    return Verdict(lost, undecided)


async def review(conn: Conn, flight_id: str, *, layouts: Mapping[str, Layout], effects: Effects) -> Verdict:
    """Checks the confirmed seats of a flight again.

    Releases those that `sync` would release. Called when the departure time changes. If a departed flight turns out to
    leave later, some passengers' entitlements may have ended after the former departure time, when `sync` kept their
    confirmed seats.
    """
    rows = await conn.fetch(
        """
        SELECT passengers.flight_id, passengers.passenger_id
        FROM passengers
        WHERE passengers.flight_id = $1
          AND EXISTS (SELECT FROM hold_seats
                      WHERE hold_seats.flight_id = passengers.flight_id
                        AND hold_seats.passenger_id = passengers.passenger_id AND hold_seats.state = 'CONFIRMED')
        """,
        flight_id,
    )
    live, standing = await _lock(conn, [(row["flight_id"], row["passenger_id"]) for row in rows])
    known = await entitlements.passengers(conn, {seat.passenger for seat in live})
    verdict = await _find_unfit(conn, live, known, standing, layouts)
    await _release(conn, verdict.lost, standing, actor=DEPARTURE_ACTOR, effects=effects)
    return verdict
