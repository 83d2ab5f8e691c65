"""Who may call what: the table of SPEC section 3, written out a second time and held against the running service."""

from __future__ import annotations

from typing import Any, Final

import grpc
import pytest
from google.protobuf import message_factory
from skyhigh.seat.v1 import seat_service_pb2 as pb

from seat_service.authorization import POLICY
from services.auth import Role
from tests.callers import Caller, Callers, read, refused
from tests.conftest import World
from tests.instances import instance

SERVICE: Final = pb.DESCRIPTOR.services_by_name["SeatService"]
# Passenger, customer, agent, operations, service.
MAY_CALL: Final = {
    "ProvisionSeats": "OS",
    "GetSeatMap": "PCAOS",
    "GetSeatMapJson": "PCAOS",
    "WatchSeatMap": "PCAOS",
    "SuggestSeats": "PCAS",
    "HoldSeat": "PCAS",
    "HoldSeats": "PCAS",
    "GetHold": "PCAOS",
    "ExtendHold": "PCAS",
    "ChangeHoldSeats": "PCAS",
    "ConfirmHold": "PCAS",
    "CancelHold": "PCAS",
    "BlockSeat": "AO",
    "UnblockSeat": "AO",
    "ListSeatEvents": "AO",
    "ClaimSeat": "S",
    "ReturnSeat": "S",
    "SetWaitlistOpen": "S",
}
LETTERS: Final = {letter: Role[name] for letter, name in zip("PCAOS-", Role.__members__, strict=True)}
ROLES: Final = [role for role in Role if role is not Role.ANYBODY]


async def call(caller: Caller, method: str) -> None:
    """Calls with an empty request, which each method refuses once the caller may call it."""
    descriptor = SERVICE.methods_by_name[method]
    request = message_factory.GetMessageClass(descriptor.input_type)()
    answer = getattr(caller, method)(request)
    if descriptor.server_streaming:
        await answer.read()
    else:
        await answer


def caller_of(callers: Callers, role: Role) -> Caller:
    opened: dict[Role, Any] = {
        Role.PASSENGER: callers.passenger,
        Role.CUSTOMER: callers.customer,
        Role.AGENT: callers.agent,
        Role.OPERATIONS: callers.operations,
        Role.SERVICE: callers.service,
    }
    caller: Caller = opened[role]()
    return caller


def test_every_method_has_a_row_and_every_row_a_method() -> None:
    assert set(POLICY) == set(SERVICE.methods_by_name) == set(MAY_CALL)


def test_the_table_is_the_contracts() -> None:
    assert {method: access.roles for method, access in POLICY.items()} == {
        method: frozenset(LETTERS[letter] for letter in letters) for method, letters in MAY_CALL.items()
    }


@pytest.mark.parametrize("role", ROLES)
@pytest.mark.parametrize("method", MAY_CALL)
async def test_a_role_reaches_what_it_may_and_nothing_else(callers: Callers, method: str, role: Role) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as answer:
        await call(caller_of(callers, role), method)
    allowed = any(LETTERS[letter] is role for letter in MAY_CALL[method])
    assert read(answer.value).reason == ("INVALID_FIELD" if allowed else "PERMISSION_DENIED")


@pytest.mark.parametrize("method", MAY_CALL)
async def test_nobody_comes_in_without_a_token(callers: Callers, method: str) -> None:
    with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
        await call(callers.anybody("nonsense"), method)


async def test_a_method_without_a_row_is_refused_to_everybody(world: World) -> None:
    forgotten = {method: access for method, access in POLICY.items() if method != "GetSeatMap"}
    async with instance(world, policy=forgotten) as served:
        for role in ROLES:
            with refused("PERMISSION_DENIED", "PERMISSION_DENIED"):
                await call(caller_of(served.callers, role), "GetSeatMap")
