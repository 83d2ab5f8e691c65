"""TLS at a real Envoy.

Covers the protocols of clients, the trust in the services behind it, and certificates that are replaced at run time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import grpc
import httpx
import pytest
from cryptography import x509
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local.certificates import Authority
from deploy.local.process import answers, free_ports
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings
from gateway.validation import faults
from seat_service.service import SEAT_SERVICE
from services import app, tls
from services.tls_identity import VARIABLES, Identity
from tests.callers import ISSUER, Caller, Callers
from tests.dates import flight_id, new_flight_id
from tests.gateway.conftest import Echo, Others
from tests.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import World

AN_ID: Final = uuid4()
FILES: Final = ("tls.crt", "tls.key", "ca.crt")


@dataclass(frozen=True, slots=True)
class SecureEdge:
    """An Envoy with TLS, in front of a seat service with mutual TLS, and of impostors."""

    port: int
    admin_port: int
    config: Path
    mounted: Path
    """The folder of its certificate."""
    authority: Authority
    http: httpx.AsyncClient
    agent: Caller
    flight: str

    async def get(self, path: str) -> httpx.Response:
        """Sends a GET request as an agent."""
        return await self.http.get(path, headers={"authorization": f"Bearer {self.agent.token}"})

    def shown(self, *, offer: tuple[str, ...] = (), ciphers: str = "", version: ssl.TLSVersion | None = None) -> Shown:
        """Connects with these limits; returns the result of the handshake.

        Raises ssl.SSLError if the edge refuses it.
        """
        context = ssl.create_default_context(cafile=self.authority.certificate)
        if offer:
            context.set_alpn_protocols(offer)
        if version is not None:
            # Old versions need ciphers that a current client disables.
            context.set_ciphers("ALL:@SECLEVEL=0")
            context.minimum_version = context.maximum_version = version
        if ciphers:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            context.set_ciphers(ciphers)
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="localhost") as secure,
        ):
            certificate = x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
            return Shown(secure.version(), secure.selected_alpn_protocol(), certificate.serial_number)

    async def count(self, statistic: str) -> int:
        """Reads a counter of Envoy."""
        answer = await self.http.get(f"http://127.0.0.1:{self.admin_port}/stats?filter=^{statistic}$")
        return int(answer.text.rpartition(" ")[2] or 0)


@dataclass(frozen=True, slots=True)
class Shown:
    """The result of a handshake at the client."""

    version: str | None
    protocol: str | None
    serial_number: int


def mount(identity: Identity, folder: Path) -> Identity:
    """Installs a certificate as Kubernetes does.

    It is behind a link that is replaced, so that all files change at once.
    """
    folder.mkdir(exist_ok=True)
    version = folder / f"..{uuid4()}"
    version.mkdir()
    for source, name in zip((identity.certificate, identity.key, identity.authority), FILES, strict=True):
        (version / name).write_bytes(source.read_bytes())
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    (folder / "..next").symlink_to(version.name)
    (folder / "..next").rename(folder / "..data")
    return Identity(*(folder / name for name in FILES))


@asynccontextmanager
async def shows(identity: Identity) -> AsyncIterator[str]:
    """Runs a server with this certificate that answers every call; yields its address."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    pems = Identity.read(identity)
    credentials = grpc.ssl_server_credentials([(pems.key, pems.certificate)], pems.authority, True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


@pytest.fixture(scope="module")
async def edge(world: World, others: Others, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[SecureEdge]:
    """Yields the edge.

    Booking presents the right certificate, the other services do not.
    """
    ours, foreign = (Authority(tmp_path_factory.mktemp(name)) for name in ("ours", "foreign"))
    ours.ensure(["seat", "booking", "edge", "operations"])
    foreign.ensure(["waitlist"])
    seat, operations = ours.identity("seat"), ours.identity("operations")
    paths = map(str, (seat.certificate, seat.key, seat.authority))
    settings = world.settings(**dict(zip(VARIABLES, paths, strict=True)))
    async with AsyncExitStack() as stack:
        (seat_port,) = await stack.enter_async_context(app.serving(SEAT_SERVICE, settings, ["127.0.0.1:0"]))
        booking = await stack.enter_async_context(shows(ours.identity("booking")))
        waitlist = await stack.enter_async_context(shows(foreign.identity("waitlist")))
        payment = await stack.enter_async_context(shows(ours.issue("payment", valid=timedelta(seconds=-1))))
        port, admin_port = free_ports(2)
        shown = mount(ours.identity("edge"), world.folder / "mounted")
        config = write(
            GatewaySettings(
                rate_limits=RateLimits.OFF,
                gateway_port=port,
                gateway_admin_port=admin_port,
                gateway_tls_certificate=shown.certificate,
                gateway_tls_key=shown.key,
                tls_certificate=shown.certificate,
                tls_key=shown.key,
                tls_authority=shown.authority,
                seat_address=(f"127.0.0.1:{seat_port}",),
                booking_address=(booking,),
                # A certificate of our authority, but of another service.
                flight_address=(booking,),
                waitlist_address=(waitlist,),
                payment_address=(payment,),
                # This server does not use TLS.
                checkin_address=(others.address,),
                gateway_address=(others.address,),
                jwks=world.keys.jwks,
                token_issuer=ISSUER,
            ),
            world.folder / "secure-edge",
        )
        ready = answers(
            port,
            ask=b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n",
            # The status is 503, because half of the services are not healthy.
            expect=[b"HTTP/1.1 503"],
            context=operations.client_context,
        )
        process = replace(envoy(config, port=port), name="secure-edge", ready=ready)
        await stack.enter_async_context(Supervisor([process], logs=world.folder / "logs", restart=False))
        http = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=f"https://localhost:{port}",
                verify=ssl.create_default_context(cafile=ours.certificate),
                timeout=20,
            )
        )
        callers = Callers(f"127.0.0.1:{seat_port}", world.keys)
        secure = await stack.enter_async_context(
            grpc.aio.secure_channel(f"127.0.0.1:{seat_port}", tls.channel_credentials(operations.read()))
        )
        token, flight = callers.operations().token, new_flight_id()
        await Caller(SeatServiceStub(secure), "ops", token).provision(flight)
        yield SecureEdge(port, admin_port, config, shown.certificate.parent, ours, http, callers.agent(), flight)
        await callers.close()


def test_envoy_accepts_the_tls_configuration_without_a_warning(edge: SecureEdge) -> None:
    assert faults(edge.config) == []


async def test_json_works_with_tls_on_both_sides(edge: SecureEdge) -> None:
    seat_map = await edge.get(f"/v1/flights/{edge.flight}/seatmap")
    assert seat_map.status_code == 200
    assert len(seat_map.json()["seats"]) == 180
    assert (await edge.get(f"/v1/bookings/{AN_ID}")).status_code == 200
    assert await edge.count("cluster.seat.ssl.handshake") > 0
    assert await edge.count("cluster.seat.health_check.success") > 0


async def test_grpc_works_with_tls_on_both_sides(edge: SecureEdge) -> None:
    credentials = grpc.ssl_channel_credentials(edge.authority.certificate.read_bytes())
    async with grpc.aio.secure_channel(f"localhost:{edge.port}", credentials) as channel:
        caller = Caller(SeatServiceStub(channel), edge.agent.name, edge.agent.token)
        seat_map = await caller.GetSeatMap(pb.GetSeatMapRequest(flight_id=edge.flight))
    assert len(seat_map.seats) == 180


@pytest.mark.parametrize(
    "path",
    [
        f"/v1/waitlist/{AN_ID}",
        f"/v1/payments/{AN_ID}",
        f"/v1/flights/{flight_id('SH101')}",
        f"/v1/checkins/{AN_ID}",
    ],
    ids=["another authority", "expired", "another name", "no TLS"],
)
async def test_a_server_with_another_certificate_gets_no_call(edge: SecureEdge, others: Others, path: str) -> None:
    heard = len(others.echo.heard)
    answer = await edge.get(path)
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (503, "DEPENDENCY_UNAVAILABLE")
    assert len(others.echo.heard) == heard


@pytest.mark.parametrize("offered", ["h2", "http/1.1"])
def test_http_1_and_http_2_are_supported(edge: SecureEdge, offered: str) -> None:
    assert edge.shown(offer=(offered,)).protocol == offered
    assert edge.shown(offer=("http/1.1", "h2")).protocol == "h2"


def test_only_current_tls_versions_are_accepted(edge: SecureEdge) -> None:
    for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
        assert edge.shown(version=version).version == name
    for old in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
        with pytest.warns(DeprecationWarning, match="TLSv1"), pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            edge.shown(version=old)


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-CHACHA20-POLY1305"])
def test_strong_ciphers_are_accepted(edge: SecureEdge, cipher: str) -> None:
    assert edge.shown(ciphers=cipher).version == "TLSv1.2"


@pytest.mark.parametrize("cipher", ["ECDHE-ECDSA-AES128-SHA", "ECDHE-ECDSA-AES256-SHA384", "AES128-GCM-SHA256"])
def test_weak_ciphers_are_refused(edge: SecureEdge, cipher: str) -> None:
    with pytest.raises(ssl.SSLError, match="HANDSHAKE_FAILURE"):
        edge.shown(ciphers=cipher)


async def test_plain_http_is_refused(edge: SecureEdge) -> None:
    async with httpx.AsyncClient() as http:
        with pytest.raises(httpx.RemoteProtocolError):
            await http.get(f"http://127.0.0.1:{edge.port}/healthz")


async def test_replaced_certificates_are_used_without_a_restart(edge: SecureEdge) -> None:
    before = edge.shown().serial_number
    updates = "cluster.seat.client_ssl_socket_factory.ssl_context_update_by_sds"
    updated = await edge.count(updates)
    mount(edge.authority.issue("edge"), edge.mounted)

    async def both_sides() -> bool:
        shown = await asyncio.to_thread(edge.shown)
        return shown.serial_number != before and await edge.count(updates) > updated

    await eventually(both_sides)
    assert (await edge.get(f"/v1/flights/{edge.flight}/seatmap")).status_code == 200


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"gateway_tls_certificate": "edge.pem"}, "set both or neither"),
        ({"gateway_tls_key": "edge_key.pem"}, "set both or neither"),
        ({"gateway_tls_certificate": "edge.pem", "gateway_tls_key": "seat_key.pem"}, "do not belong together"),
        ({"tls_certificate": "edge.pem", "tls_key": "edge_key.pem"}, "all three are given, or none"),
        (
            {"tls_certificate": "edge.pem", "tls_key": "seat_key.pem", "tls_authority": "authority.pem"},
            "do not fit",
        ),
    ],
)
def test_incomplete_tls_settings_are_refused(
    edge: SecureEdge, world: World, given: dict[str, str], complaint: str
) -> None:
    folder = edge.authority.certificate.parent
    files: dict[str, Any] = {name: folder / file for name, file in given.items()}
    with pytest.raises(ValueError, match=complaint):
        GatewaySettings(jwks=world.keys.jwks, rate_limits=RateLimits.OFF, **files)
