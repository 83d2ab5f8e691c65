"""Settings of the edge."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, FilePath, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from gateway import tls
from gateway.guard.settings import RateLimits
from gateway.upstreams import UPSTREAMS
from services.endpoints import endpoints
from services.tls_identity import Identity, identity_of_files

# Fields of GatewaySettings that have the addresses of the services.
ADDRESSES = tuple(upstream.address_setting for upstream in UPSTREAMS)

CommaSeparated = Annotated[tuple[str, ...], NoDecode]


class GatewaySettings(BaseSettings):
    """Settings of the edge, from `SKYHIGH_…` in the environment.

    They give its ports, the services behind it, and the issuer of tokens.
    """

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_", extra="ignore", frozen=True)

    gateway_host: str = "127.0.0.1"
    gateway_port: int = Field(default=8080, ge=1, le=65535)
    gateway_admin_port: int = Field(default=9901, ge=1, le=65535)
    gateway_allowed_origins: CommaSeparated = ()
    """Origins of web pages that may call the edge (CORS). Pages that the edge itself serves are always allowed."""
    seat_address: CommaSeparated = ("127.0.0.1:50051",)
    """Addresses of the seat service. Calls are spread over several addresses, such as one for each process."""
    checkin_address: CommaSeparated = ("127.0.0.1:50052",)
    waitlist_address: CommaSeparated = ("127.0.0.1:50053",)
    payment_address: CommaSeparated = ("127.0.0.1:50054",)
    flight_address: CommaSeparated = ("127.0.0.1:50055",)
    booking_address: CommaSeparated = ("127.0.0.1:50056",)
    gateway_address: CommaSeparated = ("127.0.0.1:50057",)
    """Address of the gateway service, from which Envoy gets limits and blocks and to which it sends its access log."""
    gateway_token_file: FilePath | None = None
    """File with the token that Envoy sends to the gateway service; required unless limits are off."""
    rate_limits: RateLimits = RateLimits.ON
    jwks: FilePath
    """The token issuer's public keys. Envoy reads them when it starts."""
    token_issuer: str = "https://skyhigh.example/demo"  # noqa: S105
    token_audience: str = "skyhigh"  # noqa: S105

    gateway_tls_certificate: FilePath | None = None
    """PEM certificate with its chain. If it and its key are set, clients must use TLS; otherwise they cannot."""
    gateway_tls_key: FilePath | None = None
    tls_certificate: Path | None = None
    """PEM certificate that Envoy presents to the services. If it and the next two are set, all connections use mutual
    TLS."""
    tls_key: Path | None = None
    tls_authority: Path | None = None
    """The authority that issued the certificates of the services."""

    @property
    def shown(self) -> tls.Shown | None:
        """The edge's certificate for clients; None if they do not use TLS."""
        certificate, key = self.gateway_tls_certificate, self.gateway_tls_key
        return tls.Shown(certificate, key) if certificate is not None and key is not None else None

    @property
    def identity(self) -> Identity | None:
        """The edge's certificate for the services; None if they do not use TLS."""
        return identity_of_files(self.tls_certificate, self.tls_key, self.tls_authority)

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.gateway_tls_certificate is None) != (self.gateway_tls_key is None):
            raise ValueError("SKYHIGH_GATEWAY_TLS_CERTIFICATE, SKYHIGH_GATEWAY_TLS_KEY: set both or neither")
        if self.shown is not None:
            self.shown.check()
        identity_of_files(self.tls_certificate, self.tls_key, self.tls_authority)
        return self

    @model_validator(mode="after")
    def _limited_with_a_token(self) -> Self:
        if self.rate_limits is not RateLimits.OFF and self.gateway_token_file is None:
            raise ValueError("gateway_token_file: required, unless rate_limits is off")
        return self

    @field_validator("gateway_allowed_origins", *ADDRESSES, mode="before")
    @classmethod
    def _separate(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator(*ADDRESSES)
    @classmethod
    def _address(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        endpoints(",".join(addresses))
        return addresses
