"""What a process shows of itself, and whom it believes: files in PEM that others may replace while it runs."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final

VARIABLES: Final = ("SKYHIGH_TLS_CERTIFICATE", "SKYHIGH_TLS_KEY", "SKYHIGH_TLS_AUTHORITY")


@dataclass(frozen=True, slots=True)
class Pems:
    """What stood in the files of an identity at one moment."""

    certificate: bytes
    key: bytes
    authority: bytes


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate with its chain, its key, and the authority whose certificates are trusted."""

    certificate: Path
    key: Path
    authority: Path

    def version(self) -> tuple[tuple[int, int], ...]:
        """Changes when one of the files is replaced or written. Raises OSError where one is not there."""
        states = (path.stat() for path in (self.certificate, self.key, self.authority))
        return tuple((state.st_ino, state.st_mtime_ns) for state in states)

    def read(self) -> Pems:
        """Reads the files. Raises ValueError where they do not belong together, as while they are being replaced."""
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
        """For connections that are not gRPC's. Raises OSError, of which ssl.SSLError is one."""
        context = ssl.create_default_context(cafile=self.authority)
        # A key with a password is an error, and no question at somebody's terminal.
        context.load_cert_chain(self.certificate, self.key, password="")
        return context


def whole(certificate: Path | None, key: Path | None, authority: Path | None) -> Identity | None:
    """Returns the identity of three settings, all given or none. Raises ValueError that says what is wrong."""
    if certificate is None and key is None and authority is None:
        return None
    if certificate is None or key is None or authority is None:
        raise ValueError(f"{', '.join(VARIABLES)}: all three are given, or none")
    identity = Identity(certificate, key, authority)
    identity.read()
    return identity
