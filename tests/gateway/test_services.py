"""Every public method of every service through a real Envoy.

Covers routes, tokens, raw bodies and addresses.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any, Final, cast
from uuid import uuid4

import grpc
import httpx
import pytest
from google.api import httpbody_pb2
from google.protobuf.descriptor_pb2 import MethodDescriptorProto

from gateway.descriptors import json_bindings, read_descriptors
from gateway.upstreams import UPSTREAMS, Upstream
from services.auth import ANYBODY
from services.running_call import Call
from tests.dates import flight_id
from tests.gateway.conftest import Gateway, Others

VALUES: Final = {
    "flight_id": flight_id("SH101"),
    "seat_number": "12A",
    "passenger_id": "P1",
    "pnr": "XK4T7Q",
}


def routes() -> Iterator[tuple[Upstream, MethodDescriptorProto, str, str]]:
    """Yields service, method, verb and path of each binding of the services that do not run here."""
    exposed = {upstream.name: upstream for upstream in UPSTREAMS if upstream.cluster != "seat"}
    for file in read_descriptors().file:
        for service in file.service:
            name = f"{file.package}.{service.name}"
            for method in service.method if name in exposed else ():
                for verb, template in json_bindings(method):
                    path = re.sub(r"\{(\w+)\}", lambda found: VALUES.get(found[1], str(uuid4())), template)
                    yield exposed[name], method, verb, path


ROUTES: Final = list(routes())
IDS: Final = [f"{method.name}" for _, method, _, _ in ROUTES]


@pytest.mark.parametrize(("service", "method", "verb", "path"), ROUTES, ids=IDS)
async def test_a_route_reaches_its_method(  # noqa: PLR0917
    gateway: Gateway, others: Others, service: Upstream, method: MethodDescriptorProto, verb: str, path: str
) -> None:
    answer = await gateway.agent()(verb, path, {} if verb != "GET" else None)
    assert answer.status_code == 200, answer.text
    heard = others.echo.heard[-1]
    assert heard[0] == f"/{service.name}/{method.name}"
    assert "authorization" in heard[2], "the service checks the token again"


@pytest.mark.parametrize(("service", "method", "verb", "path"), ROUTES, ids=IDS)
async def test_a_token_is_required_as_the_rpc_declares(
    gateway: Gateway, service: Upstream, method: MethodDescriptorProto, verb: str, path: str
) -> None:
    bare = await gateway.http.request(verb, path, json={} if verb != "GET" else None)
    forged = await gateway.http.request(
        verb, path, json={} if verb != "GET" else None, headers={"authorization": "Bearer nonsense"}
    )
    expected = 200 if service.rpcs[method.name].public else 401
    assert (bare.status_code, forged.status_code) == (expected, expected)


@pytest.mark.parametrize(
    ("service", "method"),
    [(upstream, name) for upstream in UPSTREAMS for name, rpc in upstream.rpcs.items() if not rpc.exposed],
    ids=lambda value: getattr(value, "cluster", value),
)
async def test_an_internal_method_does_not_exist_at_the_edge(gateway: Gateway, service: Upstream, method: str) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{gateway.port}") as channel:
        metadata = (("authorization", f"Bearer {gateway.callers.service().token}"),)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await cast("Any", channel.unary_unary(f"/{service.name}/{method}"))(b"", metadata=metadata)
    assert refused.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("body", "more"),
    [
        (b'{"type": "charge.succeeded",  "data": {"a": 1.10}}\n', {}),
        (b"\x00\xff no JSON \xc3\x28", {"content-type": "application/octet-stream"}),
        (b"a=b&c=%20", {"content-type": "application/x-www-form-urlencoded"}),
        (gzip.compress(b"{}" * 100), {"content-encoding": "gzip"}),
        (b"x" * 64_000, {"content-type": "text/plain; charset=latin-1"}),
        (b"", {}),
    ],
    ids=["json", "bytes", "form", "gzip", "large", "empty"],
)
async def test_a_webhook_body_is_forwarded_unchanged(
    gateway: Gateway, others: Others, body: bytes, more: dict[str, str]
) -> None:
    headers = {
        "content-type": "application/json",
        **more,
        "webhook-id": "evt_1",
        "webhook-timestamp": "1764000000",
        "webhook-signature": "v1,c2lnbmF0dXJl v1,b3RoZXI=",
    }
    answer = await gateway.http.post("/v1/payments/webhook", content=body, headers=headers)
    assert answer.status_code == 200, answer.text
    method, message, heard = others.echo.heard[-1]
    assert method == "/skyhigh.payment.v1.PaymentService/ReceiveWebhook"
    assert httpbody_pb2.HttpBody.FromString(message).data == body
    assert {name: heard[name] for name in headers if name.startswith("webhook")} == {
        name: value for name, value in headers.items() if name.startswith("webhook")
    }


@pytest.mark.parametrize(("content_type", "ending"), [("image/svg+xml", "svg"), ("image/png", "png")])
async def test_a_barcode_is_returned_as_a_picture(
    gateway: Gateway, others: Others, content_type: str, ending: str
) -> None:
    picture = b"\x89PNG\r\n\x1a\n\x00\xff" * 200
    others.echo.answer = httpbody_pb2.HttpBody(content_type=content_type, data=picture).SerializeToString()
    try:
        answer = await gateway.agent()("GET", f"/v1/checkins/{uuid4()}/boardingpass.{ending}?symbology=QR")
    finally:
        others.echo.answer = b""
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    assert answer.content == picture


async def test_a_check_in_is_watched_as_server_sent_events(gateway: Gateway) -> None:
    answer = await gateway.agent()("GET", f"/v1/checkins/{uuid4()}/watch")
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["cache-control"] == "no-cache"
    assert [line.partition(":")[0] for line in answer.text.splitlines() if line] == ["data"]


async def test_a_service_gets_only_the_callers_address(gateway: Gateway, others: Others) -> None:
    names = ("x-forwarded-for", "x-real-ip", "x-skyhigh-client", "x-envoy-external-address")
    forged = {name: "203.0.113.66" for name in names} | {"forwarded": "for=203.0.113.66"}
    # The client has another address than the gateway, so that the two cannot be confused.
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(local_address="127.0.0.7")) as http:
        await http.post(f"http://127.0.0.1:{gateway.port}/v1/sessions", json={}, headers=forged)
    heard = others.echo.heard[-1][2]

    class Context:
        def peer(self) -> str:
            return "ipv4:127.0.0.1:4711"

        def invocation_metadata(self) -> object:
            return tuple(heard.items())

    networks = [ip_network("127.0.0.0/8")]
    running = Call("CreateSession", ANYBODY, "", None, Context(), networks)  # type: ignore[arg-type]
    assert running.client_address() == "127.0.0.7"
    assert not {name for name in names if heard.get(name) == "203.0.113.66"}
