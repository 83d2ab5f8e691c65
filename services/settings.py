"""Settings from environment variables, validated when a service starts."""

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
from services.tls_identity import Identity, identity_of_files


class ServiceSettings(BaseSettings):
    """The settings of every service.

    A service's own variables have its prefix, such as `SKYHIGH_SEAT_`; shared ones have `SKYHIGH_`.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True)

    database_url: str
    amqp_url: str
    listen: str
    """The `host:port` that all processes of the service share."""
    worker_port: int = 0
    """Each process also listens on this port plus its index; 0 for none.

    A gateway uses these ports to distribute its calls.
    """
    metrics_port: int = 0
    """Each process serves /metrics on this port plus its index; 0 for none.

    It is served on loopback only.
    """
    processes: int = Field(default=2, ge=1, le=64)
    pool_size: int = Field(default=8, ge=2, le=100)
    """Postgres connections of each process."""
    drain_notice_seconds: float = Field(default=2.5, ge=0, le=4, validation_alias="SKYHIGH_DRAIN_NOTICE_SECONDS")
    """How long a stopping process reports NOT_SERVING before it stops.

    Longer than the interval of the health checks.
    """
    watches_per_principal: int = Field(default=20, ge=1)
    """The most streams that one caller may have open at one process."""
    reconcile_seconds: float = Field(default=10, gt=0, le=15, validation_alias="SKYHIGH_RECONCILE_SECONDS")
    """The interval of the reconciler.

    At most 15 s, so that rows are compared at least twice within 30 s.
    """

    redis_url: str = Field(validation_alias="SKYHIGH_REDIS_URL")
    jwks: str = Field(validation_alias="SKYHIGH_JWKS")
    """File path or https URL of the issuer's public keys."""
    token_issuer: str = Field(validation_alias="SKYHIGH_TOKEN_ISSUER")
    token_audience: str = Field(default="skyhigh", validation_alias="SKYHIGH_TOKEN_AUDIENCE")
    page_token_key: str = Field(min_length=32, validation_alias="SKYHIGH_PAGE_TOKEN_KEY")
    """The key that signs page tokens, the same for all processes."""
    log_level: str = Field(default="info", validation_alias="SKYHIGH_LOG_LEVEL")
    trusted_proxies: str = Field(default="127.0.0.0/8,::1/128", validation_alias="SKYHIGH_TRUSTED_PROXIES")
    """The networks of the gateways, separated by commas.

    Only a header that comes from there may name the client's address.
    """

    tls_certificate: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_CERTIFICATE")
    """A PEM file with the service's certificate and its chain.

    One of its names is the service's own, such as `seat`. With this setting and the next two, every port accepts only
    mutual TLS, and calls to other services use it too.
    """
    tls_key: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_KEY")
    tls_authority: Path | None = Field(default=None, validation_alias="SKYHIGH_TLS_AUTHORITY")
    """The certificate authority that is trusted, for callers and for callees."""

    @field_validator("*")
    @classmethod
    def _addresses_are_endpoints(cls, value: object, info: ValidationInfo) -> object:
        if isinstance(value, str) and info.field_name is not None and info.field_name.endswith("_address"):
            grpc_target(value)
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        identity_of_files(self.tls_certificate, self.tls_key, self.tls_authority)
        return self

    @property
    def reconcile(self) -> timedelta:
        """The interval of the reconciler."""
        return timedelta(seconds=self.reconcile_seconds)

    @property
    def proxies(self) -> list[Network]:
        """The networks of `trusted_proxies`."""
        return [ip_network(text.strip()) for text in self.trusted_proxies.split(",") if text.strip()]

    @property
    def identity(self) -> Identity | None:
        """The TLS identity of the service, or None without TLS."""
        return identity_of_files(self.tls_certificate, self.tls_key, self.tls_authority)


class CallerSettings(ServiceSettings):
    """Additional settings of a service that calls other services."""

    token_file: Path
    """A file with the token that the service sends to other services.

    It may be replaced at any time.
    """


Settings = TypeVar("Settings", bound=BaseSettings)


def load(settings: type[Settings]) -> Settings:
    """Reads the settings from the environment.

    Exits with code 2 and prints a line for each variable that is missing or wrong.
    """
    try:
        return settings()
    except ValidationError as error:
        prefix = settings.model_config.get("env_prefix", "")
        for problem in error.errors():
            # The message of an error about several variables names them itself.
            name = str(next(iter(problem["loc"]), ""))
            variable = name if name.isupper() or not name else f"{prefix}{name.upper()}"
            print(": ".join(filter(None, (variable, problem["msg"]))), file=sys.stderr)  # noqa: T201
        sys.exit(2)
