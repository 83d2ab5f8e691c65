"""TLS at the edge: its own certificates, and the authority that it trusts.

Each secret is a YAML file that names PEM files. Envoy reads the PEM files again when something is moved into their
folder: the file itself, or the link `..data`, as Kubernetes does.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from services.tls_identity import Identity

# Names of the secrets and of their files.
SHOWN: Final = "shown_to_clients"
OWN: Final = "shown_to_services"
BELIEVED: Final = "believed_of_services"

SECRET: Final = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """The edge's certificate for clients, with its chain, and its key, in PEM."""

    certificate: Path
    key: Path

    def check(self) -> None:
        """Raises ValueError if the certificate and the key do not belong together."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, password="")
        except OSError as error:
            raise ValueError(f"{self.certificate} and {self.key} do not belong together: {error}") from error


def paths(folder: Path) -> dict[str, str]:
    """Returns the file of each secret, by its name in the template."""
    return {name: str(folder / f"{name}.yaml") for name in (SHOWN, OWN, BELIEVED)}


def write(shown: Shown | None, identity: Identity | None, folder: Path) -> None:
    """Writes the secrets' files. They name the PEM files and hold no key."""
    for name, secret in _secrets(shown, identity):
        resource = {"@type": SECRET, "name": name, **secret}
        Path(paths(folder)[name]).write_text(yaml.safe_dump({"resources": [resource]}, sort_keys=False))


def _secrets(shown: Shown | None, identity: Identity | None) -> Iterator[tuple[str, Json]]:
    if shown is not None:
        yield SHOWN, {"tls_certificate": _certificate(shown.certificate, shown.key)}
    if identity is not None:
        yield OWN, {"tls_certificate": _certificate(identity.certificate, identity.key)}
        yield BELIEVED, {"validation_context": {"trusted_ca": _file(identity.authority)}}


def _certificate(certificate: Path, key: Path) -> Json:
    return {"certificate_chain": _file(certificate), "private_key": _file(key)}


def _file(path: Path) -> Mapping[str, str]:
    return {"filename": str(path.absolute())}
