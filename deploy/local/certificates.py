"""Certificates of a local stack, signed by an authority of its own.

They are issued when they are first needed and renewed before they expire. Production does not use them: there another
issuer, such as cert-manager, creates the certificates.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from deploy.local.secrets import write_private
from services.tls_identity import Identity

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

VALID_DAYS: Final = 90
AUTHORITY_VALID_DAYS: Final = 3650
# A start of the stack renews a certificate that expires sooner than this, because a stack may run for weeks.
RENEWED_BEFORE_DAYS: Final = 30
# A certificate is valid from this long ago, so that a clock that is a little slow does not reject a new one.
BACKDATED: Final = timedelta(minutes=5)
LOOPBACK_NAMES: Final = ("localhost",)
LOOPBACK_ADDRESSES: Final = ("127.0.0.1", "::1")


class Authority:
    """An authority that signs certificates and keeps them, with keys, in one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.certificate = folder / "authority.pem"
        """The authority's own certificate: a process that trusts it trusts all that it signed."""
        self._key = folder / "authority_key.pem"

    def identity(self, name: str) -> Identity:
        """Returns the paths of the certificate and key of this name, even before they exist."""
        return Identity(self._folder / f"{name}.pem", self._folder / f"{name}_key.pem", self.certificate)

    def ensure(self, names: Sequence[str]) -> None:
        """Issues each certificate that is missing, expires soon or has another issuer.

        Before them, creates the authority itself if it is missing or expires soon.
        """
        if not _lasts(self.certificate, self._key, signed_by=self.certificate):
            self._found()
        for name in names:
            identity = self.identity(name)
            if not _lasts(identity.certificate, identity.key, signed_by=self.certificate):
                self.issue(name)

    def issue(self, name: str, *, valid: timedelta = timedelta(days=VALID_DAYS)) -> Identity:
        """Issues a certificate of this name for servers and clients on loopback.

        It is valid for `valid` from now, and replaces an older one of this name.
        """
        from cryptography import x509
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key, authority = _new_key(), _read(self.certificate)
        names = [x509.DNSName(each) for each in (name, *LOOPBACK_NAMES)]
        addresses = [x509.IPAddress(ipaddress.ip_address(each)) for each in LOOPBACK_ADDRESSES]
        builder = (
            _builder(name, key, valid)
            .issuer_name(authority.subject)
            .add_extension(x509.SubjectAlternativeName([*names, *addresses]), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()),  # type: ignore[arg-type]
                critical=False,
            )
        )
        identity = self.identity(name)
        _write(identity.certificate, builder, identity.key, key, signer=_read_key(self._key))
        return identity

    def _found(self) -> None:
        from cryptography import x509

        key = _new_key()
        name = f"SkyHigh local authority {x509.random_serial_number():x}"[:40]
        builder = (
            _builder(name, key, timedelta(days=AUTHORITY_VALID_DAYS))
            .issuer_name(_named(name))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        _write(self.certificate, builder, self._key, key, signer=key)


def _named(name: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _builder(name: str, key: ec.EllipticCurvePrivateKey, valid: timedelta) -> x509.CertificateBuilder:
    from cryptography import x509

    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_named(name))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, now + valid) - BACKDATED)
        .not_valid_after(now + valid)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _new_key() -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec

    return ec.generate_private_key(ec.SECP256R1())


def _write(
    file: Path,
    builder: x509.CertificateBuilder,
    key_file: Path,
    key: ec.EllipticCurvePrivateKey,
    *,
    signer: ec.EllipticCurvePrivateKey,
) -> None:
    from cryptography.hazmat.primitives import hashes, serialization

    certificate = builder.sign(signer, hashes.SHA256())
    pem = serialization.Encoding.PEM
    plain, pkcs8 = serialization.NoEncryption(), serialization.PrivateFormat.PKCS8
    write_private(key_file, key.private_bytes(pem, pkcs8, plain))
    # The certificate is written last, so that a process that finds it also finds its key.
    write_private(file, certificate.public_bytes(pem))


def _read(file: Path) -> x509.Certificate:
    from cryptography import x509

    return x509.load_pem_x509_certificate(file.read_bytes())


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key = load_pem_private_key(file.read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return key


def _lasts(certificate: Path, key: Path, *, signed_by: Path) -> bool:
    """Returns True if the certificate and key exist, match and stay valid long enough.

    The certificate must be signed by `signed_by` and must not expire within RENEWED_BEFORE_DAYS.
    """
    from cryptography.exceptions import InvalidSignature

    try:
        found = _read(certificate)
        found.verify_directly_issued_by(_read(signed_by))
        fits = _read_key(key).public_key() == found.public_key()
    except (OSError, ValueError, TypeError, InvalidSignature):
        return False
    return fits and found.not_valid_after_utc - datetime.now(UTC) > timedelta(days=RENEWED_BEFORE_DAYS)
