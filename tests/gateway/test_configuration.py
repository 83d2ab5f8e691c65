"""The edge's routes and settings, read from the rendered configuration.

Only one test needs the Envoy binary.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto
from pydantic import ValidationError
from skyhigh.gateway.v1.error_reason_pb2 import ErrorReason
from skyhigh.options.v1 import rpc_pb2

from gateway.descriptors import json_bindings, read_descriptors
from gateway.edge_errors import EDGE_ERRORS
from gateway.guard.settings import RateLimits
from gateway.render import check, render
from gateway.routes import ExposureError, path_regex
from gateway.settings import GatewaySettings
from gateway.upstreams import UPSTREAMS
from services.rpcs import DeclarationError, Effect, Rpc

HTTP_FILTERS = "envoy.filters.http."


@pytest.fixture
def api() -> FileDescriptorSet:
    return read_descriptors()


@pytest.fixture(scope="module")
def jwks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configuration") / "jwks.json"
    path.write_text('{"keys": []}')
    return path


def rendered(api: FileDescriptorSet, jwks: Path, **settings: Any) -> dict[str, Any]:
    settings = {"jwks": jwks, "rate_limits": RateLimits.OFF, **settings}
    # The C loader, because the pure Python one needs a third of a second for the whole configuration.
    config = yaml.load(render(GatewaySettings(**settings), api, Path("api.binpb")), yaml.CSafeLoader)
    assert isinstance(config, dict)
    return config


@pytest.fixture(scope="module")
def config(jwks: Path) -> dict[str, Any]:
    """Returns the default configuration. It is rendered once; no test changes it."""
    return rendered(read_descriptors(), jwks)


def connection_manager(config: dict[str, Any]) -> dict[str, Any]:
    (listener,) = config["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    assert isinstance(manager, dict)
    return manager


def routes(config: dict[str, Any]) -> list[dict[str, Any]]:
    (host,) = connection_manager(config)["route_config"]["virtual_hosts"]
    return list(host["routes"])


def rpc_routes(config: dict[str, Any]) -> dict[str, dict[str, Any]]:
    paths = ((route["match"].get("path", ""), route) for route in routes(config))
    return {path: route for path, route in paths if path.startswith("/skyhigh.")}


def methods(api: FileDescriptorSet) -> Iterator[tuple[str, MethodDescriptorProto, Rpc]]:
    for upstream in UPSTREAMS:
        for file in api.file:
            for service in file.service:
                if f"{file.package}.{service.name}" == upstream.name:
                    for method in service.method:
                        yield f"/{upstream.name}/{method.name}", method, upstream.rpcs[method.name]


def test_envoy_takes_the_configuration_without_a_warning() -> None:
    assert check() == []


def test_an_rpc_without_a_declaration_stops_the_rendering(api: FileDescriptorSet, jwks: Path) -> None:
    (file,) = [file for file in api.file if file.name == "skyhigh/seat/v1/seat_service.proto"]
    file.service[0].method.add(name="GiveAllSeatsAway")
    with pytest.raises(DeclarationError, match=r"skyhigh\.seat\.v1\.SeatService\.GiveAllSeatsAway: has no option"):
        rendered(api, jwks)


def test_a_route_without_a_cluster_stops_the_rendering(api: FileDescriptorSet, jwks: Path) -> None:
    (weighing,) = [file.service[0] for file in api.file if file.package == "skyhigh.weight.v1"]
    weighing.method[0].options.Extensions[rpc_pb2.rpc].gateway.call_class = rpc_pb2.Rpc.Gateway.READ
    with pytest.raises(ExposureError, match=r"skyhigh\.weight\.v1\.WeightService"):
        rendered(api, jwks)


def test_exactly_the_exposed_rpcs_have_a_route(api: FileDescriptorSet, config: dict[str, Any]) -> None:
    exposed = {path for path, _, rpc in methods(api) if rpc.exposed}
    assert rpc_routes(config).keys() == exposed


def test_routes_accept_only_grpc_and_mostly_require_tokens(api: FileDescriptorSet, config: dict[str, Any]) -> None:
    open_to_all = set()
    for path, route in rpc_routes(config).items():
        (content_type,) = route["match"]["headers"]
        assert content_type == {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
        token = route["typed_per_filter_config"][HTTP_FILTERS + "jwt_authn"]
        if token.get("disabled"):
            open_to_all.add(path)
        else:
            assert token["requirement_name"] == "token"
    assert open_to_all == {path for path, _, rpc in methods(api) if rpc.public}


def test_only_public_rpcs_and_preflights_reach_a_cluster(config: dict[str, Any]) -> None:
    others = [route for route in routes(config) if "path" not in route["match"]]
    assert {route["name"] for route in others if "route" in route} == {"preflight"}
    (preflight,) = [route for route in others if "route" in route]
    (nowhere,) = [c for c in config["static_resources"]["clusters"] if c["name"] == preflight["route"]["cluster"]]
    assert "load_assignment" not in nowhere
    assert others[-1] == {"name": "unknown", "match": {"prefix": "/"}, "direct_response": {"status": 404}}


def test_every_public_rpc_has_its_timeout_and_its_retries(api: FileDescriptorSet, config: dict[str, Any]) -> None:
    found = rpc_routes(config)
    unseen = {"connect-failure", "refused-stream"}
    for path, _, rpc in methods(api):
        if not rpc.exposed:
            continue
        action = found[path]["route"]
        assert action["timeout"] == ("0s" if rpc.seconds is None else f"{rpc.seconds:g}s")
        retried = set(action["retry_policy"]["retry_on"].split(","))
        assert retried == (unseen | {"reset", "unavailable", "cancelled"} if rpc.effect is Effect.READ else unseen)
        deadlines = [
            header["header"]["value"]
            for header in found[path].get("request_headers_to_add", [])
            if header["header"]["key"] == "grpc-timeout"
        ]
        assert deadlines == ([] if rpc.seconds is None else [f"{rpc.seconds * 1000 - 100:.0f}m"])


def test_a_quiet_watch_lasts_three_heartbeats(config: dict[str, Any]) -> None:
    idle = [route["route"]["idle_timeout"] for route in rpc_routes(config).values() if "idle_timeout" in route["route"]]
    assert idle == ["60s", "60s", "60s"]
    assert connection_manager(config)["stream_idle_timeout"] == "10s"


def test_http_verbs_agree_with_the_declarations(api: FileDescriptorSet) -> None:
    for path, method, rpc in methods(api):
        verbs = {verb for verb, _ in json_bindings(method)}
        if not rpc.exposed:
            assert not verbs, path
        if verbs:
            assert (verbs == {"GET"}) == (not rpc.mutation), path


def test_every_json_route_of_the_protos_is_covered(api: FileDescriptorSet, config: dict[str, Any]) -> None:
    (transcoder,) = [
        http_filter["typed_config"]
        for http_filter in connection_manager(config)["http_filters"]
        if http_filter["name"] == HTTP_FILTERS + "grpc_json_transcoder"
    ]
    assert transcoder["services"] == [upstream.name for upstream in UPSTREAMS]
    allowed: dict[str, set[str]] = {
        route["match"]["safe_regex"]["regex"]: set(route["response_headers_to_add"][0]["header"]["value"].split(", "))
        for route in routes(config)
        if route["name"] == "wrong-method"
    }
    bound: dict[str, set[str]] = {}
    for _, method, _ in methods(api):
        for verb, template in json_bindings(method):
            bound.setdefault(path_regex(template), set()).add(verb)
    assert allowed == bound
    assert len(bound) == 53


@pytest.mark.parametrize(
    ("path", "fits"),
    [
        ("/v1/holds/7d/seats", True),
        ("/v1/holds//seats", False),
        ("/v1/holds/7d/x/seats", False),
        ("/v1/holds/7d/seats/", False),
    ],
)
def test_a_path_variable_is_one_segment(path: str, fits: bool) -> None:
    assert bool(re.fullmatch(path_regex("/v1/holds/{hold_id}/seats"), path)) is fits


def test_an_unreadable_path_template_is_refused() -> None:
    with pytest.raises(ExposureError, match="whole segments"):
        path_regex("/v1/{name=holds/*}")


def test_every_reason_of_the_edge_is_declared() -> None:
    assert {error.reason for error in EDGE_ERRORS} <= set(ErrorReason.keys())


def test_only_errors_are_rewritten(config: dict[str, Any]) -> None:
    replies = connection_manager(config)["local_reply_config"]
    assert replies.keys() == {"mappers"}


def test_the_filters_are_in_the_required_order(config: dict[str, Any]) -> None:
    names = [
        http_filter["name"].removeprefix(HTTP_FILTERS) for http_filter in connection_manager(config)["http_filters"]
    ]
    assert names == [
        *("buffer", "compressor", "health_check", "lua", "strict-json", "grpc_web", "grpc_json_transcoder"),
        *("cors", "jwt_authn", "grpc_stats", "router"),
    ]


def test_the_admin_interface_is_always_on_loopback(api: FileDescriptorSet, jwks: Path) -> None:
    config = rendered(api, jwks, gateway_host="0.0.0.0")
    assert config["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": 9901}
    (listener,) = config["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": 8080}


def test_several_addresses_share_the_load(api: FileDescriptorSet, jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYHIGH_SEAT_ADDRESS", "127.0.0.1:50151, [::1]:50152")
    clusters = {cluster["name"]: cluster for cluster in rendered(api, jwks)["static_resources"]["clusters"]}
    services = {upstream.cluster for upstream in UPSTREAMS}
    assert clusters.keys() == {"nowhere", *services, *(f"{service}-watch" for service in services)}
    for name in ("seat", "seat-watch"):
        (endpoints,) = clusters[name]["load_assignment"]["endpoints"]
        assert [e["endpoint"]["address"]["socket_address"] for e in endpoints["lb_endpoints"]] == [
            {"address": "127.0.0.1", "port_value": 50151},
            {"address": "::1", "port_value": 50152},
        ]


def test_only_listed_origins_are_allowed(api: FileDescriptorSet, jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def allowed() -> object:
        (host,) = connection_manager(rendered(api, jwks))["route_config"]["virtual_hosts"]
        return host["typed_per_filter_config"][HTTP_FILTERS + "cors"]["allow_origin_string_match"]

    assert allowed() == []
    monkeypatch.setenv("SKYHIGH_GATEWAY_ALLOWED_ORIGINS", "https://a.example, https://b.example")
    assert allowed() == [{"exact": "https://a.example"}, {"exact": "https://b.example"}]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SKYHIGH_JWKS", "/nowhere/jwks.json"),
        ("SKYHIGH_GATEWAY_PORT", "70000"),
        ("SKYHIGH_SEAT_ADDRESS", "localhost"),
        ("SKYHIGH_SEAT_ADDRESS", ""),
    ],
)
def test_an_invalid_setting_is_named(variable: str, value: str, jwks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKYHIGH_JWKS", str(jwks))
    monkeypatch.setenv("SKYHIGH_RATE_LIMITS", "off")
    monkeypatch.setenv(variable, value)
    with pytest.raises(ValidationError) as failure:
        GatewaySettings()  # type: ignore[call-arg]
    assert [f"SKYHIGH_{str(error['loc'][0]).upper()}" for error in failure.value.errors()] == [variable]
