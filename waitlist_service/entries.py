"""The state machine of waitlist entries: one function for each transition.

Each transition is one guarded write.

    WAITING → ASSIGNED        WAITING → OFFERED → ASSIGNED or DECLINED        WAITING or OFFERED → LEFT

An offer is ended in two steps: it is marked as withdrawn, and then the seat service cancels its hold. If the passenger
has confirmed the hold in between, it stays confirmed, and the entry becomes ASSIGNED.

Each function runs in the caller's transaction. It writes the history, and in the same transaction the events for other
services and the timers of the steps that call other services. A write whose guard does not match changes nothing, and
its function returns None.

A WAITING entry is matched if it has a seat number and a claim id. `claim_request` is the claim that was sent, or is
about to be sent, to the seat service. A live entry is WAITING or OFFERED.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final
from uuid import UUID, uuid4

from skyhigh.waitlist.v1 import events_pb2
from skyhigh.waitlist.v1 import waitlist_service_pb2 as pb

from services import outbox, timers
from services.db import Conn
from services.outbox import Event
from services.proto import timestamp
from waitlist_service import notices, refusals

# The names of timers. The subject of SWEEP and CLOSE is a flight, that of CANCEL_HOLD a hold, that of the others an
# entry.
SWEEP: Final = "sweep"
CLOSE: Final = "close"
ASSIGN: Final = "assign"
ACCEPT: Final = "accept"
LAPSE: Final = "lapse"
WITHDRAW: Final = "withdraw"
NOTIFY: Final = "notify"
CANCEL_HOLD: Final = "cancel-hold"
OFFER_LAPSED: Final = "OFFER_LAPSED"
# The request that withdraws an offer also cancels its hold. If its process dies, the timer WITHDRAW does that after
# this time.
WITHDRAW_LEASE: Final = timedelta(seconds=3)

_COLUMNS: Final = """entry_id, flight_id, number, passenger_id, owner, type::text, cabin::text, special_services,
    positions::text[], seat_numbers, state::text, version, claim_id, seat_number, uncertain,
    claim_request, hold_id, offer_expire_time, accept_time, accept_actor, withdrawal::text, withdraw_actor,
    withdraw_reason, contact_email, contact_name, create_time, update_time"""


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts of the manifest about a passenger that an entry depends on."""

    owner: str
    type: str
    cabin: str
    special_services: tuple[str, ...]
    contact_email: str | None
    contact_name: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A row of the table `entries`."""

    entry_id: UUID
    flight_id: str
    number: int
    passenger_id: str
    owner: str
    type: str
    cabin: str
    special_services: list[str]
    positions: list[str]
    seat_numbers: list[str]
    state: str
    version: int
    claim_id: UUID | None
    seat_number: str | None
    uncertain: bool
    claim_request: bytes | None
    hold_id: UUID | None
    offer_expire_time: datetime | None
    accept_time: datetime | None
    accept_actor: str | None
    withdrawal: str | None
    withdraw_actor: str | None
    withdraw_reason: str | None
    contact_email: str | None
    contact_name: str
    create_time: datetime
    update_time: datetime

    @property
    def facts(self) -> Facts:
        """The facts that the manifest had when this entry was last updated from it."""
        return Facts(
            owner=self.owner,
            type=self.type,
            cabin=self.cabin,
            special_services=tuple(sorted(self.special_services)),
            contact_email=self.contact_email,
            contact_name=self.contact_name,
        )

    @property
    def seat(self) -> tuple[str, str] | None:
        """Flight id and number of the entry's seat; None if it has no match."""
        return None if self.seat_number is None else (self.flight_id, self.seat_number)

    def message(self, *, position: int) -> pb.WaitlistEntry:
        """Returns the entry as a message for callers.

        The message has a seat only if the entry has a hold: a match alone gives the passenger no seat.
        """
        shows_seat = self.hold_id is not None
        return pb.WaitlistEntry(
            entry_id=str(self.entry_id),
            flight_id=self.flight_id,
            passenger_id=self.passenger_id,
            state=pb.WaitlistEntry.State.Value(self.state),
            position=position,
            seat_number=(self.seat_number or "") if shows_seat else "",
            hold_id=str(self.hold_id) if shows_seat else "",
            offer_expire_time=timestamp(self.offer_expire_time) if self.offer_expire_time is not None else None,
            preferences=pb.SeatPreferences(
                positions=[pb.SeatPreferences.Position.Value(name) for name in self.positions],
                cabin=pb.Cabin.Value(self.cabin),
                seat_numbers=self.seat_numbers,
            ),
            create_time=timestamp(self.create_time),
            update_time=timestamp(self.update_time),
        )


@dataclass(frozen=True, slots=True)
class NewEntry:
    """The content of an entry that a passenger joins with."""

    flight_id: str
    passenger_id: str
    owner: str
    type: str
    cabin: str
    special_services: Sequence[str]
    positions: Sequence[str]
    seat_numbers: Sequence[str]
    contact_email: str | None
    contact_name: str


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim whose hold is confirmed.

    It has the entry as it was when claimed, the hold and the hold's seat. `actor` is the actor of the transition to
    ASSIGNED.
    """

    entry: Entry
    hold_id: UUID
    seat_number: str
    actor: str


async def find(conn: Conn, entry_id: UUID, *, owner: str | None) -> Entry:
    """Returns an entry; `owner` None finds those of all owners. Raises ENTRY_NOT_FOUND."""
    row = await conn.fetchrow(
        f"SELECT {_COLUMNS} FROM entries WHERE entry_id = $1 AND ($2::text IS NULL OR owner = $2)",  # noqa: S608
        entry_id,
        owner,
    )
    if row is None:
        raise refusals.entry_not_found()
    return Entry(**row)


async def matched(conn: Conn, entry_ids: Sequence[UUID], *, mode: str) -> dict[UUID, tuple[Entry, str]]:
    """Returns those of the entries that are WAITING and matched, each with its mode.

    `mode` is the mode of flights without one of their own.
    """
    rows = await conn.fetch(
        f"""
        SELECT coalesce(mode::text, $2) AS mode, {_COLUMNS} FROM entries JOIN flights USING (flight_id)
        WHERE entry_id = ANY($1::uuid[]) AND state || '' = 'WAITING' AND claim_id IS NOT NULL
        """,  # noqa: S608
        list(entry_ids),
        mode,
    )
    found = {}
    for row in rows:
        columns = dict(row)
        of_flight = columns.pop("mode")
        found[row["entry_id"]] = (Entry(**columns), of_flight)
    return found


async def decide(conn: Conn, requests: Sequence[tuple[Entry, bytes]]) -> set[UUID]:
    """Stores the claim request of each match, within WAITING, before it is sent.

    From then on each retry sends exactly the stored request. Returns the ids of the entries whose request was stored:
    their match is unchanged and had no request yet.
    """
    rows = await conn.fetch(
        """
        UPDATE entries SET claim_request = decided.request
        FROM unnest($1::uuid[], $2::uuid[], $3::bytea[]) AS decided (id, claim, request)
        WHERE entry_id = decided.id AND claim_id = decided.claim AND state || '' = 'WAITING' AND claim_request IS NULL
        RETURNING entry_id
        """,
        [entry.entry_id for entry, _ in requests],
        [entry.claim_id for entry, _ in requests],
        [request for _, request in requests],
    )
    return {row["entry_id"] for row in rows}


async def is_matched(conn: Conn, entry: Entry) -> bool:
    """Returns True if an entry is still WAITING with the same match."""
    matched: bool | None = await conn.fetchval(
        "SELECT true FROM entries WHERE entry_id = $1 AND claim_id = $2 AND state || '' = 'WAITING'",
        entry.entry_id,
        entry.claim_id,
    )
    return bool(matched)


async def live(conn: Conn, flight_id: str, *, after_number: int, limit: int) -> list[Entry]:
    """Returns live entries of a flight above `after_number`, in order of joining."""
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM entries
        WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1 AND number > $2
        ORDER BY number LIMIT $3
        """,  # noqa: S608
        flight_id,
        after_number,
        limit,
    )
    return [Entry(**row) for row in rows]


async def endable(conn: Conn, flight_id: str, *, limit: int) -> list[Entry]:
    """Returns live entries of a flight that can be ended now, in order of joining.

    Entries with a claim, an acceptance or a withdrawal in progress at the seat service are left out.
    """
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM entries
        WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1
          AND CASE state WHEN 'WAITING' THEN claim_request IS NULL
                         ELSE accept_time IS NULL AND withdrawal IS NULL END
        ORDER BY number LIMIT $2
        """,  # noqa: S608
        flight_id,
        limit,
    )
    return [Entry(**row) for row in rows]


async def offered(conn: Conn, flight_id: str, *, limit: int) -> list[Entry]:
    """Returns entries of a flight whose offer is neither accepted nor withdrawn."""
    rows = await conn.fetch(
        f"""
        SELECT {_COLUMNS} FROM entries
        WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1
          AND state || '' = 'OFFERED' AND accept_time IS NULL AND withdrawal IS NULL
        ORDER BY number LIMIT $2
        """,  # noqa: S608
        flight_id,
        limit,
    )
    return [Entry(**row) for row in rows]


async def list_of(conn: Conn, flight_id: str, *, after_number: int, limit: int) -> list[Entry]:
    """Returns entries of a flight in all states, in order of joining."""
    rows = await conn.fetch(
        f"SELECT {_COLUMNS} FROM entries WHERE flight_id = $1 AND number > $2 ORDER BY number LIMIT $3",  # noqa: S608
        flight_id,
        after_number,
        limit,
    )
    return [Entry(**row) for row in rows]


async def has_live_entries(conn: Conn, flight_id: str) -> bool:
    """Returns True if a flight has a live entry."""
    waiting: bool = await conn.fetchval(
        """
        SELECT EXISTS (SELECT FROM entries WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1)
        """,
        flight_id,
    )
    return waiting


async def shown(conn: Conn, entry: Entry) -> pb.WaitlistEntry:
    """Returns an entry as a message for callers, with its position.

    The position counts the WAITING entries of the flight up to this one, from 1; 0 if the entry is not WAITING.
    """
    position = 0
    if entry.state == "WAITING":
        position = await conn.fetchval(
            """
            SELECT count(*) FROM entries
            WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1 AND number <= $2
              AND state = 'WAITING'
            """,
            entry.flight_id,
            entry.number,
        )
    return entry.message(position=position)


async def join(conn: Conn, new: NewEntry, *, actor: str) -> Entry:
    """Creates a WAITING entry with the next number of its flight, after all others.

    The caller has locked the row of the flight. Raises ALREADY_WAITING if the passenger has a live entry there.
    """
    row = await conn.fetchrow(
        f"""
        WITH numbered AS (
            UPDATE flights SET last_number = last_number + 1 WHERE flight_id = $2 RETURNING last_number
        )
        INSERT INTO entries (entry_id, flight_id, number, passenger_id, owner, type, cabin, special_services, positions,
                             seat_numbers, contact_email, contact_name)
        SELECT $1, $2, last_number, $3, $4, $5::passenger_type, $6::cabin, $7, $8::text[]::seat_position[], $9,
               $10, $11
        FROM numbered
        ON CONFLICT (flight_id, passenger_id) WHERE state IN ('WAITING', 'OFFERED') DO NOTHING
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        uuid4(),
        new.flight_id,
        new.passenger_id,
        new.owner,
        new.type,
        new.cabin,
        list(new.special_services),
        list(new.positions),
        list(new.seat_numbers),
        new.contact_email,
        new.contact_name,
    )
    if row is None:
        standing = await conn.fetchval(
            """
            SELECT entry_id FROM entries
            WHERE flight_id = $1 AND passenger_id = $2 AND state IN ('WAITING', 'OFFERED')
            """,
            new.flight_id,
            new.passenger_id,
        )
        raise refusals.already_waiting(standing)
    entry = Entry(**row)
    await _record(conn, entry, None, actor=actor, reason="JOINED")
    return entry


async def assign(conn: Conn, claims: Sequence[Claimed]) -> list[Entry | None]:
    """Assigns confirmed holds to entries: WAITING or OFFERED → ASSIGNED.

    Writes the events for other services and the mails to the passengers. Returns the entry for each claim; None if the
    entry was moved, or lost this match, meanwhile.
    """
    rows = await conn.fetch(
        f"""
        UPDATE entries
        SET state = 'ASSIGNED', hold_id = claimed.confirmed_hold, seat_number = claimed.confirmed_seat,
            version = entries.version + 1, update_time = statement_timestamp(), end_time = statement_timestamp()
        FROM (
            SELECT of_entry.entry_id AS id, entries.state AS from_state, of_entry.claim, of_entry.confirmed_hold,
                   of_entry.confirmed_seat
            FROM unnest($1::uuid[], $2::uuid[], $3::uuid[], $4::text[])
                AS of_entry (entry_id, claim, confirmed_hold, confirmed_seat)
            JOIN entries USING (entry_id) ORDER BY of_entry.entry_id FOR NO KEY UPDATE OF entries
        ) AS claimed
        WHERE entry_id = claimed.id AND claim_id = claimed.claim
          AND (state || '' = 'WAITING' OR state || '' = 'OFFERED' AND hold_id = claimed.confirmed_hold)
        RETURNING claimed.from_state::text AS from_state, end_time, {_COLUMNS}
        """,  # noqa: S608
        [claimed.entry.entry_id for claimed in claims],
        [claimed.entry.claim_id for claimed in claims],
        [claimed.hold_id for claimed in claims],
        [claimed.seat_number for claimed in claims],
    )
    moved = {row["entry_id"]: _moved(row) for row in rows}
    actors = {claimed.entry.entry_id: claimed.actor for claimed in claims}
    await _record_all(
        conn, [(entry, from_state, actors[entry.entry_id], "ASSIGNED") for entry, from_state in moved.values()]
    )
    for entry, from_state in moved.values():
        if from_state == "OFFERED":
            await timers.cancel_timer(conn, LAPSE, str(entry.entry_id))
            await timers.cancel_timer(conn, ACCEPT, str(entry.entry_id))
            await timers.cancel_timer(conn, WITHDRAW, str(entry.entry_id))
    await outbox.enqueue(conn, [_assigned(entry) for entry, _ in moved.values()])
    await _enqueue_mails(conn, [entry for entry, _ in moved.values()])
    return [moved[claimed.entry.entry_id][0] if claimed.entry.entry_id in moved else None for claimed in claims]


def _assigned(entry: Entry) -> Event:
    event = events_pb2.WaitlistAssigned(
        entry_id=str(entry.entry_id),
        flight_id=entry.flight_id,
        passenger_id=entry.passenger_id,
        seat_number=entry.seat_number or "",
        hold_id=str(entry.hold_id),
        assign_time=timestamp(entry.update_time),
    )
    return Event(uuid4(), "waitlist.assigned.v1", event)


async def offer(conn: Conn, entry_id: UUID, *, claim_id: UUID, hold_id: UUID, expire_time: datetime) -> Entry | None:
    """Offers a held seat to its entry's passenger: WAITING → OFFERED.

    The offer ends at `expire_time`. Sets the timer that ends the offer, and writes a mail. Returns None if the entry
    was moved, or lost this match, meanwhile.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE entries
        SET state = 'OFFERED', hold_id = $3, offer_expire_time = $4, version = version + 1,
            update_time = statement_timestamp()
        WHERE entry_id = $1 AND claim_id = $2 AND state || '' = 'WAITING'
        RETURNING offer_expire_time - statement_timestamp() AS patience,
                  (SELECT origin FROM flights WHERE flights.flight_id = entries.flight_id) AS origin, {_COLUMNS}
        """,  # noqa: S608
        entry_id,
        claim_id,
        hold_id,
        expire_time,
    )
    if row is None:
        return None
    columns = dict(row)
    patience, origin = columns.pop("patience"), columns.pop("origin")
    entry = Entry(**columns)
    await _record(conn, entry, "WAITING", actor="waitlist", reason="OFFERED")
    await timers.set_timer(conn, LAPSE, str(entry_id), after=patience)
    await _enqueue_mails(conn, [entry], origin=origin)
    return entry


async def begin_accept(conn: Conn, entry_id: UUID, *, owner: str | None, actor: str) -> Entry | None:
    """Marks an offer as accepted by `actor`, within OFFERED and before its end.

    From then on only the seat service decides whether the seat is confirmed. A repeat returns the accepted entry, whose
    actor stays the first one. The end of the offer counts and not that of the hold, which the passenger can extend at
    the seat service.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE entries SET accept_time = coalesce(accept_time, statement_timestamp()),
                           accept_actor = coalesce(accept_actor, $3)
        WHERE entry_id = $1 AND ($2::text IS NULL OR owner = $2) AND state || '' = 'OFFERED' AND withdrawal IS NULL
          AND (accept_time IS NOT NULL OR offer_expire_time > statement_timestamp())
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry_id,
        owner,
        actor,
    )
    return None if row is None else Entry(**row)


async def end_accept(conn: Conn, entry: Entry) -> None:
    """Clears the mark of an acceptance, within OFFERED.

    The seat service has refused to confirm the hold.
    """
    await conn.execute(
        """
        UPDATE entries SET accept_time = NULL, accept_actor = NULL
        WHERE entry_id = $1 AND state || '' = 'OFFERED' AND hold_id = $2
        """,
        entry.entry_id,
        entry.hold_id,
    )
    await timers.cancel_timer(conn, ACCEPT, str(entry.entry_id))


async def withdraw(
    conn: Conn, entry_ids: Sequence[UUID], *, to: str, owner: str | None, actor: str, reason: str
) -> list[UUID]:
    """Marks offers as withdrawn, within OFFERED; returns the ids of these entries.

    Offers that are accepted or withdrawn already stay as they are. `to` is the state, DECLINED or LEFT, that an entry
    gets when the seat service has cancelled its hold. The timer WITHDRAW, which is set here, calls the seat service.
    """
    rows = await conn.fetch(
        """
        UPDATE entries SET withdrawal = $3::entry_state, withdraw_actor = $4, withdraw_reason = $5
        FROM (
            SELECT entry_id AS id FROM entries WHERE entry_id = ANY($1::uuid[]) ORDER BY entry_id FOR NO KEY UPDATE
        ) AS standing
        WHERE entry_id = standing.id AND ($2::text IS NULL OR owner = $2) AND state || '' = 'OFFERED'
          AND accept_time IS NULL AND withdrawal IS NULL
        RETURNING entry_id
        """,
        list(entry_ids),
        owner,
        to,
        actor,
        reason,
    )
    withdrawn = [row["entry_id"] for row in rows]
    await timers.set_timers(conn, WITHDRAW, [str(entry_id) for entry_id in withdrawn], after=WITHDRAW_LEASE)
    return withdrawn


async def finish_withdrawal(conn: Conn, entry: Entry) -> Entry | None:
    """Ends the entry of a withdrawn offer: OFFERED → DECLINED or LEFT.

    The withdrawal has the new state. The caller knows from the seat service that the hold has ended.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE entries
        SET state = withdrawal, version = version + 1, update_time = statement_timestamp(),
            end_time = statement_timestamp()
        WHERE entry_id = $1 AND state || '' = 'OFFERED' AND hold_id = $2 AND withdrawal IS NOT NULL
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry.entry_id,
        entry.hold_id,
    )
    if row is None:
        return None
    ended = Entry(**row)
    await _record(conn, ended, "OFFERED", actor=ended.withdraw_actor or "", reason=ended.withdraw_reason or "")
    await timers.cancel_timer(conn, LAPSE, str(ended.entry_id))
    await timers.cancel_timer(conn, WITHDRAW, str(ended.entry_id))
    await _enqueue_mails(conn, [ended], reason=ended.withdraw_reason or "")
    return ended


async def lapse(conn: Conn, entry_id: UUID, *, hold_id: UUID) -> Entry | None:
    """Ends the entry of an offer whose hold has ended: OFFERED → DECLINED.

    The offer may be accepted or not. The caller knows from the seat service that the hold has ended.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE entries
        SET state = 'DECLINED', version = version + 1, update_time = statement_timestamp(),
            end_time = statement_timestamp()
        WHERE entry_id = $1 AND state || '' = 'OFFERED' AND hold_id = $2
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry_id,
        hold_id,
    )
    if row is None:
        return None
    entry = Entry(**row)
    await _record(conn, entry, "OFFERED", actor="waitlist", reason=OFFER_LAPSED)
    await timers.cancel_timer(conn, ACCEPT, str(entry_id))
    return entry


async def leave(conn: Conn, entry_id: UUID, *, owner: str | None, actor: str) -> Entry | None:
    """Ends an entry: WAITING → LEFT. Returns None while a claim is in progress."""
    row = await conn.fetchrow(
        f"""
        UPDATE entries
        SET state = 'LEFT', version = entries.version + 1, update_time = statement_timestamp(),
            end_time = statement_timestamp()
        WHERE entry_id = $1 AND ($2::text IS NULL OR owner = $2) AND state || '' = 'WAITING' AND claim_request IS NULL
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry_id,
        owner,
    )
    if row is None:
        return None
    entry = Entry(**row)
    await _record(conn, entry, "WAITING", actor=actor, reason="LEFT")
    return entry


async def end(conn: Conn, ending: Sequence[Entry], *, actor: str, reason: str) -> set[str]:
    """Ends WAITING entries (→ LEFT), and withdraws the offers of OFFERED ones.

    Entries with a claim or an acceptance in progress stay; a later call ends them. Writes the mails. Returns the seats
    that the ended entries were matched with. The caller has locked the row of the flight.
    """
    if not ending:
        return set()
    entry_ids = [entry.entry_id for entry in ending]
    rows = await conn.fetch(
        f"""
        UPDATE entries
        SET state = 'LEFT', version = entries.version + 1, update_time = statement_timestamp(),
            end_time = statement_timestamp()
        FROM (
            SELECT entry_id AS id FROM entries WHERE entry_id = ANY($1::uuid[]) ORDER BY entry_id FOR NO KEY UPDATE
        ) AS standing
        WHERE entry_id = standing.id AND state || '' = 'WAITING' AND claim_request IS NULL
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry_ids,
    )
    ended = [Entry(**row) for row in rows]
    await _record_all(conn, [(entry, "WAITING", actor, reason) for entry in ended])
    await _enqueue_mails(conn, ended, reason=reason)
    withdrawn = await withdraw(conn, entry_ids, to="LEFT", owner=None, actor=actor, reason=reason)
    # Without WITHDRAW_LEASE: no request is running that will cancel these holds itself.
    await timers.set_timers(conn, WITHDRAW, [str(entry_id) for entry_id in withdrawn])
    return {entry.seat_number for entry in ended if entry.seat_number is not None}


async def update_facts(conn: Conn, entry: Entry, facts: Facts) -> Entry | None:
    """Writes the manifest's new facts of a passenger to a live entry.

    Ends the entry's skips, because a seat that did not fit the passenger may fit now. Returns None and changes nothing
    while a claim, an acceptance or a withdrawal is in progress.
    """
    row = await conn.fetchrow(
        f"""
        UPDATE entries
        SET owner = $2, type = $3::passenger_type, cabin = $4::cabin, special_services = $5, contact_email = $6,
            contact_name = $7, update_time = statement_timestamp(),
            fact_time = CASE WHEN type = $3::passenger_type AND cabin = $4::cabin AND special_services = $5
                             THEN fact_time ELSE statement_timestamp() END
        WHERE entry_id = $1
          AND (state || '' = 'WAITING' AND claim_request IS NULL
               OR state || '' = 'OFFERED' AND accept_time IS NULL AND withdrawal IS NULL)
        RETURNING {_COLUMNS}
        """,  # noqa: S608
        entry.entry_id,
        facts.owner,
        facts.type,
        facts.cabin,
        list(facts.special_services),
        facts.contact_email,
        facts.contact_name,
    )
    if row is None:
        return None
    await conn.execute(
        "UPDATE skips SET end_time = statement_timestamp() WHERE entry_id = $1 AND end_time > statement_timestamp()",
        entry.entry_id,
    )
    return Entry(**row)


async def end_all(conn: Conn, flight_id: str, *, actor: str, reason: str) -> None:
    """Ends the entries of a cancelled flight: WAITING or OFFERED → LEFT.

    Writes the mails to their passengers. It also ends entries with a claim or an acceptance in progress, because the
    seat service cancels all holds of the flight. The caller has locked the row of the flight.
    """
    rows = await conn.fetch(
        f"""
        UPDATE entries
        SET state = 'LEFT', version = entries.version + 1, update_time = statement_timestamp(),
            end_time = statement_timestamp()
        FROM (
            SELECT entry_id AS id, state AS from_state FROM entries
            WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) = $1
            ORDER BY entry_id FOR NO KEY UPDATE
        ) AS standing
        WHERE entry_id = standing.id AND state || '' IN ('WAITING', 'OFFERED')
        RETURNING standing.from_state::text AS from_state, end_time, {_COLUMNS}
        """,  # noqa: S608
        flight_id,
    )
    moved = [_moved(row) for row in rows]
    await _record_all(conn, [(entry, from_state, actor, reason) for entry, from_state in moved])
    for entry, from_state in moved:
        if from_state == "OFFERED":
            await timers.cancel_timer(conn, ACCEPT, str(entry.entry_id))
            await timers.cancel_timer(conn, WITHDRAW, str(entry.entry_id))
            await _cancel_hold_later(conn, entry)
    await _enqueue_mails(conn, [entry for entry, _ in moved], reason=reason)


async def remove_match(conn: Conn, entry: Entry) -> bool:
    """Removes the match of an entry that cannot get its seat, within WAITING.

    The entry keeps its place. Returns False if the entry was moved, or lost this match, meanwhile.
    """
    status = await conn.execute(
        """
        UPDATE entries SET claim_id = NULL, seat_number = NULL, match_time = NULL, uncertain = false,
                           claim_request = NULL, update_time = statement_timestamp()
        WHERE entry_id = $1 AND claim_id = $2 AND state || '' = 'WAITING'
        """,
        entry.entry_id,
        entry.claim_id,
    )
    return status == "UPDATE 1"


async def _enqueue_mails(conn: Conn, told: Sequence[Entry], *, reason: str = "", origin: str = "") -> None:
    """Writes mails to passengers about the new states of their entries.

    If the manifest was not asked for a passenger's address yet (`contact_email` is None), the timer NOTIFY asks it.
    """
    mails = [notices.mail_of(entry, reason=reason, origin=origin) for entry in told]
    await outbox.enqueue(conn, [mail for mail in mails if mail is not None])
    unknown = [str(entry.entry_id) for entry in told if entry.contact_email is None]
    if unknown:
        await timers.set_timers(conn, NOTIFY, unknown)


async def _cancel_hold_later(conn: Conn, entry: Entry) -> None:
    await timers.cancel_timer(conn, LAPSE, str(entry.entry_id))
    await timers.set_timer(conn, CANCEL_HOLD, str(entry.hold_id))


def _moved(row: Any) -> tuple[Entry, str]:
    columns = dict(row)
    from_state: str = columns.pop("from_state")
    columns.pop("end_time")
    return Entry(**columns), from_state


async def _record(conn: Conn, entry: Entry, from_state: str | None, *, actor: str, reason: str) -> None:
    await _record_all(conn, [(entry, from_state, actor, reason)])


async def _record_all(conn: Conn, transitions: Sequence[tuple[Entry, str | None, str, str]]) -> None:
    """Writes transitions to the history.

    A transition is the entry after it, the state before, the actor and the reason.
    """
    await conn.execute(
        """
        INSERT INTO entry_events (entry_id, version, from_state, to_state, seat_number, actor, reason)
        SELECT entry_id, version, from_state::entry_state, to_state::entry_state, seat_number, actor, reason
        FROM unnest($1::uuid[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
            AS moved (entry_id, version, from_state, to_state, seat_number, actor, reason)
        """,
        [entry.entry_id for entry, _, _, _ in transitions],
        [entry.version for entry, _, _, _ in transitions],
        [from_state for _, from_state, _, _ in transitions],
        [entry.state for entry, _, _, _ in transitions],
        [entry.seat_number for entry, _, _, _ in transitions],
        [actor for _, _, actor, _ in transitions],
        [reason for _, _, _, reason in transitions],
    )
