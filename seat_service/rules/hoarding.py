"""The limit of held seats, and the cool-down after lapsed holds (SEAT-16).

Guests are counted by their network address, too, with larger limits, because a guest session needs no login
(decision 35).

The limits apply to passenger sessions and customers, also if a service manages a hold for them. They do not apply to
agents and services, which act for many people and answer for what they do. The rule is the SQL function `hoarding`, so
that the hold statement evaluates it itself. The caller holds the locks of `lock_seats(owners=…)`: without them two
concurrent calls could both see room for the last permitted seat. The function `hoarding_of_address` is called before
the hold statement, for guests only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from seat_service import refusals
from seat_service.requests import ChangeRequest, HoldRequest, Limits
from services.db import Conn
from services.errors import Refusal


def binds(owner: str) -> bool:
    """Returns True if SEAT-16 counts the held seats of this owner.

    It counts them also if a service holds them for the owner.
    """
    return owner.startswith(("customer:", "passenger:"))


def is_guest(owner: str) -> bool:
    """Returns True if a principal is a customer.

    Customers get sessions without a login.
    """
    return owner.startswith("customer:")


def locked_address(address: str) -> str:
    """Returns the name under which `lock_seats` locks an address.

    No owner has such a name.
    """
    return f"address:{address}"


def explain(
    limits: Limits, *, no_room_seconds: float | None, cooling_seconds: float | None, of_address: bool = False
) -> Refusal | None:
    """Returns the refusal for a result of the SQL functions.

    None if they permit the hold.
    """
    if cooling_seconds is not None:
        return refusals.cooling_down(cooling_seconds, of_address=of_address)
    if no_room_seconds is not None:
        return refusals.too_many_held_seats(limits.held_seats, max(1.0, no_room_seconds), of_address=of_address)
    return None


async def refuse(conn: Conn, request: ChangeRequest, *, owner: str, address: str, flight_id: str, seats: int) -> None:
    """Raises TOO_MANY_HELD_SEATS or COOLING_DOWN if SEAT-16 refuses a change of a hold.

    `seats` is the number of seats that the changed hold would have on the flight. The address of a guest is checked
    first, then the owner; `address` is empty if it is not counted.
    """
    counted = [("hoarding", owner, request.limits)]
    if address:
        counted.insert(0, ("hoarding_of_address", address, request.address_limits))
    for function, whose, limits in counted:
        row = await conn.fetchrow(
            f"SELECT no_room_seconds, cooling_seconds FROM {function}($1, $2, $3, $4, $5, $6, $7, $8)",  # noqa: S608
            whose,
            flight_id,
            seats,
            request.on.hold_id,
            limits.held_seats,
            limits.lapses_allowed,
            limits.lapses_window,
            limits.cool_down,
        )
        assert row is not None
        refusal = explain(limits, **row, of_address=whose == address)
        if refusal is not None:
            raise refusal


async def refuse_addresses(conn: Conn, requests: Iterable[tuple[int, HoldRequest]]) -> dict[int, Refusal]:
    """Returns, by request number, the refusals of guests' addresses.

    They are TOO_MANY_HELD_SEATS and COOLING_DOWN.
    """
    limits: Limits | None = None
    asked: list[tuple[int, str, str, int]] = []
    for n, request in requests:
        if request.address:
            limits = request.address_limits
            flights = Counter(seat.flight_id for seat in request.seats)
            asked += [(n, request.address, flight_id, seats) for flight_id, seats in flights.items()]
    if limits is None:
        return {}
    rows = await conn.fetch(
        """
        SELECT n, no_room_seconds, cooling_seconds
        FROM unnest($1::int[], $2::text[], $3::text[], $4::int[]) AS asked (n, address, flight_id, seats)
        CROSS JOIN LATERAL hoarding_of_address(address, flight_id, seats, NULL, $5, $6, $7, $8)
        """,
        *([each[column] for each in asked] for column in range(4)),
        limits.held_seats,
        limits.lapses_allowed,
        limits.lapses_window,
        limits.cool_down,
    )
    refused: dict[int, Refusal] = {}
    for row in rows:
        refusal = explain(
            limits, no_room_seconds=row["no_room_seconds"], cooling_seconds=row["cooling_seconds"], of_address=True
        )
        if refusal is not None:
            refused.setdefault(row["n"], refusal)
    return refused
