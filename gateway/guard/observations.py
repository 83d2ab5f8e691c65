"""Observations for abuse detection, from Envoy's access log.

Detection reads the log instead of intercepting calls, so that it does not delay them.

Envoy streams the log entries of the RPCs in `OBSERVED` several times a second, including calls that it refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from skyhigh.gateway.v1 import envoy_pb2

from gateway.filters import ROLE_HEADER, SUBJECT_HEADER
from gateway.guard.settings import GatewayServiceSettings
from gateway.guard.windows import Seen, Window
from services.addresses import counted_source
from services.auth import Role

MAPS: Final = frozenset({"seat.GetSeatMap", "seat.GetSeatMapJson"})
HOLDS: Final = frozenset({"seat.HoldSeat", "seat.HoldSeats"})
GIVEN_UP: Final = frozenset({"seat.CancelHold"})
LOGINS: Final = frozenset({"checkin.CreateSession"})
BOOKINGS: Final = frozenset({"booking.CreateBooking"})
OBSERVED: Final = MAPS | HOLDS | GIVEN_UP | LOGINS | BOOKINGS
# Roles of the airline's own systems, which read many maps by design.
TRUSTED: Final = frozenset({Role.OPERATIONS, Role.SERVICE})

MAP_BURST: Final = "MAP_BURST"
MAP_SCAN: Final = "MAP_SCAN"
HOLD_SPINNING: Final = "HOLD_SPINNING"
LOGIN_GUESSING: Final = "LOGIN_GUESSING"
ADDRESS_HOARDING: Final = "ADDRESS_HOARDING"
KINDS: Final = (MAP_BURST, MAP_SCAN, HOLD_SPINNING, LOGIN_GUESSING, ADDRESS_HOARDING)
# The seat service itself refuses holds of such an address. A block would also stop other clients of the address.
WITHOUT_BLOCK: Final = frozenset({ADDRESS_HOARDING})
# The block covers only logins, because other clients may share the address.
LOGIN_ONLY: Final = frozenset({LOGIN_GUESSING})

# Envoy's response details for a response of a service, and for the refusal of a blocked source.
_FROM_SERVICE: Final = "via_upstream"
_BLOCKED: Final = "lua_response"
_OK, _UNAUTHENTICATED, _NOT_FOUND, _TOO_MANY = 200, 401, 404, 429
_FLIGHT: Final = re.compile(r"^/v1/flights/([^/?]{1,64})/")


@dataclass(frozen=True, slots=True)
class Observation:
    """One call that counts towards a window of its source."""

    window: Window
    seen: Seen


def observations(
    entries: Iterable[envoy_pb2.HttpAccessLogEntry], settings: GatewayServiceSettings
) -> list[tuple[Window, list[Seen]]]:
    """Returns the observations in these log entries, by window."""
    found: dict[Window, list[Seen]] = {}
    for entry in entries:
        for observation in _of_call(entry, settings):
            found.setdefault(observation.window, []).append(observation.seen)
    return list(found.items())


def _of_call(entry: envoy_pb2.HttpAccessLogEntry, settings: GatewayServiceSettings) -> Iterator[Observation]:
    # Refusals by a block do not count, so that the block ends at its time even if its source keeps calling.
    if entry.response.response_code_details == _BLOCKED:
        return
    rpc = entry.common_properties.route_name
    principal, role = _principal(entry)
    if rpc in LOGINS:
        if _failed(entry):
            yield _observed(entry, Window(LOGIN_GUESSING, _address(entry), 600, settings.failed_logins))
    elif principal and role not in TRUSTED:
        if rpc in MAPS:
            yield _observed(entry, Window(MAP_BURST, principal, 5, settings.map_burst))
            if flight := _FLIGHT.match(_path(entry)):
                yield _observed(entry, Window(MAP_SCAN, principal, 2, settings.map_scan), of=flight[1])
        elif _spins(rpc, entry) and role != Role.AGENT:
            yield _observed(entry, Window(HOLD_SPINNING, principal, 300, settings.hold_spins))
        if rpc in HOLDS | BOOKINGS and role == Role.CUSTOMER and _refused_by_service(entry):
            window = Window(ADDRESS_HOARDING, _address(entry), 300, settings.hoarding_guests)
            yield Observation(window, Seen(_time(entry), f"{principal} {rpc}"))


def _failed(entry: envoy_pb2.HttpAccessLogEntry) -> bool:
    return entry.response.response_code.value in (_UNAUTHENTICATED, _NOT_FOUND, _TOO_MANY)


def _spins(rpc: str, entry: envoy_pb2.HttpAccessLogEntry) -> bool:
    """Returns whether a hold was cancelled, or refused by the seat service.

    The seat service refuses callers whose holds keep expiring (SEAT-16).
    """
    if rpc in GIVEN_UP:
        return entry.response.response_code.value == _OK
    return rpc in HOLDS and _refused_by_service(entry)


def _refused_by_service(entry: envoy_pb2.HttpAccessLogEntry) -> bool:
    """Returns whether the service itself, not a limit of the gateway, answered 429."""
    return entry.response.response_code.value == _TOO_MANY and entry.response.response_code_details == _FROM_SERVICE


def _time(entry: envoy_pb2.HttpAccessLogEntry) -> float:
    start = entry.common_properties.start_time
    return start.seconds + start.nanos / 1e9


def _observed(entry: envoy_pb2.HttpAccessLogEntry, window: Window, *, of: str = "") -> Observation:
    """Returns the observation of a call.

    Calls with the same `of` count once; without it each call counts.
    """
    path = _path(entry) if window.kind not in LOGIN_ONLY else entry.common_properties.route_name
    member = f"{of} {path}" if of else f"{entry.request.request_id} {path}"
    return Observation(window, Seen(_time(entry), member))


def evidence(members: Iterable[str]) -> tuple[str, ...]:
    """Returns the paths or RPCs in the members of a window."""
    return tuple(member.partition(" ")[2] for member in members)


def _path(entry: envoy_pb2.HttpAccessLogEntry) -> str:
    """Returns the path of the caller's request, without its query."""
    return (entry.request.original_path or entry.request.path).partition("?")[0][:200]


def _principal(entry: envoy_pb2.HttpAccessLogEntry) -> tuple[str, str]:
    headers = entry.request.request_headers
    role, subject = headers.get(ROLE_HEADER, ""), headers.get(SUBJECT_HEADER, "")
    return (f"{role}:{subject}", role) if role and subject else ("", "")


def _address(entry: envoy_pb2.HttpAccessLogEntry) -> str:
    address = entry.common_properties.downstream_remote_address.socket_address.address
    return counted_source(f"address:{address}")
