"""All parts read a setting `host:port` in the same way."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from gateway.guard.settings import RateLimits
from gateway.settings import GatewaySettings
from services.endpoints import Endpoint, endpoints, grpc_target
from services.settings import CallerSettings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:50051", "127.0.0.1", 50051),
        ("seat.airline.example:50051", "seat.airline.example", 50051),
        ("[::1]:0", "::1", 0),
        (" seat:1 ", "seat", 1),
    ],
)
def test_an_endpoint_is_a_host_and_a_port(text: str, host: str, port: int) -> None:
    assert Endpoint.parse(text) == Endpoint(host, port)
    assert Endpoint.parse(str(Endpoint(host, port))) == Endpoint(host, port)


@pytest.mark.parametrize(
    "text", ["", "seat", ":50051", "seat:", "seat:x", "seat:-1", "seat:65536", "::1:50051", "[seat:1", "seat:\u0661"]
)
def test_an_invalid_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"host:port|port above|no address"):
        endpoints(text)


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("seat:50051", "seat:50051"),
        ("[::1]:50051", "[::1]:50051"),
        ("127.0.0.1:1,127.0.0.1:2", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("127.0.0.1:1, 127.0.0.1:2,", "ipv4:127.0.0.1:1,127.0.0.1:2"),
        ("[::1]:1,[::1]:2", "ipv6:[::1]:1,[::1]:2"),
    ],
)
def test_a_grpc_target_has_one_or_several_servers(text: str, target: str) -> None:
    assert grpc_target(text) == target


@pytest.mark.parametrize("text", ["seat-0:1,seat-1:1", "127.0.0.1:1,[::1]:1", "seat:1,127.0.0.1:1"])
def test_several_hosts_by_name_are_refused_for_grpc(text: str) -> None:
    with pytest.raises(ValueError, match="one family"):
        grpc_target(text)


class Settings(CallerSettings):
    """The settings of a service that calls another one."""

    seat_address: str = "127.0.0.1:50051"


REQUIRED = {
    "database_url": "postgresql://",
    "amqp_url": "amqp://",
    "listen": "127.0.0.1:0",
    "token_file": "token",
    "SKYHIGH_REDIS_URL": "redis://",
    "SKYHIGH_JWKS": "jwks.json",
    "SKYHIGH_TOKEN_ISSUER": "issuer",
    "SKYHIGH_PAGE_TOKEN_KEY": "k" * 32,
}


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("127.0.0.1:1", True),
        ("127.0.0.1:1, 127.0.0.1:2", True),
        ("[::1]:1", True),
        ("", False),
        ("127.0.0.1", False),
        ("::1:50051", False),
        ("127.0.0.1:99999", False),
    ],
)
def test_gateway_and_services_accept_the_same_addresses(text: str, taken: bool, tmp_path: Path) -> None:
    jwks = tmp_path / "jwks.json"
    jwks.write_text('{"keys": []}')

    def is_taken_by_service() -> bool:
        try:
            Settings(**REQUIRED, seat_address=text)  # type: ignore[arg-type]
        except ValidationError:
            return False
        return True

    def is_taken_by_gateway() -> bool:
        try:
            GatewaySettings(jwks=jwks, rate_limits=RateLimits.OFF, seat_address=text)  # type: ignore[arg-type]
        except ValidationError:
            return False
        return True

    assert (is_taken_by_service(), is_taken_by_gateway()) == (taken, taken)
