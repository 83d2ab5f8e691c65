"""The settings of the payment service."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from datetime import timedelta
from typing import Annotated, Final

from pydantic import Field, field_validator
from pydantic_settings import NoDecode, SettingsConfigDict

from services.settings import ServiceSettings

SECRET_PREFIX: Final = "whsec_"  # noqa: S105
# Standard Webhooks 1.0.0: between 192 and 512 bits.
SECRET_BYTES: Final = range(24, 65)


@dataclass(frozen=True, slots=True)
class Attempts:
    """The number, length and pauses of a payment's attempts (PAY-3)."""

    most: int
    length: timedelta
    """An attempt without a verdict fails after this time."""
    first_pause: timedelta
    pause_factor: float
    longest_pause: timedelta
    patience: timedelta
    """A charge that the provider has not decided after this time is voided."""

    def pause_after(self, attempts: int) -> timedelta:
        """Returns the pause after this number of attempts."""
        return min(self.longest_pause, self.first_pause * self.pause_factor ** (attempts - 1))


class PaymentSettings(ServiceSettings):
    """Environment variables with the prefix `SKYHIGH_PAYMENT_`."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_PAYMENT_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50054"
    provider_url: str = "http://127.0.0.1:50062"
    webhook_secrets: Annotated[tuple[str, ...], NoDecode] = Field(min_length=1)
    """The secrets with which the provider signs: `whsec_…`, separated by commas while one is rotated."""
    max_attempts: int = Field(default=3, ge=1, le=10)
    attempt_seconds: float = Field(default=10, gt=0, le=60)
    """The longest provider call, and the longest wait for its verdict."""
    backoff_seconds: float = Field(default=1, gt=0)
    backoff_factor: float = Field(default=1.5, ge=1)
    backoff_limit_seconds: float = Field(default=5, gt=0)
    patience_seconds: float = Field(default=600, gt=0)
    """A charge that the provider has not decided after this time is voided, so that a payment always ends."""

    @field_validator("webhook_secrets", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        return tuple(filter(None, (part.strip() for part in value.split(",")))) if isinstance(value, str) else value

    @field_validator("webhook_secrets")
    @classmethod
    def _strong(cls, secrets: tuple[str, ...]) -> tuple[str, ...]:
        for secret in secrets:
            try:
                key = base64.b64decode(secret.removeprefix(SECRET_PREFIX) + "==", validate=False)
            except binascii.Error as error:
                raise ValueError("must be base64 after whsec_") from error
            if not secret.startswith(SECRET_PREFIX) or len(key) not in SECRET_BYTES:
                raise ValueError(f"must be {SECRET_PREFIX} and 24 to 64 bytes in base64")
        return secrets

    @property
    def attempts(self) -> Attempts:
        """The settings of PAY-3 as one value."""
        return Attempts(
            most=self.max_attempts,
            length=timedelta(seconds=self.attempt_seconds),
            first_pause=timedelta(seconds=self.backoff_seconds),
            pause_factor=self.backoff_factor,
            longest_pause=timedelta(seconds=self.backoff_limit_seconds),
            patience=timedelta(seconds=self.patience_seconds),
        )
