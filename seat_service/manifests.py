"""The copy of the manifest, and the revocation of entitlements (SEAT-17).

Its owner, the check-in service, writes it, and so revokes entitlements. The revision of a passenger says which of two
messages is newer. A transaction that holds or changes seats locks the manifest of the flight in shared mode until its
commit (`locks.lock_seats`), and then reads the passenger's row. A transaction here takes the exclusive lock: it finds
each seat that was taken before, and a transaction that takes a seat later reads the new row (docs/decisions/0031).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final
from uuid import UUID

from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service import eligibility, entitlements, passenger_seats, seats
from seat_service.cabin_layouts import Layout
from seat_service.eligibility import Person
from seat_service.entitlements import Passenger
from seat_service.layout_register import LayoutUnusable
from seat_service.locks import HeldSeat, StandingHold, lock_flight, lock_holds, lock_manifests
from seat_service.releases import Release
from seat_service.requests import Effects, FlightPassenger
from services import db, timers
from services.db import Conn, GuardMissed, Pool
from services.errors import Refusal
from services.idempotency import RequestKey

if TYPE_CHECKING:
    from seat_service.inventory import Inventory

# The reasons that the ledger records for a release.
ENTITLEMENT_ENDED: Final = "ENTITLEMENT_ENDED"
SEAT_NO_LONGER_FITS: Final = "SEAT_NO_LONGER_FITS"
# The timer that adapts the holds of a flight to a new departure time, and its actor in the ledger.
FOLLOW_DEPARTURE: Final = "follow-departure"
ACTOR: Final = "departure"
# A hold lasts one day at most (ClaimSeatRequest.ttl): no present hold reaches a departure after this time.
LONGEST_HOLD: Final = timedelta(days=1, hours=1)
HOLDS_AT_ONCE: Final = 100


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the manifest: the passenger, and the revision of the row.

    `seat_included` is true while the passenger's confirmed booking includes a seat: then only services may cancel the
    confirmed hold (`seats.cancel`).
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


@dataclass(frozen=True, slots=True)
class Departure:
    """The departure time of a flight, and its revision."""

    flight_id: str
    departure_time: datetime
    revision: int


@dataclass(frozen=True, slots=True)
class Departures:
    """A request to write the departure times of flights."""

    departures: tuple[Departure, ...]
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
    await seats.release_seats(conn, list(standing), releases, effects=effects)


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
    await _release(conn, verdict.lost, standing, actor=ACTOR, effects=effects)
    return verdict


async def set_departures(
    conn: Conn, requests: Sequence[Departures], *, effects: Effects
) -> list[pb.SyncPassengersResponse | Refusal]:
    """Writes newer departure times; sets the timers that adapt the holds.

    A departure time is newer if its revision is higher. From its departure on, no seat of a flight can be held,
    changed, claimed or confirmed. Seats of flights with a timer are locked before the write: a concurrent hold either
    reads the new time, or has locked its seats first, and then the timer finds the hold. Refuses no request.
    """
    for request in requests:
        newest: dict[str, Departure] = {}
        for each in request.departures:
            if each.flight_id not in newest or newest[each.flight_id].revision < each.revision:
                newest[each.flight_id] = each
        rows = await conn.fetch(
            """
            SELECT asked.flight_id,
                   -- A flight that had left, as far as was known, may have passengers who ended since, however long the
                   -- delay is.
                   asked.departure_time < statement_timestamp() + $4
                   OR coalesce(departures.departure_time <= statement_timestamp(), false) AS to_follow
            FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS asked (flight_id, departure_time, revision)
            LEFT JOIN departures USING (flight_id)
            WHERE coalesce(departures.revision, -1) < asked.revision
            """,
            *_columns(newest),
            LONGEST_HOLD,
        )
        to_follow = sorted(row["flight_id"] for row in rows if row["to_follow"])
        for flight_id in to_follow:
            await lock_flight(conn, flight_id)
        await conn.execute(
            """
            INSERT INTO departures (flight_id, departure_time, revision)
            SELECT flight_id, departure_time, revision
            FROM unnest($1::text[], $2::timestamptz[], $3::bigint[]) AS new (flight_id, departure_time, revision)
            ON CONFLICT (flight_id) DO UPDATE
            SET departure_time = excluded.departure_time, revision = excluded.revision,
                update_time = statement_timestamp()
            WHERE departures.revision < excluded.revision
            """,
            *_columns({row["flight_id"]: newest[row["flight_id"]] for row in rows}),
        )
        if to_follow:
            await timers.set_timers(conn, FOLLOW_DEPARTURE, to_follow)
    return [pb.SyncPassengersResponse() for _ in requests]


def _columns(departures: Mapping[str, Departure]) -> tuple[list[str], list[datetime], list[int]]:
    ordered = [departures[flight_id] for flight_id in sorted(departures)]
    return (
        [each.flight_id for each in ordered],
        [each.departure_time for each in ordered],
        [each.revision for each in ordered],
    )


class Departing:
    """Adapts the holds and confirmed seats of a flight to a new departure time."""

    def __init__(self, pool: Pool, inventory: Inventory, layouts: Mapping[str, Layout]) -> None:
        self._pool = pool
        self._inventory = inventory
        self._layouts = layouts

    async def follow(self, flight_id: str) -> None:
        """Moves the end of HELD holds to the departure at the latest; then calls `review`.

        A confirmed seat of a departed flight stays. Raises LayoutUnusable if `review` left a passenger undecided: the
        timer is then retried.
        """
        while await self._end_some(flight_id):
            pass
        effects = Effects()
        async with db.transaction(self._pool) as conn:
            verdict = await review(conn, flight_id, layouts=self._layouts, effects=effects)
        self._inventory.tell(effects)
        for refusal in verdict.undecided.values():
            raise refusal

    async def _end_some(self, flight_id: str) -> bool:
        async with db.transaction(self._pool) as conn:
            rows = await conn.fetch(
                """
                SELECT DISTINCT hold.hold_id
                FROM departures
                CROSS JOIN LATERAL (
                    SELECT seats.hold_id FROM seats
                    WHERE seats.flight_id = departures.flight_id AND seats.state = 'HELD' OFFSET 0
                ) AS held
                CROSS JOIN LATERAL (
                    SELECT holds.hold_id, holds.create_time, holds.expire_time FROM holds
                    WHERE holds.hold_id = held.hold_id LIMIT 1
                ) AS hold
                WHERE departures.flight_id = $1
                  AND hold.expire_time > greatest(departures.departure_time,
                                              hold.create_time + interval '1 microsecond')
                LIMIT $2
                """,
                flight_id,
                HOLDS_AT_ONCE,
            )
            hold_ids = [row["hold_id"] for row in rows]
            if hold_ids:
                await lock_holds(conn, hold_ids)
                await conn.execute(
                    """
                    UPDATE holds
                    SET expire_time = greatest(departures.departure_time, holds.create_time + interval '1 microsecond')
                    FROM departures
                    WHERE departures.flight_id = $1 AND holds.hold_id = ANY($2::uuid[]) AND holds.state || '' = 'HELD'
                      AND holds.expire_time > departures.departure_time
                    """,
                    flight_id,
                    hold_ids,
                )
        return bool(hold_ids)
