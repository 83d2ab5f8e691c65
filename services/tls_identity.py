"""A process's TLS identity: PEM files that other programs may replace."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VARIABLES: Final = ("SKYHIGH_TLS_CERTIFICATE", "SKYHIGH_TLS_KEY", "SKYHIGH_TLS_AUTHORITY")


@dataclass(frozen=True, slots=True)
class Pems:
    """The contents of an identity's files at one moment."""

    certificate: bytes
    key: bytes
    authority: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """The files of a certificate with its chain, its key, and the trusted authority."""

    certificate: Path
    key: Path
    authority: Path

    def version(self) -> tuple[tuple[int, int], ...]:
        """Returns a value that changes when one of the files is replaced or written.

        Raises OSError if a file is missing.
        """
        states = (path.stat() for path in (self.certificate, self.key, self.authority))
        return tuple((state.st_ino, state.st_mtime_ns) for state in states)

    def read(self) -> Pems:
        """Reads the files.

        Raises ValueError if they are unreadable or do not belong together, for example while they are being replaced.
        """
        try:
            before = self.version()
            self.client_context()
            pems = Pems(self.certificate.read_bytes(), self.key.read_bytes(), self.authority.read_bytes())
            if self.version() != before:
                raise ValueError(f"{self.certificate} is being replaced")
        except OSError as error:
            raise ValueError(f"{self.certificate}, {self.key} and {self.authority} do not fit: {error}") from error
        return pems

    def client_context(self) -> ssl.SSLContext:
        """Returns an SSL context for connections that are not gRPC's.

        Raises OSError, of which ssl.SSLError is a subclass.
        """
        context = ssl.create_default_context(cafile=self.authority)
        # With an empty password an encrypted key raises an error; without one OpenSSL would prompt on the terminal.
        context.load_cert_chain(self.certificate, self.key, password="")
        return context


def identity_of_files(certificate: Path | None, key: Path | None, authority: Path | None) -> Identity | None:
    """Returns the identity that three settings name, or None if none is set.

    Raises ValueError if only some are set, or if the files cannot be used.
    """
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise ValueError(f"{', '.join(VARIABLES)}: all three are given, or none")
    identity = Identity(certificate, key, authority)
    identity.read()
    return identity
