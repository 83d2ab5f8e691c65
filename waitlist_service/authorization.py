"""The roles that may call each method of the waitlist service.

A method without a row is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

P, A, O = Role.PASSENGER, Role.AGENT, Role.OPERATIONS  # noqa: E741

POLICY: Final[Mapping[str, Access]] = {
    "JoinWaitlist": allow(P, A, effect=Effect.WRITE, owned=True),
    "GetWaitlistEntry": allow(P, A, effect=Effect.READ, owned=True),
    "AcceptOffer": allow(P, A, effect=Effect.WRITE, owned=True),
    "DeclineOffer": allow(P, A, effect=Effect.WRITE, owned=True),
    "LeaveWaitlist": allow(P, A, effect=Effect.WRITE, owned=True),
    "ListWaitlist": allow(A, O, effect=Effect.READ),
    "SetWaitlistMode": allow(A, O, effect=Effect.WRITE),
}
