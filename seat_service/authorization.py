"""The roles that may call each method of the seat service.

A method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

P, C, A, O, S = Role.PASSENGER, Role.CUSTOMER, Role.AGENT, Role.OPERATIONS, Role.SERVICE  # noqa: E741

POLICY: Final[Mapping[str, Access]] = {
    "ProvisionSeats": allow(O, S, effect=Effect.WRITE),
    "GetSeatMap": allow(P, C, A, O, S, effect=Effect.READ),
    "GetSeatMapJson": allow(P, C, A, O, S, effect=Effect.READ),
    "WatchSeatMap": allow(P, C, A, O, S, effect=Effect.STREAM),
    "SuggestSeats": allow(P, C, A, S, effect=Effect.READ),
    "HoldSeat": allow(P, C, A, S, effect=Effect.WRITE),
    "HoldSeats": allow(P, C, A, S, effect=Effect.WRITE),
    "GetHold": allow(P, C, A, O, S, effect=Effect.READ, owned=True),
    "ExtendHold": allow(P, C, A, S, effect=Effect.WRITE, owned=True),
    "ChangeHoldSeats": allow(P, C, A, S, effect=Effect.WRITE, owned=True),
    # No customers: a customer session needs no login, so that any client could confirm seats for ever without paying
    # (decision 18).
    "ConfirmHold": allow(P, A, S, effect=Effect.WRITE, owned=True),
    "CancelHold": allow(P, C, A, S, effect=Effect.WRITE, owned=True),
    "BlockSeat": allow(A, O, effect=Effect.WRITE),
    "UnblockSeat": allow(A, O, effect=Effect.WRITE),
    "ListSeatEvents": allow(A, O, effect=Effect.READ),
    "ClaimSeat": allow(S, effect=Effect.WRITE),
    "ReturnSeat": allow(S, effect=Effect.WRITE),
    "ReleasePassengerSeat": allow(S, effect=Effect.WRITE),
    "FindPassengerSeats": allow(S, effect=Effect.READ),
    "SyncPassengers": allow(S, effect=Effect.WRITE),
    "SetWaitlistOpen": allow(S, effect=Effect.WRITE),
}
