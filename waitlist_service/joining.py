"""Joining a waitlist: who may wait, for what, and the place in the line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import timers
from services.auth import Principal, Role
from services.db import Conn
from services.errors import Unavailable
from services.idempotency import RequestKey
from services.mutations import Mutations
from waitlist_service import entries, refusals, serving
from waitlist_service.entries import NewEntry
from waitlist_service.openness import Openness
from waitlist_service.peers import Peers

# Each time the last waiter left at the same moment.
OPENINGS: Final = 4


@dataclass(frozen=True, slots=True)
class Person:
    """A passenger as the caller's session or the manifest has it."""

    owner: str
    type: str
    cabin: str
    special_services: Sequence[str]
    contact_email: str | None
    contact_name: str


class _Closed(Exception):
    """The waitlist was closed between its opening and the entry."""


class Joining:
    """Lets passengers wait."""

    def __init__(self, peers: Peers, openness: Openness, mutations: Mutations) -> None:
        self._peers = peers
        self._openness = openness
        self._mutations = mutations

    async def join(
        self, principal: Principal, request: pb.JoinWaitlistRequest, request_key: RequestKey | None
    ) -> pb.WaitlistEntry:
        """(nothing) → WAITING, at the end of the line. Raises the refusals of JoinWaitlist."""
        known = await self._mutations.known(request_key, pb.WaitlistEntry)
        if known is not None:
            return known
        person = await self._person(principal, request)
        wished = request.preferences
        if wished.cabin and pb.Cabin.Name(wished.cabin) != person.cabin:
            raise refusals.cabin_not_allowed(person.cabin)
        new = NewEntry(
            flight_id=request.flight_id,
            passenger_id=request.passenger_id,
            owner=person.owner,
            type=person.type,
            cabin=person.cabin,
            special_services=person.special_services,
            positions=[pb.SeatPreferences.Position.Name(position) for position in wished.positions],
            seat_numbers=list(wished.seat_numbers),
            contact_email=person.contact_email,
            contact_name=person.contact_name,
        )
        for _ in range(OPENINGS):
            await self._openness.open(request.flight_id)
            try:
                return await self._mutations.run(
                    request_key, pb.WaitlistEntry, partial(_write, new, actor=principal.name)
                )
            except _Closed:
                continue
        raise Unavailable

    async def _person(self, principal: Principal, request: pb.JoinWaitlistRequest) -> Person:
        named = principal.passengers.get((request.flight_id, request.passenger_id))
        if named is not None:
            # A token of `skyhigh token --passenger`; sessions name the locator alone.
            email, name = await self._contact(request)
            return Person(principal.name, named.type, named.cabin, named.special_services, email, name)
        found = await self._peers.passenger(request.flight_id, request.passenger_id)
        if found is None or (principal.role is Role.PASSENGER and principal.name != f"passenger:{found.pnr}"):
            raise refusals.passenger_not_found()
        return Person(
            f"passenger:{found.pnr}",
            checkin.PassengerType.Name(found.type or checkin.ADULT),
            checkin.Cabin.Name(found.cabin or checkin.ECONOMY),
            list(found.special_services),
            found.contact_email,
            found.given_name,
        )

    async def _contact(self, request: pb.JoinWaitlistRequest) -> tuple[str | None, str]:
        """Whom a mail reaches, and its name; None while the manifest can't be asked: that keeps nobody from waiting."""
        try:
            found = await self._peers.passenger(request.flight_id, request.passenger_id)
        except Unavailable:
            return None, ""
        return (found.contact_email, found.given_name) if found is not None else ("", "")


async def _write(new: NewEntry, conn: Conn, *, actor: str) -> pb.WaitlistEntry:
    await serving.lock(conn, new.flight_id)
    if not await conn.fetchval("SELECT open FROM flights WHERE flight_id = $1", new.flight_id):
        # Whether it is to be opened again, or was closed for good, is seen by who opens it.
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
        raise refusals.seat_not_found(unknown)
    entry = await entries.join(conn, new, actor=actor)
    # What is free already is served by a look at the map, at once.
    await timers.set_timer(conn, entries.SWEEP, new.flight_id)
    return await entries.shown(conn, entry)
