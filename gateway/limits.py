"""How much one source may call: limits as values, and those that hold until operations say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.exposure import CallClass
from services.auth import Role


class Key(StrEnum):
    """Whom a limit counts by."""

    PRINCIPAL = "PRINCIPAL"
    """Whoever the token names."""
    ADDRESS = "ADDRESS"
    """The client's address; of IPv6 the /64 network, which is one customer's."""


class Mode(StrEnum):
    """What a limit does to a call that is over it."""

    ENFORCED = "ENFORCED"
    SHADOW = "SHADOW"
    """Counts it and lets it pass."""


# The class of every call, whatever it is: the shield of the machine itself.
ANY_CLASS: Final = "any"
TOKEN_ROLES: Final = tuple(role for role in Role if role is not Role.ANYBODY)
# Those whose calls are counted by address, too. The tokens of operations and services are the airline's own.
ADDRESS_ROLES: Final = (Role.PASSENGER, Role.CUSTOMER, Role.AGENT)
# What is called without a token.
PUBLIC_CLASSES: Final = frozenset({CallClass.LOGIN, CallClass.SEARCH, CallClass.WEBHOOK})


@dataclass(frozen=True, slots=True)
class Limit:
    """So many calls of one class, from one source: evenly refilled, and a burst of somebody who was quiet."""

    limit_id: str
    call_class: str
    key: Key
    requests_per_minute: int
    burst: int
    role: str = ""
    """Whose; empty for roles that have no limit of their own."""
    mode: Mode = Mode.ENFORCED


def _of_principals(call_class: CallClass, *, everybody: tuple[int, int], agents: tuple[int, int]) -> tuple[Limit, ...]:
    """The limits of passengers and customers, of agents, and of machines: (calls in a minute, burst)."""
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
    """The limits of all passengers, of all customers, and of all agents of one address: (calls in a minute, burst)."""
    return (
        _of_addresses(call_class, *everybody),
        Limit(f"{call_class}-per-agent-address", call_class, Key.ADDRESS, *agents, Role.AGENT),
    )


DEFAULTS: Final = (
    # A burst of maps is just what is no abuse yet (GW-3): more than 30 in 5 s.
    *_of_principals(CallClass.MAP, everybody=(60, 30), agents=(300, 30)),
    *_of_principals(CallClass.HOLD, everybody=(20, 20), agents=(300, 100)),
    *_of_principals(CallClass.READ, everybody=(300, 150), agents=(3_000, 500)),
    *_of_principals(CallClass.WRITE, everybody=(120, 60), agents=(1_200, 300)),
    *_of_principals(CallClass.WATCH, everybody=(60, 30), agents=(300, 60)),
    # Behind one address may be an airport, an office, or a mobile network: as much as fifty callers at their limits.
    # Without these a caller has the limits of as many principals as it makes.
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

# What must be counted exactly, by all gateways together: what changes something. A read is counted by each gateway for
# itself, because asking somebody for each of them would halve what the gateway can do.
SHARED: Final = frozenset({CallClass.HOLD, CallClass.WRITE, CallClass.LOGIN})


def of_call(limits: tuple[Limit, ...], call_class: str, key: Key, role: str) -> Limit | None:
    """The limit of a call: its role's own, or that of everybody; None where there is none."""
    found = {limit.role: limit for limit in limits if limit.call_class == call_class and limit.key is key}
    return found.get(role) or found.get("")


def address_limit(limits: tuple[Limit, ...], call_class: str, role: str) -> Limit | None:
    """The limit of an address for calls of a role, or without a token (role ""); None where there is none."""
    if (call_class in PUBLIC_CLASSES) != (role == "") or (role and role not in ADDRESS_ROLES):
        return None
    return of_call(limits, call_class, Key.ADDRESS, role)
