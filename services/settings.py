"""Settings from the environment, checked when a service starts."""

from __future__ import annotations

import sys
from datetime import timedelta
from ipaddress import ip_network
from pathlib import Path
from typing import Self, TypeVar

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.addresses import Network
from services.endpoints import grpc_target
from services.identity import Identity, whole


class ServiceSettings(BaseSettings):
    """What every service reads. Its own variables carry its prefix, such as `SKYHIGH_SEAT_`; shared ones `SKYHIGH_`."""

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    database_url: str
    amqp_url: str
    listen: str
    """`host:port` that all processes of the service share."""
    worker_port: int = 0
    """Each process listens on this port plus its index too, so that a gateway can spread its calls; 0 for none."""
    metrics_port: int = 0
    """Each process serves /metrics on this port plus its index, on loopback; 0 for none."""
    processes: int = Field(default=2, ge=1, le=64)
    pool_size: int = Field(default=8, ge=2, le=100)
    """Connections to Postgres for each process."""
    drain_notice_seconds: float = Field(default=2.5, ge=0, le=4, validation_alias="SKYHIGH_DRAIN_NOTICE_SECONDS")
    """How long a process that is told to end says NOT_SERVING before it does: longer than between two health checks."""
    watches_per_principal: int = Field(default=20, ge=1)
    """Streams that one caller may have open at a process."""
    reconcile_seconds: float = Field(default=10, gt=0, le=15, validation_alias="SKYHIGH_RECONCILE_SECONDS")
    """How often what waits for another service's fact is compared with that service: twice within 30 s at least."""

    redis_url: str = Field(validation_alias="SKYHIGH_REDIS_URL")
    jwks: str = Field(validation_alias="SKYHIGH_JWKS")
    """File path or https URL of the issuer's public keys."""
    token_issuer: str = Field(validation_alias="SKYHIGH_TOKEN_ISSUER")
    token_audience: str = Field(default="skyhigh", validation_alias="SKYHIGH_TOKEN_AUDIENCE")
    page_token_key: str = Field(min_length=32, validation_alias="SKYHIGH_PAGE_TOKEN_KEY")
    """Signs page tokens; the same for all processes."""
    log_level: str = Field(default="info", validation_alias="SKYHIGH_LOG_LEVEL")
    trusted_proxies: str = Field(default="127.0.0.0/8,::1/128", validation_alias="SKYHIGH_TRUSTED_PROXIES")
    """Networks of the gateways whose header names the client's address, by commas."""

    tls_certificate: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_CERTIFICATE")
    """With this and the next two every port takes mutual TLS and nothing else, and so do the services that are called.

    A PEM file: the certificate whose names have the service's own, such as `seat`, and its chain.
    """
    tls_key: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_KEY")
    tls_authority: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_AUTHORITY")
    """Whose certificates are trusted, of callers and of those that are called."""

    @field_validator("*")
    @classmethod
    def _addresses_are_endpoints(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and info.field_name is not None and info.field_name.endswith("_address"):
            grpc_target(value)
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        whole(self.tls_certificate, self.tls_key, self.tls_authority)
        return self

    @property
    def reconcile(self) -> timedelta:
        """The pause between two looks at what waits for another service's fact."""
        return timedelta(seconds=self.reconcile_seconds)

    @property
    def proxies(self) -> list[Network]:
        """The networks of `trusted_proxies`."""
        return [ip_network(text.strip()) for text in self.trusted_proxies.split(",") if text.strip()]

    @property
    def identity(self) -> Identity | None:
        """What the service shows of itself where it speaks TLS."""
        return whole(self.tls_certificate, self.tls_key, self.tls_authority)


class CallerSettings(ServiceSettings):
    """What a service that calls other services reads besides."""

    token_file: Path
    """A file with the token that it shows to them; it may be replaced at any time."""


Settings = TypeVar("Settings", bound=BaseSettings)


def load(settings: type[Settings]) -> Settings:
    """Reads the environment; ends the process with a line for each variable that is missing or wrong."""
    try:
        return settings()
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for problem in error.errors():
            # What is wrong with several variables together names them itself.
            name = str(next(iter(problem["loc"]), ""))
            variable = name if name.isupper() or not name else f"{prefix}{name.upper()}"
            print(": ".join(filter(None, (variable, problem["msg"]))), file=sys.stderr)  # noqa: T201
        sys.exit(2)
