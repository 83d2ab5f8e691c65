"""Reads check-ins, and converts them to messages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from checkin_service import refusals
from services.auth import Principal, Role
from services.db import Conn
from services.money import Amount, money_of
from services.proto import timestamp

INFANT_SEAT: Final = "INF"


@dataclass(frozen=True, slots=True)
class CheckIn:
    """A row of `check_ins`."""

    checkin_id: UUID
    flight_id: str
    passenger_id: str
    pnr: str
    state: str
    version: int
    seat_number: str | None
    hold_id: UUID | None
    seat_disputed: bool
    allowance_grams: int
    bags_grams: list[int]
    excess_grams: int
    fee_cents: int
    fee_currency: str
    payment_intent_id: UUID | None
    payment_deadline: datetime | None
    payment_error: str
    fee_pay_time: datetime | None
    fee_refund_time: datetime | None
    fee_returned: bool
    sequence_number: int | None
    create_time: datetime
    update_time: datetime
    cancel_time: datetime | None
    cancel_reason: str | None

    @property
    def key(self) -> UUID:
        """The key by which a watch finds the row."""
        return self.checkin_id

    def message(self) -> pb.CheckIn:
        """Returns the check-in as callers see it, without its history."""
        cancelled = self.state == "CANCELLED"
        return pb.CheckIn(
            checkin_id=str(self.checkin_id),
            flight_id=self.flight_id,
            passenger_id=self.passenger_id,
            state=pb.CheckIn.State.Value(self.state),
            # The seat of a cancelled check-in is being released, and may already be another passenger's.
            seat_number="" if cancelled else self.seat_number or "",
            bags=[pb.CheckIn.Bag(weight_grams=grams) for grams in self.bags_grams],
            excess_grams=self.excess_grams,
            fee=money_of(Amount(self.fee_currency, self.fee_cents)) if self.fee_cents else None,
            payment_intent_id=str(self.payment_intent_id or ""),
            payment_deadline=timestamp(self.payment_deadline) if self.payment_deadline else None,
            last_payment_error=self.payment_error,
            sequence_number=self.sequence_number or 0,
            create_time=timestamp(self.create_time),
            update_time=timestamp(self.update_time),
            cancel_reason=self.cancel_reason or "",
            allowance_grams=self.allowance_grams,
        )


def pnr_of(principal: Principal) -> str | None:
    """Returns the locator to which the caller's access is limited; None for no limit.

    A passenger session has access to its own locator only.
    """
    return principal.name.partition(":")[2] if principal.role is Role.PASSENGER else None


async def find(conn: Conn, checkin_id: UUID, *, pnr: str | None = None) -> CheckIn:
    """Returns a check-in. Raises CHECK_IN_NOT_FOUND.

    With `pnr`, only a check-in of that locator is found.
    """
    row = await conn.fetchrow(
        """
        SELECT checkin_id, flight_id, passenger_id, pnr, state::text, version, seat_number, hold_id, seat_disputed,
               allowance_grams, bags_grams, excess_grams, fee_cents, fee_currency, payment_intent_id, payment_deadline,
               payment_error, fee_pay_time, fee_refund_time, fee_returned, sequence_number, create_time, update_time,
               cancel_time, cancel_reason
        FROM check_ins WHERE checkin_id = $1 AND ($2::text IS NULL OR pnr = $2)
        """,
        checkin_id,
        pnr,
    )
    if row is None:
        raise refusals.check_in_not_found()
    return CheckIn(**row)


async def newer(conn: Conn, known_versions: Mapping[UUID, int]) -> list[CheckIn]:
    """Returns those of the check-ins whose version is higher than the known one."""
    rows = await conn.fetch(
        """
        SELECT checkin_id, flight_id, passenger_id, pnr, state::text, check_ins.version, seat_number, hold_id,
               seat_disputed, allowance_grams, bags_grams, excess_grams, fee_cents, fee_currency, payment_intent_id,
               payment_deadline, payment_error, fee_pay_time, fee_refund_time, fee_returned, sequence_number,
               create_time, update_time, cancel_time, cancel_reason
        FROM unnest($1::uuid[], $2::bigint[]) AS known (checkin_id, version)
        JOIN check_ins USING (checkin_id) WHERE check_ins.version > known.version
        """,
        list(known_versions),
        list(known_versions.values()),
    )
    return [CheckIn(**row) for row in rows]


async def of_flight(conn: Conn, flight_id: str, *, after: tuple[datetime, UUID] | None, limit: int) -> list[CheckIn]:
    """Returns up to `limit` check-ins of a flight, oldest first.

    `after` is the creation time and id of the last check-in of the page before.
    """
    after_time, after_id = after or (None, None)
    rows = await conn.fetch(
        """
        SELECT checkin_id, flight_id, passenger_id, pnr, state::text, version, seat_number, hold_id, seat_disputed,
               allowance_grams, bags_grams, excess_grams, fee_cents, fee_currency, payment_intent_id, payment_deadline,
               payment_error, fee_pay_time, fee_refund_time, fee_returned, sequence_number, create_time, update_time,
               cancel_time, cancel_reason
        FROM check_ins
        WHERE flight_id = $1 AND ($2::timestamptz IS NULL OR (create_time, checkin_id) > ($2, $3::uuid))
        ORDER BY create_time, checkin_id LIMIT $4
        """,
        flight_id,
        after_time,
        after_id,
        limit,
    )
    return [CheckIn(**row) for row in rows]


async def history(conn: Conn, checkin_id: UUID) -> list[pb.CheckIn.Transition]:
    """Returns all transitions of a check-in, oldest first."""
    rows = await conn.fetch(
        """
        SELECT from_state::text, to_state::text, actor, reason, event_time
        FROM check_in_events WHERE checkin_id = $1 ORDER BY version
        """,
        checkin_id,
    )
    return [
        pb.CheckIn.Transition(
            from_state=pb.CheckIn.State.Value(row["from_state"] or "STATE_UNSPECIFIED"),
            to_state=pb.CheckIn.State.Value(row["to_state"]),
            actor=row["actor"],
            reason=row["reason"],
            time=timestamp(row["event_time"]),
        )
        for row in rows
    ]
