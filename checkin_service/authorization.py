"""The roles that can call each method of the check-in service.

A method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

P, A, O, S = Role.PASSENGER, Role.AGENT, Role.OPERATIONS, Role.SERVICE  # noqa: E741

POLICY: Final[Mapping[str, Access]] = {
    "ImportManifest": allow(O, S, effect=Effect.WRITE),
    "CreateSession": allow(Role.ANYBODY, effect=Effect.WRITE),
    "GetTrip": allow(P, A, effect=Effect.READ, owned=True),
    "GetEligibility": allow(P, A, S, effect=Effect.READ, owned=True),
    "StartCheckIn": allow(P, A, effect=Effect.WRITE, owned=True),
    "GetCheckIn": allow(P, A, O, effect=Effect.READ, owned=True),
    "WatchCheckIn": allow(P, A, O, effect=Effect.STREAM, owned=True),
    "DeclareBaggage": allow(P, A, effect=Effect.WRITE, owned=True),
    "CancelCheckIn": allow(P, A, effect=Effect.WRITE, owned=True),
    "GetBoardingPass": allow(P, A, effect=Effect.READ, owned=True),
    "GetBoardingPassSvg": allow(P, A, effect=Effect.READ, owned=True),
    "GetBoardingPassPng": allow(P, A, effect=Effect.READ, owned=True),
    "ListCheckIns": allow(A, O, effect=Effect.READ),
    "GetPassenger": allow(S, effect=Effect.READ),
    "ReserveLocator": allow(S, effect=Effect.WRITE),
    "FindPassengers": allow(S, effect=Effect.READ),
}
