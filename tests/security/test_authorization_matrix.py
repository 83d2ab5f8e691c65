"""Every RPC by role and by owner (attacks 1, 2 and 4).

The calls go by gRPC to the service, and both ways through the edge.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

import grpc
import pytest
from google.protobuf.message import Message

from gateway.descriptors import read_descriptors
from services.auth import Role
from tests.security.belongings import KEYS, Belongings, missing
from tests.security.messages import valid
from tests.security.system import RPCS, SERVICES, Rpc, System

# The scales are another system; Envoy's services have its names and messages (tests/limits).
NOT_ATTACKED: Final = {
    "skyhigh.weight.v1.WeightService",
    "skyhigh.gateway.v1.RateLimitService",
    "skyhigh.gateway.v1.AccessLogService",
    "skyhigh.gateway.v1.ExtensionConfigDiscoveryService",
}
REFUSED: Final = {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}
HTTP: Final = {grpc.StatusCode.PERMISSION_DENIED: 403, grpc.StatusCode.UNAUTHENTICATED: 401}


def may(rpc: Rpc, role: Role) -> bool:
    """Returns whether the declaration admits a role; ANYBODY is a caller without a token."""
    return rpc.declaration.public or role in rpc.declaration.roles


def owned(role: Role) -> Iterator[tuple[Rpc, str]]:
    """Yields the owned RPCs that a role may call, once for each field that identifies the resource."""
    for rpc in RPCS.values():
        if role in rpc.declaration.roles:
            for key in rpc.declaration.owned:
                yield rpc, key


def test_every_rpc_of_every_service_is_listed() -> None:
    described = {
        f"{file.package}.{service.name}"
        for file in read_descriptors().file
        if file.package.startswith("skyhigh.")
        for service in file.service
    }
    assert described - NOT_ATTACKED == {service.descriptor.full_name for service in SERVICES}
    assert len(RPCS) == sum(len(service.descriptor.methods) for service in SERVICES), "two RPCs share a name"


def test_an_owned_rpc_declares_every_field_that_names_a_resource() -> None:
    for rpc in RPCS.values():
        named = [key for key in KEYS if key in rpc.method.input_type.fields_by_name]
        assert set(rpc.declaration.owned) in (set(), set(named)), rpc.name


@pytest.mark.usefixtures("nothing_changed")
async def test_every_role_without_access_is_refused(system: System, belongings: Belongings) -> None:
    """The caller is refused even if the resource exists."""
    values = {**belongings.values[Role.PASSENGER], **belongings.values[Role.CUSTOMER]}
    wrong = []
    for rpc in RPCS.values():
        request = valid(rpc.request(), values)
        for role in Role:
            if may(rpc, role):
                continue
            token = system.token(role)
            expected = grpc.StatusCode.PERMISSION_DENIED if token else grpc.StatusCode.UNAUTHENTICATED
            got: list[object] = [(await system.ask(rpc, request, token)).code]
            if rpc.exposed:
                got.append((await system.ask(rpc, request, token, outside=True)).code)
            if rpc.exposed and rpc.binding:
                status = (await system.ask_json(rpc, request, token)).status_code
                got.append(expected if status == HTTP[expected] else status)
            if set(got) != {expected}:
                wrong.append((rpc.name, role.value, got))
    assert wrong == []


@pytest.mark.parametrize("name", RPCS)
async def test_every_role_with_access_is_admitted(system: System, name: str) -> None:
    rpc = RPCS[name]
    for role in Role:
        if may(rpc, role):
            token = system.token(role)
            request = valid(rpc.request(), {key: missing(key) for key in (*KEYS, "flight_id")})
            answers = [await system.ask(rpc, request, token)]
            if rpc.exposed:
                answers.append(await system.ask(rpc, request, token, outside=True))
            for answer in answers:
                # A webhook is authenticated by its signature instead of a token.
                assert answer.code not in REFUSED or b"WEBHOOK_UNSIGNED" in answer.details, role


@pytest.mark.parametrize("name", [name for name, rpc in RPCS.items() if not rpc.exposed])
async def test_internal_methods_do_not_exist_at_the_edge(system: System, name: str) -> None:
    rpc = RPCS[name]
    assert rpc.binding is None
    for role in Role:
        answer = await system.ask(rpc, valid(rpc.request()), system.token(role), outside=True)
        assert answer.code is grpc.StatusCode.UNIMPLEMENTED, role


@pytest.mark.usefixtures("nothing_changed")
@pytest.mark.parametrize("role", [Role.PASSENGER, Role.CUSTOMER])
async def test_foreign_and_missing_resources_look_the_same(system: System, belongings: Belongings, role: Role) -> None:
    token = belongings.stranger[role]
    for rpc, key in owned(role):
        foreign, nothing = (
            named(rpc, belongings, key, value) for value in (belongings.values[role][key], missing(key))
        )
        answer = await system.ask(rpc, foreign, token)
        assert answer.code is grpc.StatusCode.NOT_FOUND, (rpc.name, key)
        assert answer == await system.ask(rpc, nothing, token), (rpc.name, key)
        assert answer == await system.ask(rpc, foreign, token, outside=True), (rpc.name, key)
        seen, unseen = await system.ask_json(rpc, foreign, token), await system.ask_json(rpc, nothing, token)
        assert (seen.status_code, seen.content) == (unseen.status_code, unseen.content), (rpc.name, key)
        assert seen.status_code == 404


@pytest.mark.parametrize("role", [Role.PASSENGER, Role.CUSTOMER])
async def test_own_resources_are_found(system: System, belongings: Belongings, role: Role) -> None:
    """Otherwise a service that never finds anything would pass the test above."""
    for rpc, key in owned(role):
        own = named(rpc, belongings, key, belongings.values[role][key], belongings.values[role])
        assert (await system.ask(rpc, own, belongings.owner[role])).code is not grpc.StatusCode.NOT_FOUND, rpc.name


def named(rpc: Rpc, belongings: Belongings, key: str, value: str, values: Mapping[str, str] | None = None) -> Message:
    """Returns the stranger's own request with only this field changed."""
    request = valid(rpc.request(), {**belongings.strangers_own, **(values or {}), key: value})
    setattr(request, key, value)
    return request
