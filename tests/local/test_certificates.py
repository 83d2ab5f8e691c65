"""The certificates that a local stack makes for itself.

Covers the settings that its parts get for them, too.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from deploy.local.certificates import RENEWED_BEFORE_DAYS, VALID_DAYS, Authority
from deploy.local.process import Process
from deploy.local.process_table import processes_of
from deploy.local.services import SERVICES, Service
from deploy.local.stack import EDGE, OPERATIONS, Stack
from gateway.settings import GatewaySettings
from gateway.tls import Shown
from services.tls_identity import VARIABLES, identity_of_files


def certificate_of(path: Path) -> x509.Certificate:
    """Parses the certificate in a file."""
    return x509.load_pem_x509_certificate(path.read_bytes())


def process(stack: Stack, name: str) -> Process:
    """Returns a process of the stack by name."""
    return next(process for process in processes_of(stack) if process.name == name)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Returns an authority that has issued a certificate for the seat service."""
    authority = Authority(tmp_path)
    authority.ensure(["seat"])
    return authority


def test_a_certificate_is_for_its_name_on_loopback_and_for_both_ends(authority: Authority) -> None:
    certificate = certificate_of(authority.identity("seat").certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["seat", "localhost"]
    assert [str(address) for address in names.get_values_for_type(x509.IPAddress)] == ["127.0.0.1", "::1"]
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert set(usage) == {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}
    lasts = certificate.not_valid_after_utc - datetime.now(UTC)
    assert timedelta(days=VALID_DAYS - 1) < lasts <= timedelta(days=VALID_DAYS)
    authority.identity("seat").read()


def test_a_service_signs_for_nobody(authority: Authority) -> None:
    service, root = certificate_of(authority.identity("seat").certificate), certificate_of(authority.certificate)
    may_sign = [
        certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        for certificate in (service, root)
    ]
    assert may_sign == [False, True]
    service.verify_directly_issued_by(root)


def test_nobody_else_reads_a_key(authority: Authority) -> None:
    folder = authority.certificate.parent
    assert {path.name: path.stat().st_mode & 0o777 for path in folder.glob("*_key.pem")} == {
        "authority_key.pem": 0o600,
        "seat_key.pem": 0o600,
    }


def test_what_lasts_is_kept(authority: Authority) -> None:
    seat = authority.identity("seat")
    before = seat.read()
    authority.ensure(["seat", "payment"])
    assert seat.read() == before
    assert authority.identity("payment").read().authority == before.authority


@pytest.mark.parametrize("spoiled", ["ends soon", "no certificate", "no key", "another key", "no PEM"])
def test_what_does_not_last_is_made_again(authority: Authority, spoiled: str) -> None:
    seat = authority.identity("seat")
    before = seat.read()
    match spoiled:
        case "ends soon":
            authority.issue("seat", valid=timedelta(days=RENEWED_BEFORE_DAYS - 1))
        case "no certificate":
            seat.certificate.unlink()
        case "no key":
            seat.key.unlink()
        case "another key":
            seat.key.write_bytes(authority.issue("payment").key.read_bytes())
        case "no PEM":
            seat.certificate.write_text("-----BEGIN CERTIFICATE-----\n")
    authority.ensure(["seat"])
    after = seat.read()
    assert after.certificate != before.certificate
    assert certificate_of(seat.certificate).not_valid_after_utc - datetime.now(UTC) > timedelta(days=VALID_DAYS - 1)
    assert after.authority == before.authority


def test_a_new_authority_signs_everything_again(authority: Authority) -> None:
    before = authority.identity("seat").read()
    authority.certificate.unlink()
    authority.ensure(["seat"])
    after = authority.identity("seat").read()
    assert after.authority != before.authority
    certificate_of(authority.identity("seat").certificate).verify_directly_issued_by(
        certificate_of(authority.certificate)
    )


def test_files_that_do_not_fit_are_no_identity(authority: Authority) -> None:
    seat, other = authority.identity("seat"), authority.issue("payment")
    seat.key.write_bytes(other.key.read_bytes())
    with pytest.raises(ValueError, match="do not fit"):
        seat.read()
    with pytest.raises(ssl.SSLError):
        seat.client_context()


@pytest.fixture
def secure(tmp_path: Path) -> Stack:
    """Returns a stack with TLS."""
    stack = Stack.from_environment({"SKYHIGH_HOME": str(tmp_path), "SKYHIGH_TLS": "1", "SKYHIGH_PORT_BASE": "20000"})
    stack.ensure_certificates()
    return stack


@pytest.mark.parametrize("service", SERVICES, ids=lambda service: service.name)
def test_each_service_is_told_of_its_certificate(secure: Stack, service: Service) -> None:
    told = process(secure, service.label).environment
    certificate, key, authority = (Path(told[variable]) for variable in VARIABLES)
    assert identity_of_files(certificate, key, authority) == secure.authority.identity(service.name)


async def test_the_gateway_shows_its_certificate_to_both_sides(secure: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    async def render(*_: str, variables: Mapping[str, str]) -> None:
        for variable, value in variables.items():
            monkeypatch.setenv(variable, value)

    monkeypatch.setattr("deploy.local.process_table._run", render)
    prepare = process(secure, "gateway").prepare
    assert prepare is not None
    await prepare()
    settings, edge = GatewaySettings(), secure.authority.identity(EDGE)  # type: ignore[call-arg]
    assert settings.shown == Shown(edge.certificate, edge.key)
    assert settings.identity == edge


def test_addresses_say_how_to_reach_it(secure: Stack) -> None:
    operations = secure.authority.identity(OPERATIONS)
    addresses = secure.addresses
    assert addresses["SKYHIGH_GATEWAY_URL"] == "https://127.0.0.1:20000"
    assert (addresses["SKYHIGH_CLIENT_CERTIFICATE"], addresses["SKYHIGH_CLIENT_KEY"], addresses["SKYHIGH_CA"]) == (
        str(operations.certificate),
        str(operations.key),
        str(operations.authority),
    )
    provider = process(secure, "mock-provider").environment
    assert provider["SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL"] == "https://127.0.0.1:20000/v1/payments/webhook"
    assert provider["SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY"] == str(operations.authority)


def test_without_tls_nobody_is_told_of_certificates(tmp_path: Path) -> None:
    plain = Stack.from_environment({"SKYHIGH_HOME": str(tmp_path)})
    plain.ensure_certificates()
    assert not list(tmp_path.iterdir())
    assert plain.addresses["SKYHIGH_GATEWAY_URL"].startswith("http://")
    assert "SKYHIGH_CA" not in plain.addresses
    told = {name for each in processes_of(plain) for name in each.environment}
    assert not told & {*VARIABLES, "SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY"}


@pytest.mark.parametrize(
    ("variable", "value"),
    [("SKYHIGH_TLS", "yes"), ("SKYHIGH_TLS_CERTIFICATE", "/x.pem"), ("SKYHIGH_GATEWAY_TLS_KEY", "/x.pem")],
)
def test_an_invalid_setting_is_named(tmp_path: Path, variable: str, value: str) -> None:
    with pytest.raises(ValueError, match=variable):
        Stack.from_environment({"SKYHIGH_HOME": str(tmp_path), variable: value})
