"""Rate limits of one source as values, and their defaults.

The defaults apply until operations change them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.auth import Role
from services.rpcs import CallClass


class Key(StrEnum):
    """What identifies the source that a limit counts."""

    PRINCIPAL = "PRINCIPAL"
    """The principal of the token."""
    ADDRESS = "ADDRESS"
    """The client's address; for IPv6 the /64 network, because one customer has all its addresses."""


class Mode(StrEnum):
    """What happens to a call over the limit."""

    ENFORCED = "ENFORCED"
    SHADOW = "SHADOW"
    """The call is counted and passes."""


# The class of all calls together: its limit protects the machine itself.
ANY_CLASS: Final = "any"
TOKEN_ROLES: Final = tuple(role for role in Role if role is not Role.ANYBODY)
# Roles whose calls are counted by address, too. Tokens of operations and services belong to the airline's own systems.
ADDRESS_ROLES: Final = (Role.PASSENGER, Role.CUSTOMER, Role.AGENT)
# The classes of calls without a token.
PUBLIC_CLASSES: Final = frozenset({CallClass.LOGIN, CallClass.SEARCH, CallClass.WEBHOOK})


@dataclass(frozen=True, slots=True)
class Limit:
    """The calls that one source may make of one class.

    A bucket with room for `burst` calls is refilled at a constant rate.
    """

    limit_id: str
    call_class: str
    key: Key
    requests_per_minute: int
    burst: int
    role: str = ""
    """The role whose callers are counted; empty for all roles without a limit of their own."""
    mode: Mode = Mode.ENFORCED


def _of_principals(call_class: CallClass, *, everybody: tuple[int, int], agents: tuple[int, int]) -> tuple[Limit, ...]:
    """Returns the limits of passengers and customers, of agents, and of machines.

    A pair is (calls per minute, burst).
    """
    machines = (60_000, 5_000)
    rows = {"": everybody, Role.AGENT: agents, Role.OPERATIONS: machines, Role.SERVICE: machines}
    return tuple(
        Limit(f"{call_class}-per-{role or 'principal'}", call_class, Key.PRINCIPAL, per_minute, burst, role)
        for role, (per_minute, burst) in rows.items()
    )


def _of_addresses(call_class: str, per_minute: int, burst: int) -> Limit:
    return Limit(f"{call_class}-per-address", call_class, Key.ADDRESS, per_minute, burst)


def _of_callers_addresses(
    call_class: CallClass, *, everybody: tuple[int, int], agents: tuple[int, int]
) -> tuple[Limit, ...]:
    """Returns the limits per address: for passengers and customers, and for agents.

    A pair is (calls per minute, burst).
    """
    return (
        _of_addresses(call_class, *everybody),
        Limit(f"{call_class}-per-agent-address", call_class, Key.ADDRESS, *agents, Role.AGENT),
    )


DEFAULTS: Final = (
    # The burst for maps is the highest number that is not abuse: GW-3 blocks more than 30 in 5 s.
    *_of_principals(CallClass.MAP, everybody=(60, 30), agents=(300, 30)),
    *_of_principals(CallClass.HOLD, everybody=(20, 20), agents=(300, 100)),
    *_of_principals(CallClass.READ, everybody=(300, 150), agents=(3_000, 500)),
    *_of_principals(CallClass.WRITE, everybody=(120, 60), agents=(1_200, 300)),
    *_of_principals(CallClass.WATCH, everybody=(60, 30), agents=(300, 60)),
    # One address may be an airport, an office or a mobile network with many callers: it gets the limits of fifty
    # callers. Without these limits a caller could multiply its own by creating many principals.
    *_of_callers_addresses(CallClass.MAP, everybody=(3_000, 1_000), agents=(6_000, 1_000)),
    *_of_callers_addresses(CallClass.HOLD, everybody=(1_200, 300), agents=(3_000, 500)),
    *_of_callers_addresses(CallClass.READ, everybody=(15_000, 2_500), agents=(30_000, 3_000)),
    *_of_callers_addresses(CallClass.WRITE, everybody=(6_000, 1_000), agents=(12_000, 2_000)),
    *_of_callers_addresses(CallClass.WATCH, everybody=(3_000, 1_000), agents=(6_000, 1_000)),
    _of_addresses(CallClass.LOGIN, 600, 600),
    _of_addresses(CallClass.SEARCH, 6_000, 1_000),
    _of_addresses(CallClass.WEBHOOK, 6_000, 1_000),
    _of_addresses(ANY_CLASS, 60_000, 5_000),
)

# The classes that all gateways count together, exactly: calls that change something. Each gateway counts reads by
# itself, because a question to the shared counter for each read would halve the gateway's throughput.
SHARED: Final = frozenset({CallClass.HOLD, CallClass.WRITE, CallClass.LOGIN})


def of_call(limits: tuple[Limit, ...], call_class: str, key: Key, role: str) -> Limit | None:
    """Returns the limit of a call: that of its role, else that of all roles.

    None if there is none.
    """
    found = {limit.role: limit for limit in limits if limit.call_class == call_class and limit.key is key}
    return found.get(role) or found.get("")


def address_limit(limits: tuple[Limit, ...], call_class: str, role: str) -> Limit | None:
    """Returns the limit of an address for calls of a role.

    The role "" means calls without a token. None if there is no limit.
    """
    if (call_class in PUBLIC_CLASSES) != (role == "") or (role and role not in ADDRESS_ROLES):
        return None
    return of_call(limits, call_class, Key.ADDRESS, role)
