"""A client of the payment provider's API (deploy/mocks/README.md).

The API is JSON over HTTP; our idempotency keys make repeats safe.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Final, Self, TypeAlias, TypeVar
from uuid import UUID

import aiohttp
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from services.money import Amount

NOT_FOUND: Final = 404


# Ids and texts of the provider, in a form that can be stored and shown.
ProviderId: TypeAlias = Annotated[str, Field(pattern=r"^[\x21-\x7e]{1,128}$")]
ProviderText: TypeAlias = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{0,200}$")]


class Status(StrEnum):
    """The status of a charge or a refund at the provider."""

    PENDING = "pending"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    VOIDED = "voided"


class ProviderAmount(BaseModel):
    """An amount as the provider writes it."""

    model_config = ConfigDict(strict=True, frozen=True)

    currency: str = Field(pattern="^[A-Z]{3}$")
    minor_units: int = Field(ge=0, lt=2**63)


class Metadata(BaseModel):
    """The metadata that we send with a charge."""

    model_config = ConfigDict(frozen=True)

    intent_id: UUID


class ProviderCharge(BaseModel):
    """A charge as the provider returns it."""

    model_config = ConfigDict(frozen=True)

    key: UUID
    """Our idempotency key."""
    charge_id: ProviderId | None = None
    """The provider's own id; None for a key that was voided before any charge."""
    status: Status
    amount: ProviderAmount | None = None
    error: ProviderText | None = None
    metadata: Metadata | None = None

    @field_validator("amount", "metadata", mode="before")
    @classmethod
    def _nothing(cls, value: object) -> object:
        return value or None

    @model_validator(mode="after")
    def _taken_money_is_named(self) -> Self:
        if self.status is Status.SUCCEEDED and not (self.charge_id and self.amount):
            raise ValueError("a success has its charge_id and its amount")
        return self


class ProviderRefund(BaseModel):
    """A refund as the provider returns it."""

    model_config = ConfigDict(frozen=True)

    refund_id: ProviderId
    status: Status


class OutcomeUnknown(Exception):
    """Raised if the provider gave no valid response, so that the outcome is unknown.

    `error` is a code for the owner of the intent.
    """

    def __init__(self, error: str, detail: str) -> None:
        super().__init__(f"{error}: {detail}")
        self.error = error


Answer = TypeVar("Answer", bound=BaseModel)


class Provider:
    """Calls the provider, for at most `timeout_seconds` per call.

    Every call raises OutcomeUnknown.
    """

    def __init__(self, url: str, *, timeout_seconds: float) -> None:
        # No limit of connections here: the timers limit the steps that run at once, and waiting for a connection would
        # use up the timeout of the call.
        self._session = aiohttp.ClientSession(
            base_url=url.rstrip("/") + "/",
            timeout=aiohttp.ClientTimeout(total=timeout_seconds),
            connector=aiohttp.TCPConnector(limit=0),
        )

    async def close(self) -> None:
        """Closes the connections."""
        await self._session.close()

    async def charge(self, key: UUID, *, amount: Amount, payment_code: str, intent_id: UUID) -> ProviderCharge:
        """Requests a charge; the verdict may come later.

        A repeat with the same key returns the same charge.
        """
        body = {
            "amount": {"currency": amount.currency, "minor_units": amount.minor_units},
            "payment_code": payment_code,
            "metadata": {"intent_id": str(intent_id)},
        }
        return _known(await self._ask("POST", "charges", ProviderCharge, key=key, body=body))

    async def find(self, key: UUID) -> ProviderCharge | None:
        """Returns the charge with a key; None if the provider does not know the key."""
        return await self._ask("GET", f"charges/{key}", ProviderCharge)

    async def void(self, key: UUID) -> ProviderCharge:
        """Voids an undecided charge, so that its key can't be charged any more.

        Returns a decided charge as it is.
        """
        return _known(await self._ask("DELETE", f"charges/{key}", ProviderCharge))

    async def refund(self, refund_key: UUID, *, provider_charge_id: str, part: Amount | None = None) -> ProviderRefund:
        """Requests a refund of a charge, in full unless a part is given.

        A repeat with the same key returns the same refund.
        """
        body: dict[str, Any] = {"charge_id": provider_charge_id}
        if part is not None:
            body["amount"] = {"currency": part.currency, "minor_units": part.minor_units}
        return _known(await self._ask("POST", "refunds", ProviderRefund, key=refund_key, body=body))

    async def _ask(
        self,
        method: str,
        path: str,
        answer_type: type[Answer],
        *,
        key: UUID | None = None,
        body: dict[str, Any] | None = None,
    ) -> Answer | None:
        headers = {"Idempotency-Key": str(key)} if key is not None else {}
        try:
            async with self._session.request(method, path, json=body, headers=headers) as response:
                if response.status == NOT_FOUND:
                    return None
                # An error response does not say what became of an earlier request with this key.
                if not response.ok:
                    raise OutcomeUnknown("PROVIDER_ERROR", f"{method} answered {response.status}")
                return answer_type.model_validate_json(await response.read())
        except TimeoutError as error:
            raise OutcomeUnknown("TIMEOUT", f"{method} was not answered in time") from error
        except aiohttp.ClientError as error:
            raise OutcomeUnknown("PROVIDER_UNAVAILABLE", f"{method}: {type(error).__name__}") from error
        except ValidationError as error:
            # The text of the error would contain the response.
            raise OutcomeUnknown("PROVIDER_ERROR", f"{method} answered {error.error_count()} wrong fields") from None


def _known(answer: Answer | None) -> Answer:
    if answer is None:
        raise OutcomeUnknown("PROVIDER_ERROR", "what must be there was not found")
    return answer
