"""Paths that do not exist for clients outside (attack 29)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2

from services.auth import Role
from tests.security.messages import NO_FLIGHT
from tests.security.system import SERVICES, System
from tests.waiting import PATIENCE_SECONDS

# Paths of Envoy, of our services, and of pages that other systems often leave open.
PATHS: Final = (
    *("/stats", "/stats/prometheus", "/config_dump", "/server_info", "/clusters", "/ready", "/quitquitquit"),
    *("/metrics", "/debug/pprof", "/admin", "/actuator/env", "/.env", "/.git/config", "/swagger.json"),
    *(
        "//stats",
        "/v1/../stats",
        "/v1/%2e%2e/stats",
        "/v1/..;/stats",
        "/healthz/../stats",
        "/v1/flights/..%2f..%2fstats",
    ),
)
LOOPBACK: Final = "0100007F"


@pytest.mark.parametrize("path", PATHS)
async def test_internal_paths_do_not_exist(system: System, path: str) -> None:
    token = {"authorization": f"Bearer {system.token(Role.OPERATIONS)}"}
    for headers in ({}, token):
        for method in ("GET", "POST"):
            answer = await system.http.request(method, path, headers=headers)
            assert answer.status_code in (400, 404, 405), method
            assert "envoy" not in answer.text.lower()


@pytest.mark.parametrize(
    "path",
    [
        "/grpc.health.v1.Health/Check",
        "/grpc.health.v1.Health/Watch",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
        "/envoy.service.accesslog.v3.AccessLogService/StreamAccessLogs",
        "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
        "/skyhigh.weight.v1.WeightService/WeighBags",
        "/skyhigh.seat.v1.SeatService/GetSeatMap/",
        "/skyhigh.seat.v1.seatservice/getseatmap",
    ],
)
async def test_internal_rpcs_do_not_exist(system: System, path: str) -> None:
    for role in Role:
        metadata = (("authorization", f"Bearer {system.token(role)}"),)
        async with grpc.aio.insecure_channel(f"127.0.0.1:{system.port}") as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cast("Any", channel.unary_unary(path))(b"", metadata=metadata, timeout=PATIENCE_SECONDS)
        assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_health_response_has_no_details(system: System) -> None:
    answer = await system.http.get("/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "SERVING"})
    for service in SERVICES:
        async with grpc.aio.insecure_channel(system.callers[service.name].address) as channel:
            told = await cast("Any", channel.unary_unary("/grpc.health.v1.Health/Check"))(b"", timeout=PATIENCE_SECONDS)
        assert health_pb2.HealthCheckResponse.FromString(told).status == health_pb2.HealthCheckResponse.SERVING


def test_the_admin_interface_listens_on_loopback_alone(system: System) -> None:
    lines = [
        line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]
    ]
    port = f"{system.admin_port:04X}"
    listening = [fields[1].split(":")[0] for fields in lines if fields[1].endswith(f":{port}") and fields[3] == "0A"]
    assert listening == [LOOPBACK]


async def test_no_response_names_the_servers_behind_it(system: System) -> None:
    for path in ("/v1/flights", f"/v1/flights/{NO_FLIGHT}", "/nothing", "/v1/holds/x"):
        answer = await system.http.get(path)
        told = {name.lower() for name in answer.headers}
        assert not {name for name in told if name.startswith(("x-envoy-", "x-powered-by", "x-skyhigh", "via"))}, path
        assert answer.headers["server"] == "skyhigh"
        # This header repeats the host of the request.
        answer.headers.pop("www-authenticate", None)
        assert "127.0.0.1" not in answer.text + str(answer.headers)
