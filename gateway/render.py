"""Writes Envoy's configuration.

It is made from `envoy.yaml`, `upstreams.py`, `edge_errors.py` and the protos, which declare the RPCs that have a route.

`python -m gateway.render --output DIR` writes `envoy.yaml`, `api.binpb` and `openapi.json` to that folder. `--check`
renders with sample values instead and lets Envoy validate the result; any warning is a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from gateway import filters, routes, strict_json, template, tls, validation
from gateway.descriptors import DESCRIPTORS, read_descriptors
from gateway.edge_errors import EDGE_ERRORS, EdgeError
from gateway.guard.observations import OBSERVED
from gateway.guard.settings import RateLimits
from gateway.limits import DEFAULTS
from gateway.openapi import document
from gateway.settings import GatewaySettings
from gateway.upstreams import UPSTREAMS, Upstream
from services.auth import CLOCK_SKEW_SECONDS, TOKEN_PREFIXES
from services.endpoints import Endpoint
from services.settings import load

ERRORS_LUA = Path(__file__).with_name("errors.lua")

# A transcoded request also has the gRPC content type; only the header with its original path tells them apart.
NATIVE_GRPC = (
    "request.headers['content-type'].startsWith('application/grpc') && !('x-envoy-original-path' in request.headers)"
)
# Calls on one connection: on a port that processes share, and on a process's own port (`envoy.yaml` has the reason).
STREAMS_ON_SHARED_PORT = 8
STREAMS_ON_OWN_PORT = 100
# Open calls of one service at most. A watch costs little and lasts long, so watches have their own limit.
MAX_CALLS = 1024
MAX_WATCHES = 10_000
# The largest body of an RPC that declares none.
BODY_BYTES = 64 * 1024


def write(settings: GatewaySettings, directory: Path) -> Path:
    """Writes `envoy.yaml`, `api.binpb` and `openapi.json` into `directory`.

    Returns the path of `envoy.yaml`.

    Also writes the files of `tls.py` that name the certificates.
    """
    directory = directory.resolve()
    directory.mkdir(parents=True, exist_ok=True)
    api, api_path, config = read_descriptors(), directory / "api.binpb", directory / "envoy.yaml"
    text = render(settings, api, api_path)
    document.write(FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()), directory / "openapi.json")
    api_path.write_bytes(api.SerializeToString())
    tls.write(settings.shown, settings.identity, directory)
    # Owner only: the file may hold the token that Envoy sends to the gateway service.
    config.touch(mode=0o600)
    config.write_text(text)
    return config


def render(settings: GatewaySettings, api: FileDescriptorSet, api_path: Path) -> str:
    """Returns Envoy's configuration as YAML; Envoy will read `api` from `api_path`.

    Raises DeclarationError if an RPC has no declaration, and ExposureError if `upstreams.py` lacks the service of an
    RPC with a route.
    """
    configuration, patterns = template.read()
    exposed = list(routes.exposed_rpcs(api))
    values = {
        **settings.model_dump(),
        "body_bytes": BODY_BYTES,
        "largest_body_bytes": max(BODY_BYTES, *(each.rpc.max_body_bytes for each in exposed)),
        "jwks": str(settings.jwks.resolve()),
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
        "token_headers": [{"name": "authorization", "value_prefix": prefix} for prefix in TOKEN_PREFIXES],
        "descriptor_set": str(api_path),
        "errors_lua": strict_json.names(api) + ERRORS_LUA.read_text(),
        "strict_json_lua": strict_json.script(api, [each.method for each in exposed]),
        "services": [upstream.name for upstream in UPSTREAMS],
        "role_header": filters.ROLE_HEADER,
        "subject_header": filters.SUBJECT_HEADER,
        **_limiting(settings, patterns),
        "edge_errors": list(_mappers(patterns)),
        "healthy_percentages": {upstream.cluster: {"value": 1} for upstream in UPSTREAMS},
        "allowed_origins": [{"exact": origin} for origin in settings.gateway_allowed_origins],
        "rpc_routes": list(routes.rpc_routes(exposed, settings, patterns)),
        "docs_routes": list(routes.docs_routes(api_path.with_name("openapi.json"), patterns)),
        "wrong_method_routes": list(routes.wrong_method_routes(exposed, patterns)),
        "edge_socket": settings.shown and template.fill(patterns["edge_tls"], tls.paths(api_path.parent)),
        "clusters": [
            cluster for upstream in UPSTREAMS for cluster in _clusters(upstream, settings, patterns, api_path.parent)
        ],
    }
    return template.dump(template.fill(configuration, values))


def _limiting(settings: GatewaySettings, patterns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Returns the filters that limit calls, and the log for abuse detection.

    Empty lists if limits are off.
    """
    names = (filters.ADDRESS_SHIELD, filters.BLOCKS, filters.SHIELD)
    if settings.rate_limits is RateLimits.OFF or settings.gateway_token_file is None:
        return {name: [] for name in ("address_shield", "blocks", "shield", "shared_limits", "observed_calls")}
    shown = {
        "gateway_token": f"Bearer {settings.gateway_token_file.read_text().strip()}",
        "role_header": filters.ROLE_HEADER,
        "subject_header": filters.SUBJECT_HEADER,
        # The log leaves out calls that a block refused: they are no new evidence, so that the block ends at its time
        # even if its source keeps calling.
        "observed": f"xds.route_name in {sorted(OBSERVED)} && response.code_details != 'lua_response'",
    }
    at_first = filters.filters(DEFAULTS, (), enforced=settings.rate_limits is RateLimits.ON)
    changing = {
        name.replace("-", "_"): [
            template.fill(
                patterns["changing_filter"],
                shown
                | {
                    "name": name,
                    "type_url": at_first[name].type_url,
                    "default": {"@type": at_first[name].type_url, **at_first[name].value},
                },
            )
        ]
        for name in names
    }
    return changing | {name: [template.fill(patterns[name], shown)] for name in ("shared_limits", "observed_calls")}


def _mappers(patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields how Envoy's own responses are rewritten.

    Native gRPC comes first, because Envoy uses the first match.
    """
    yield patterns["healthy"]
    for error in EDGE_ERRORS:
        native = {"when": f"{NATIVE_GRPC} && ({error.when})", "code": str(error.native_code or error.code)}
        yield template.fill(patterns["native_error"], {**_error_values(error), **native})
    for error in EDGE_ERRORS:
        yield template.fill(patterns["json_error"], _error_values(error))


def _error_values(error: EdgeError) -> dict[str, Any]:
    wait = error.retry_after_seconds
    retry_after = {"header": {"key": "retry-after", "value": str(wait)}}
    retry_info = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": f"{wait}s"}
    return {
        **asdict(error),
        "headers": [retry_after] if wait else [],
        "more_details": [retry_info] if wait else [],
    }


def _clusters(
    upstream: Upstream, settings: GatewaySettings, patterns: Mapping[str, Any], folder: Path
) -> Iterator[Any]:
    """Yields two clusters of a service: one for calls and one for watches.

    A thousand open watches must not use up the limit of calls.
    """
    addresses: tuple[str, ...] = getattr(settings, upstream.address_setting)
    named = {**tls.paths(folder), "service_name": upstream.cluster}
    values = {
        "service_socket": settings.identity and template.fill(patterns["service_tls"], named),
        "service": upstream.name,
        "endpoints": [template.fill(patterns["endpoint"], asdict(Endpoint.parse(address))) for address in addresses],
    }
    streams = STREAMS_ON_OWN_PORT if len(addresses) > 1 else STREAMS_ON_SHARED_PORT
    calls = {"cluster": upstream.cluster, "max_requests": MAX_CALLS, "streams_per_connection": streams}
    yield template.fill(patterns["cluster"], values | calls)
    watches = {"max_requests": MAX_WATCHES, "streams_per_connection": STREAMS_ON_OWN_PORT}
    yield template.fill(patterns["cluster"], values | watches | {"cluster": f"{upstream.cluster}-watch"})


def check() -> list[str]:
    """Returns Envoy's warnings and errors for the configuration with sample values."""
    from joserfc.jwk import ECKey

    with tempfile.TemporaryDirectory() as folder:
        jwks = Path(folder) / "jwks.json"
        jwks.write_text(json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False)]}))
        token = Path(folder) / "token"
        token.write_text("sample")
        settings = GatewaySettings(jwks=jwks, rate_limits=RateLimits.ON, gateway_token_file=token)
        return validation.faults(write(settings, Path(folder)))


def main() -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m gateway.render", description=__doc__)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--output", type=Path, metavar="DIR", help="where to write envoy.yaml and api.binpb")
    action.add_argument("--check", action="store_true", help="let Envoy validate it with sample values")
    arguments = parser.parse_args()
    if arguments.check:
        bad = check()
        sys.stderr.writelines(f"{line}\n" for line in bad)
        return 1 if bad else 0
    write(load(GatewaySettings), arguments.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
