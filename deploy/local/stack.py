"""The local stack: its home, ports, keys, servers, and the settings that its processes get."""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

from deploy.local.addresses import CERTIFICATE_NAMES, address_names, address_variable
from deploy.local.certificates import Authority
from deploy.local.home import home_of
from deploy.local.mocks import MOCKS, Mock
from deploy.local.port_table import ports_from
from deploy.local.process import LOOPBACK
from deploy.local.secrets import Secrets, SigningKeys
from deploy.local.servers.private import ServerPorts, Servers
from deploy.local.services import SERVICES, process_count
from services.tls_identity import VARIABLES, Identity

ISSUER: Final = "https://skyhigh.example/demo"
AUDIENCE: Final = "skyhigh"
# With TLS each service has a certificate of its name. These two are for Envoy and for the `skyhigh` command.
EDGE: Final = "edge"
OPERATIONS: Final = "operations"
EDGE_TLS_VARIABLES: Final = ("SKYHIGH_GATEWAY_TLS_CERTIFICATE", "SKYHIGH_GATEWAY_TLS_KEY")


@dataclass(frozen=True)
class Stack:
    """One local stack, as the environment describes it."""

    home: Path
    """Data, keys and logs."""
    ports: Mapping[str, int]
    given: Mapping[str, str]
    """The `SKYHIGH_…` variables of the caller. They take precedence over all values below."""
    tls: bool = False
    """True if the gateway serves TLS and the services mutual TLS, with certificates of `authority`."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Stack:
        """Reads the `SKYHIGH_…` variables. Raises ValueError with the name of a wrong one."""
        given = {name: value for name, value in environment.items() if name.startswith("SKYHIGH_") and value}
        ports = ports_from(given)
        for service in SERVICES:
            process_count(service, given)
        speaks_tls = given.get("SKYHIGH_TLS", "0")
        if speaks_tls not in ("0", "1"):
            raise ValueError(f"SKYHIGH_TLS: {speaks_tls!r} is neither 1 nor 0")
        if foreign := [name for name in (*VARIABLES, *EDGE_TLS_VARIABLES) if name in given]:
            raise ValueError(f"{foreign[0]}: unset it; with SKYHIGH_TLS=1 a local stack issues its own certificates")
        return cls(home=home_of(environment), ports=ports, given=given, tls=speaks_tls == "1")

    @cached_property
    def secrets(self) -> Secrets:
        """The passwords of the stack."""
        return Secrets(self.home / "secrets.json")

    @cached_property
    def servers(self) -> Servers:
        """The private servers of the stack, including those that it does not use."""
        return Servers(
            folder=self.home,
            ports=ServerPorts(
                postgres=self.ports["postgres"],
                redis=self.ports["redis"],
                amqp=self.ports["amqp"],
                amqp_distribution=self.ports["amqp_distribution"],
                epmd=self.ports["epmd"],
            ),
            secrets=self.secrets,
            services=[service.name for service in SERVICES],
        )

    @property
    def signing_keys(self) -> SigningKeys:
        """The keys that sign the demo tokens."""
        return SigningKeys(self.home / "keys")

    @property
    def authority(self) -> Authority:
        """The authority that signs the certificates, if the stack uses TLS."""
        return Authority(self.home / "keys" / "tls")

    def identity_of(self, name: str) -> Identity | None:
        """Returns the certificate of a service, of EDGE or of OPERATIONS; None without TLS."""
        return self.authority.identity(name) if self.tls else None

    def ensure_certificates(self) -> None:
        """Issues the certificates that are missing or expire soon; does nothing without TLS."""
        if self.tls:
            self.authority.ensure([*(service.name for service in SERVICES), EDGE, OPERATIONS])

    @property
    def addresses(self) -> dict[str, str]:
        """The variables that `skyhigh env` prints."""
        shown = self.identity_of(OPERATIONS)
        known = {
            "SKYHIGH_GATEWAY_URL": f"{'https' if self.tls else 'http'}://{LOOPBACK}:{self.ports['gateway']}",
            "SKYHIGH_DATABASE_URL": self.given.get("SKYHIGH_DATABASE_URL") or self.servers.database_url(),
            "SKYHIGH_AMQP_URL": self.given.get("SKYHIGH_AMQP_URL") or self.servers.amqp_url(),
            "SKYHIGH_REDIS_URL": self.given.get("SKYHIGH_REDIS_URL") or self.servers.redis_url,
            **{address_variable(service.name): f"{LOOPBACK}:{self.ports[service.label]}" for service in SERVICES},
            **{mock.control_url: f"http://{LOOPBACK}:{self.control_port(mock)}" for mock in self.mocks},
            **({} if shown is None else dict(zip(CERTIFICATE_NAMES, certificate_paths(shown), strict=True))),
        }
        return {name: known[name] for name in address_names() if name in known}

    @property
    def tokens(self) -> dict[str, str]:
        """The settings for the tokens that the stack trusts: keys, issuer and audience."""
        return {
            "SKYHIGH_JWKS": self.given.get("SKYHIGH_JWKS") or str(self.signing_keys.jwks),
            "SKYHIGH_TOKEN_ISSUER": self.given.get("SKYHIGH_TOKEN_ISSUER") or ISSUER,
            "SKYHIGH_TOKEN_AUDIENCE": self.given.get("SKYHIGH_TOKEN_AUDIENCE") or AUDIENCE,
        }

    @property
    def values(self) -> dict[str, str]:
        """The settings that only some services and mocks get."""
        webhook_key = base64.b64encode(bytes.fromhex(self.secrets["webhooks"])).decode()
        webhook_secrets = self.given.get("SKYHIGH_PAYMENT_WEBHOOK_SECRETS") or f"whsec_{webhook_key}"
        return {
            "SKYHIGH_SESSION_KEY": str(self.signing_keys.session_key),
            "SKYHIGH_RATE_LIMITS": self.given.get("SKYHIGH_RATE_LIMITS", "on"),
            "SKYHIGH_WEIGHT_ADDRESS": f"{LOOPBACK}:{self.ports['mock_weight']}",
            "SKYHIGH_SMTP_ADDRESS": f"{LOOPBACK}:{self.ports['mock_mail']}",
            "SKYHIGH_PAYMENT_PROVIDER_URL": f"http://{LOOPBACK}:{self.ports['mock_provider']}",
            "SKYHIGH_PAYMENT_WEBHOOK_SECRETS": webhook_secrets,
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL": f"{self.addresses['SKYHIGH_GATEWAY_URL']}/v1/payments/webhook",
            "SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET": webhook_secrets.split(",")[0].strip(),
            **({"SKYHIGH_MOCK_PROVIDER_WEBHOOK_AUTHORITY": str(self.authority.certificate)} if self.tls else {}),
        }

    @property
    def mocks(self) -> list[Mock]:
        """The mocks whose real systems are not given."""
        return [mock for mock in MOCKS if mock.real not in self.given]

    def control_port(self, mock: Mock) -> int:
        """Returns the port at which HTTP calls change the behaviour of a mock."""
        return self.ports.get(f"mock_{mock.name}_control", self.ports[f"mock_{mock.name}"])


def certificate_paths(identity: Identity) -> tuple[str, ...]:
    """Returns certificate, key and authority, in the order of the variables that name them."""
    return tuple(map(str, (identity.certificate, identity.key, identity.authority)))
