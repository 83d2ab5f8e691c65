"""A token has one rule: the edge and the services accept the same headers, times and subjects."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import grpc
import pytest
import yaml
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from gateway.descriptors import read_descriptors
from gateway.render import render
from gateway.settings import GatewaySettings
from services.auth import CLOCK_SKEW_SECONDS, TOKEN_PREFIXES
from tests.conftest import World
from tests.dates import flight_id
from tests.gateway.conftest import Gateway, Others
from tests.gateway.edges import edge_settings
from tests.gateway.test_configuration import connection_manager

NO_BOOKING: Final = "/v1/bookings/00000000-0000-4000-8000-000000000000"


async def is_taken_by_edge(gateway: Gateway, others: Others, authorization: str) -> bool:
    """Returns whether a call with this header reaches the service behind the edge."""
    heard = len(others.echo.heard)
    answer = await gateway.http.get(NO_BOOKING, headers={"authorization": authorization})
    assert answer.status_code in (200, 401)
    assert (answer.status_code == 200) == (len(others.echo.heard) > heard)
    return answer.status_code == 200


async def is_taken_by_service(gateway: Gateway, authorization: str) -> bool:
    """Returns whether a service accepts this header on its own port."""
    async with grpc.aio.insecure_channel(gateway.callers.address) as channel:
        stub: Any = SeatServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await stub.GetSeatMap(
                pb.GetSeatMapRequest(flight_id=flight_id("SH404")), metadata=(("authorization", authorization),)
            )
    assert refusal.value.code() in (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.NOT_FOUND)
    return refusal.value.code() is grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize(
    ("form", "taken"),
    [
        ("Bearer {}", True),
        ("bearer {}", True),
        ("BEARER {}", False),
        ("Bearer", False),
        ("Bearer{}", False),
        ("Basic {}", False),
        ("{}", False),
    ],
)
async def test_edge_and_services_read_the_header_alike(
    gateway: Gateway, others: Others, form: str, taken: bool
) -> None:
    authorization = form.format(gateway.callers.agent().token)
    assert await is_taken_by_service(gateway, authorization) is taken
    assert await is_taken_by_edge(gateway, others, authorization) is taken


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({"exp": 60}, True),
        ({"exp": -CLOCK_SKEW_SECONDS - 2}, False),
        ({"nbf": -60}, True),
        ({"nbf": 60}, False),
    ],
)
async def test_edge_and_services_read_token_times_alike(
    world: World, gateway: Gateway, others: Others, seconds: Mapping[str, int], taken: bool
) -> None:
    now = int(time.time())
    changed = {claim: now + each for claim, each in seconds.items()}
    token = world.keys.sign({**gateway.callers.claims("agent", "desk"), **changed})
    assert await is_taken_by_service(gateway, f"Bearer {token}") is taken
    assert await is_taken_by_edge(gateway, others, f"Bearer {token}") is taken


def test_edge_and_services_have_the_same_skew_and_prefixes(world: World) -> None:
    text = render(edge_settings(world, "127.0.0.1:1"), read_descriptors(), Path("api.binpb"))
    filters = connection_manager(yaml.load(text, yaml.CSafeLoader))["http_filters"]
    (config,) = [each["typed_config"] for each in filters if each["name"] == "envoy.filters.http.jwt_authn"]
    provider = config["providers"]["skyhigh"]
    assert provider["clock_skew_seconds"] == CLOCK_SKEW_SECONDS
    assert [each["value_prefix"] for each in provider["from_headers"]] == list(TOKEN_PREFIXES)
    assert GatewaySettings.model_fields["token_audience"].default == provider["audiences"][0]
