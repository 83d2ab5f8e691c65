"""Joining a waitlist: checks the request, and creates the entry."""

from __future__ import annotations

from functools import partial
from typing import Final

from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import timers
from services.auth import Principal, Role
from services.db import Conn
from services.errors import Unavailable
from services.idempotency import RequestKey
from services.transitions import Transitions
from waitlist_service import entitlements, entries, refusals, released_seats
from waitlist_service.entries import Facts, NewEntry
from waitlist_service.open_waitlists import OpenWaitlists
from waitlist_service.peers import FlightTimes, Peers

# The most tries to open the waitlist. A try is lost if the waitlist's last entry ends, and closes it, at the same time.
OPENINGS: Final = 4


class _Closed(Exception):
    """The waitlist was closed after it was opened and before the entry was created."""


class Joining:
    """Adds passengers to waitlists."""

    def __init__(self, peers: Peers, open_waitlists: OpenWaitlists, transitions: Transitions) -> None:
        self._peers = peers
        self._open_waitlists = open_waitlists
        self._transitions = transitions

    async def join(
        self, principal: Principal, request: pb.JoinWaitlistRequest, request_key: RequestKey | None
    ) -> pb.WaitlistEntry:
        """Creates a WAITING entry, after all others of the flight.

        A repeat returns the first response. Raises the errors of JoinWaitlist, and Unavailable if a service that is
        asked is down: then there is no entry.
        """
        known = await self._transitions.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        facts, times = await self._asked(principal, request)
        wished = request.preferences
        if wished.cabin and pb.Cabin.Name(wished.cabin) != facts.cabin:
            raise refusals.cabin_not_allowed(facts.cabin)
        new = NewEntry(
            flight_id=request.flight_id,
            passenger_id=request.passenger_id,
            owner=facts.owner,
            type=facts.type,
            cabin=facts.cabin,
            special_services=facts.special_services,
            positions=[pb.SeatPreferences.Position.Name(position) for position in wished.positions],
            seat_numbers=list(wished.seat_numbers),
            contact_email=facts.contact_email,
            contact_name=facts.contact_name,
        )
        for _ in range(OPENINGS):
            await self._open_waitlists.open(request.flight_id)
            try:
                return await self._transitions.run(
                    request_key, pb.WaitlistEntry, partial(_write, new, times, actor=principal.name)
                )
            except _Closed:
                continue
        raise Unavailable

    async def _asked(self, principal: Principal, request: pb.JoinWaitlistRequest) -> tuple[Facts, FlightTimes]:
        """Returns what the check-in service says of the passenger and the flight.

        A passenger session finds passengers of its own locator only.
        Raises PASSENGER_NOT_FOUND, LAP_INFANT_HAS_NO_SEAT, FLIGHT_CANCELLED, CHECK_IN_CLOSED or Unavailable.
        """
        place = (request.flight_id, request.passenger_id)
        manifest = await self._peers.manifest([place])
        facts, times = manifest.passengers.get(place), manifest.flights.get(request.flight_id)
        if facts is None or times is None or (principal.role is Role.PASSENGER and facts.owner != principal.name):
            raise refusals.passenger_not_found()
        if times.cancel_time is not None:
            raise refusals.flight_cancelled(request.flight_id)
        if times.closed:
            raise refusals.check_in_closed(request.flight_id, times.close_time)
        if facts.type == "INFANT":
            raise refusals.lap_infant_has_no_seat(request.passenger_id)
        return facts, times


async def _write(new: NewEntry, times: FlightTimes, conn: Conn, *, actor: str) -> pb.WaitlistEntry:
    await released_seats.lock(conn, new.flight_id)
    # Sets the timer that ends the entry when check-in closes.
    await entitlements.follow_times(conn, new.flight_id, times)
    if await conn.fetchval("SELECT $1::timestamptz <= statement_timestamp()", times.close_time):
        raise refusals.check_in_closed(new.flight_id, times.close_time)
    if not await conn.fetchval("SELECT open FROM flights WHERE flight_id = $1", new.flight_id):
        # `Joining.join` opens the waitlist again. If it is closed for ever, `OpenWaitlists.open` raises the reason.
        raise _Closed
    unknown = await conn.fetchval(
        """
        SELECT wished FROM unnest($2::text[]) AS wished
        WHERE NOT EXISTS (SELECT FROM seats WHERE flight_id = $1 AND seat_number = wished) LIMIT 1
        """,
        new.flight_id,
        list(new.seat_numbers),
    )
    if unknown is not None:
        raise refusals.seat_not_found(new.flight_id, unknown)
    entry = await entries.join(conn, new, actor=actor)
    # A sweep at once: it matches seats that are free already.
    await timers.set_timer(conn, entries.SWEEP, new.flight_id)
    return await entries.shown(conn, entry)
