"""Mutual TLS of a service: accepted and trusted callers, and the replacement of certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.seat_service_pb2_grpc import SeatServiceStub

from deploy.local.certificates import Authority
from deploy.local.process import serves_grpc
from seat_service.service import SEAT_SERVICE
from services import app, tls
from services.clients import PeerRefusal, ask, channel
from services.errors import Unavailable
from services.tls_identity import VARIABLES, Identity
from services.tokens import OwnToken
from tests.instances import serves

if TYPE_CHECKING:
    from tests.conftest import World

SEATS = "skyhigh.seat.v1.SeatService"
PAYMENTS = "skyhigh.payment.v1.PaymentService"
NO_HOLD = pb.GetHoldRequest(hold_id="00000000-0000-4000-8000-000000000000")


def variables(identity: Identity) -> dict[str, str]:
    """Returns the settings of a service that presents this identity."""
    paths = (identity.certificate, identity.key, identity.authority)
    return dict(zip(VARIABLES, map(str, paths), strict=True))


@dataclass(frozen=True, slots=True)
class Guarded:
    """A seat service behind mutual TLS."""

    world: World
    authority: Authority
    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def asked_by(self, identity: Identity | None, *, service: str = SEATS) -> str:
        """Returns the reason with which the service refuses this identity's call.

        The call reads a hold that does not exist.
        """
        token = OwnToken(self.world.token_files["checkin"])
        async with channel(self.address, service=service, token=token, identity=identity) as peer:
            stub: Any = SeatServiceStub(peer)
            try:
                await ask(stub.GetHold(NO_HOLD))
            except PeerRefusal as refusal:
                return refusal.reason
            except Unavailable:
                return "UNAVAILABLE"
        raise AssertionError("there is such a hold")

    def shown_serial(self) -> int:
        """Returns the serial number of the certificate that the service presents to a new caller."""
        from cryptography import x509

        context = self.authority.identity("checkin").client_context()
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=5) as raw,
            context.wrap_socket(raw, server_hostname="seat") as secure,
        ):
            return x509.load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"").serial_number


@pytest.fixture(scope="module")
async def guarded(world: World, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Guarded]:
    """Yields the service; its authority has certificates for it and for check-in."""
    authority = Authority(tmp_path_factory.mktemp("authority"))
    authority.ensure(["seat", "checkin"])
    settings = world.settings(**variables(authority.identity("seat")))
    async with app.serving(SEAT_SERVICE, settings, ["127.0.0.1:0", "127.0.0.1:0"]) as ports:
        # With two processes a service listens on a shared address and on one address per process.
        assert all([await serves_grpc(port, SEATS, identity=authority.identity("checkin"))() for port in ports])
        yield Guarded(world, authority, ports[1])


async def test_a_peer_with_our_certificate_is_served(guarded: Guarded) -> None:
    assert await guarded.asked_by(guarded.authority.identity("checkin")) == "HOLD_NOT_FOUND"


async def test_a_client_without_a_certificate_is_refused(guarded: Guarded) -> None:
    credentials = grpc.ssl_channel_credentials(guarded.authority.certificate.read_bytes())
    options = [tls.expected_name("seat")]
    async with grpc.aio.secure_channel(guarded.address, credentials, options=options) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_a_client_without_tls_is_refused(guarded: Guarded) -> None:
    assert await guarded.asked_by(None) == "UNAVAILABLE"
    assert not await serves(guarded.port, SEATS)


async def test_a_certificate_of_another_authority_is_refused(guarded: Guarded, tmp_path: Path) -> None:
    foreign = Authority(tmp_path)
    foreign.ensure(["checkin"])
    stranger = foreign.identity("checkin")
    # The stranger trusts the service's authority, but the service does not trust the stranger's.
    stranger = Identity(stranger.certificate, stranger.key, guarded.authority.certificate)
    assert await guarded.asked_by(stranger) == "UNAVAILABLE"


async def test_an_expired_certificate_is_refused(guarded: Guarded) -> None:
    ended = guarded.authority.issue("ended", valid=timedelta(seconds=-1))
    assert await guarded.asked_by(ended) == "UNAVAILABLE"


async def test_a_client_refuses_a_server_of_another_authority(guarded: Guarded, tmp_path: Path) -> None:
    ours = guarded.authority.identity("checkin")
    foreign = Authority(tmp_path)
    foreign.ensure([])
    assert await guarded.asked_by(Identity(ours.certificate, ours.key, foreign.certificate)) == "UNAVAILABLE"


async def test_a_client_refuses_a_server_with_another_name(guarded: Guarded) -> None:
    assert await guarded.asked_by(guarded.authority.identity("checkin"), service=PAYMENTS) == "UNAVAILABLE"


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_current_tls_versions_are_accepted(guarded: Guarded, version: ssl.TLSVersion) -> None:
    context = guarded.authority.identity("checkin").client_context()
    context.minimum_version = context.maximum_version = version
    with (
        socket.create_connection(("127.0.0.1", guarded.port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="seat") as secure,
    ):
        assert secure.version() == version.name.replace("_", ".")


async def test_a_replaced_server_certificate_is_used_at_once(guarded: Guarded) -> None:
    before = await asyncio.to_thread(guarded.shown_serial)
    seat = guarded.authority.issue("seat")
    after = await asyncio.to_thread(guarded.shown_serial)
    assert after != before
    # A key that does not belong to the certificate, as during a replacement, changes nothing.
    key = seat.key.read_bytes()
    seat.key.write_bytes(guarded.authority.identity("checkin").key.read_bytes())
    assert await asyncio.to_thread(guarded.shown_serial) == after
    seat.key.write_bytes(key)
    assert await guarded.asked_by(guarded.authority.identity("checkin")) == "HOLD_NOT_FOUND"


async def test_a_replaced_client_certificate_is_used_at_once(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls, "REREAD_SECONDS", 0)
    ended = guarded.authority.issue("waitlist", valid=timedelta(seconds=-1))
    token = OwnToken(guarded.world.token_files["waitlist"])
    async with channel(guarded.address, service=SEATS, token=token, identity=ended) as peer:
        stub: Any = SeatServiceStub(peer)

        async def reason() -> str:
            with pytest.raises((PeerRefusal, Unavailable)) as refusal:
                await ask(stub.GetHold(NO_HOLD))
            return str(getattr(refusal.value, "reason", ""))

        assert await reason() == "DEPENDENCY_UNAVAILABLE"
        guarded.authority.issue("waitlist")
        assert await reason() == "HOLD_NOT_FOUND"


def test_tls_settings_must_be_complete_or_absent(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path)
    authority.ensure(["seat", "checkin"])
    given = variables(authority.identity("seat"))
    assert world.settings(**given).identity == authority.identity("seat")
    assert world.settings().identity is None
    other = str(authority.identity("checkin").key)
    wrong: list[tuple[dict[str, str], str]] = [
        ({name: value for name, value in given.items() if name != "SKYHIGH_TLS_KEY"}, "all three are given, or none"),
        (given | {"SKYHIGH_TLS_KEY": other}, "do not fit"),
        (given | {"SKYHIGH_TLS_AUTHORITY": str(tmp_path / "none.pem")}, "do not fit"),
    ]
    for environment, complaint in wrong:
        with pytest.raises(SystemExit) as end:
            world.settings(**environment)
        assert end.value.code == 2
        assert complaint in capsys.readouterr().err
