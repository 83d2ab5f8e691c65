"""`python -m deploy.mocks.payment_provider`: a mock payment provider.

It decides by the payment code and reports its decisions by signed webhooks. README.md of this folder is its contract
and describes its switches.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import ssl
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import aiohttp
from aiohttp import web
from pydantic import BaseModel, Field, FilePath, ValidationError, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict
from standardwebhooks.webhooks import EmptyWebhookSecretError, Webhook

from deploy.mocks.behaviour import Behaviour, problem, problems_of, run_until_told, serving_http
from services import telemetry
from services.settings import load

ALWAYS_SUCCEEDS: Final = "00000"
ALWAYS_FAILS: Final = "99999"
KEPT_CHARGES: Final = 10_000
DELIVERY_TRIES: Final = 8
FIRST_RETRY_SECONDS: Final = 0.5
# The age of a stale webhook. A receiver that follows Standard Webhooks refuses one that is so old.
STALE: Final = timedelta(minutes=20)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Forgery = Literal["unsigned", "wrong_key", "altered_body", "stale"]

_log = telemetry.log("payment_provider")


class ProviderSettings(BaseSettings):
    """The address of the provider, the receiver of its webhooks, and how it decides."""

    model_config = SettingsConfigDict(
        env_prefix="SKYHIGH_MOCK_PROVIDER_", extra="ignore", frozen=True, populate_by_name=True
    )

    listen: str = "127.0.0.1:50062"
    webhook_url: str = "http://127.0.0.1:8080/v1/payments/webhook"
    webhook_authority: FilePath | None = None
    """A PEM file: the authority that signed the receiver's certificate, if it is no public one."""
    webhook_secret: str
    """`whsec_` and base64, known to the receiver too. With several, separated by commas, each one signs."""
    failure_rate: float = Field(default=0.15, ge=0, le=1, validation_alias="SKYHIGH_PAYMENT_FAILURE_RATE")
    """The share of declined charges, 0 to 1, for codes other than 00000 and 99999."""
    seed: int | None = None
    """With a seed, each run makes the same decisions in the same order."""

    @property
    def signers(self) -> list[Webhook]:
        """The signers, one for each secret."""
        return [Webhook(secret.strip()) for secret in self.webhook_secret.split(",")]

    @field_validator("webhook_secret")
    @classmethod
    def _can_sign(cls, secrets_given: str) -> str:
        for secret in secrets_given.split(","):
            try:
                Webhook(secret.strip())
            except (ValueError, EmptyWebhookSecretError):
                raise ValueError("each secret must be whsec_ and base64") from None
        return secrets_given


class ProviderBehaviour(BaseModel, extra="forbid"):
    """The switches of the provider."""

    down: bool = False
    """The provider responds with 503 to every API request except the list of charges."""
    failure_rate: float = Field(default=0.15, ge=0, le=1)
    decision_delay_seconds: float = Field(default=0.2, ge=0, le=600)
    answer_delay_seconds: float = Field(default=0, ge=0, le=600)
    """The response to a charge comes late; the charge itself is not delayed."""
    lose_answers: int = Field(default=0, ge=0)
    """So many of the next charges are made, but the connection is cut instead of a response."""
    drop_webhooks: bool = False
    webhook_delay_seconds: float = Field(default=0, ge=0, le=600)
    duplicate: int = Field(default=0, ge=0, le=20)
    """Each webhook is sent so many times more."""
    reorder: int = Field(default=0, ge=0, le=1000)
    """Webhooks are held back until there are so many, and then sent in the reverse order."""
    forge: Forgery | None = None
    """Before each webhook, one that is forged in this way is sent."""
    wrong_amount: bool = False
    """Webhooks state another amount than was charged."""


class Amount(BaseModel, extra="forbid", strict=True):
    """An amount of money."""

    currency: str = Field(pattern="^[A-Z]{3}$")
    minor_units: int = Field(gt=0)


class ChargeRequest(BaseModel, extra="forbid"):
    """The body of a request for a charge."""

    amount: Amount
    payment_code: str = Field(pattern="^[0-9]{5}$")
    metadata: dict[str, str] = Field(default_factory=dict)


class RefundRequest(BaseModel, extra="forbid"):
    """The body of a request for a refund; without an amount, of the whole charge."""

    charge_id: str
    amount: Amount | None = None


@dataclass(frozen=True, slots=True)
class Charge:
    """A charge; `status` is pending, succeeded, failed or voided. Its amount is the requested one."""

    charge_id: str
    key: str
    status: str
    amount: dict[str, Any]
    error: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund of a charge, or of a part of it."""

    refund_id: str
    charge_id: str
    key: str
    status: str
    amount: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Event:
    event_id: str
    body: bytes


class PaymentProvider:
    """A running provider."""

    def __init__(self, settings: ProviderSettings) -> None:
        normal = ProviderBehaviour(failure_rate=settings.failure_rate)
        self.behaviour = Behaviour(normal, turned=self._send_held_back)
        self.webhook_url = settings.webhook_url
        self.url = ""
        self.charges: dict[str, Charge] = {}
        """By idempotency key."""
        self.refunds: dict[str, Refund] = {}
        """By charge id if the request was for the whole charge, else by the refund's idempotency key."""
        self.deliveries: deque[int] = deque(maxlen=KEPT_CHARGES)
        """The HTTP status of each webhook that got a response."""
        self._requests: dict[str, ChargeRequest] = {}
        self._random = random.Random(settings.seed)  # noqa: S311
        self._signers = settings.signers
        self._trusted = ssl.create_default_context(cafile=settings.webhook_authority)
        self._held_back: list[_Event] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Decides charges and sends webhooks during the block."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=10)) as self._session:
            try:
                yield
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        """Returns the HTTP routes of its API and its switches."""
        return [
            web.post("/charges", self._unless_down(self._charge)),
            web.get("/charges", self._list),
            web.get("/charges/{key}", self._unless_down(self._show)),
            web.delete("/charges/{key}", self._unless_down(self._void)),
            web.post("/refunds", self._unless_down(self._refund)),
            *self.behaviour.routes(),
        ]

    def _unless_down(self, handler: Handler) -> Handler:
        async def handle(request: web.Request) -> web.StreamResponse:
            if self.behaviour.now.down:
                return problem(503, "the provider is down")
            return await handler(request)

        return handle

    async def _charge(self, request: web.Request) -> web.StreamResponse:
        key = request.headers.get("Idempotency-Key", "")
        if not key:
            return problem(400, "the header Idempotency-Key is missing")
        try:
            asked = ChargeRequest.model_validate_json(await request.read())
        except ValidationError as error:
            return problem(400, problems_of(error))
        known = self._requests.get(key)
        if known is not None and known != asked:
            return problem(409, "the key was used with another request")
        if key not in self.charges:
            self._keep(
                Charge(f"ch_{secrets.token_hex(8)}", key, "pending", asked.amount.model_dump(), None, asked.metadata)
            )
            self._requests[key] = asked
            self._soon(self._decide(key, asked.payment_code))
        now = self.behaviour.now
        if now.lose_answers:
            self.behaviour.now = now.model_copy(update={"lose_answers": now.lose_answers - 1})
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        made = self.charges[key]
        await asyncio.sleep(now.answer_delay_seconds)
        return web.json_response(asdict(self.charges.get(key, made)), status=202)

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response(
            {
                "charges": [asdict(charge) for charge in self.charges.values()],
                "refunds": [asdict(refund) for refund in self.refunds.values()],
            }
        )

    async def _show(self, request: web.Request) -> web.Response:
        charge = self.charges.get(request.match_info["key"])
        return problem(404, "no such charge") if charge is None else web.json_response(asdict(charge))

    async def _void(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        charge = self.charges.get(key) or Charge(f"ch_{secrets.token_hex(8)}", key, "pending", {})
        if charge.status == "pending":
            charge = replace(charge, status="voided")
            self._keep(charge)
        return web.json_response(asdict(charge))

    async def _refund(self, request: web.Request) -> web.Response:
        key = request.headers.get("Idempotency-Key", "")
        if not key:
            return problem(400, "the header Idempotency-Key is missing")
        try:
            asked = RefundRequest.model_validate_json(await request.read())
        except ValidationError as error:
            return problem(400, problems_of(error))
        charge_id = asked.charge_id
        known = next((refund for refund in self.refunds.values() if refund.key == key), None)
        part = asked.amount.model_dump() if asked.amount is not None else None
        if known is not None and (known.charge_id != charge_id or (part is not None and known.amount != part)):
            return problem(409, "the key was used with another request")
        charge = next((charge for charge in self.charges.values() if charge.charge_id == charge_id), None)
        if charge is None:
            return problem(404, "no such charge")
        amount = part or charge.amount
        before = sum(each.amount["minor_units"] for each in self.refunds.values() if each.charge_id == charge_id)
        refund = known or (self.refunds.get(charge_id) if part is None else None)
        too_much = charge.status == "succeeded" and before + amount["minor_units"] > charge.amount["minor_units"]
        if charge.status != "succeeded" or (refund is None and too_much):
            return problem(409, "the refunds would exceed the charge" if too_much else f"the charge is {charge.status}")
        if refund is None:
            refund = Refund(f"re_{secrets.token_hex(8)}", charge_id, key, "succeeded", amount)
            self.refunds[charge_id if part is None else key] = refund
            self._tell(
                "refund.succeeded", charge, refund_id=refund.refund_id, refund_key=key, refund_amount=refund.amount
            )
        return web.json_response(asdict(refund))

    def _keep(self, charge: Charge) -> None:
        self.charges[charge.key] = charge
        while len(self.charges) > KEPT_CHARGES:
            oldest = self.charges.pop(next(iter(self.charges)))
            self._requests.pop(oldest.key, None)
            for name in [name for name, each in self.refunds.items() if each.charge_id == oldest.charge_id]:
                del self.refunds[name]

    async def _decide(self, key: str, code: str) -> None:
        now = self.behaviour.now
        await asyncio.sleep(now.decision_delay_seconds)
        charge = self.charges.get(key)
        if charge is None or charge.status != "pending":
            return
        fails = code == ALWAYS_FAILS or (code != ALWAYS_SUCCEEDS and self._random.random() < now.failure_rate)
        charge = replace(charge, status="failed" if fails else "succeeded", error="DECLINED" if fails else None)
        self._keep(charge)
        self._tell(f"charge.{charge.status}", charge)

    def _tell(self, kind: str, charge: Charge, **more: Any) -> None:
        now = self.behaviour.now
        data = asdict(charge) | more
        if now.wrong_amount:
            data["amount"] = {**charge.amount, "minor_units": charge.amount["minor_units"] + 1}
        body = json.dumps({"type": kind, "timestamp": datetime.now(UTC).isoformat(), "data": data}).encode()
        self._held_back.append(_Event(f"evt_{secrets.token_hex(8)}", body))
        self._send_held_back()

    def _send_held_back(self) -> None:
        now = self.behaviour.now
        if now.drop_webhooks:
            self._held_back.clear()
        elif self._held_back and len(self._held_back) >= now.reorder:
            events, self._held_back = self._held_back[::-1], []
            self._soon(self._deliver_all(events))

    async def _deliver_all(self, events: Iterable[_Event]) -> None:
        now = self.behaviour.now
        await asyncio.sleep(now.webhook_delay_seconds)
        for event in events:
            if now.forge is not None:
                await self._post(*forged(self._signers, event, now.forge))
            for _ in range(1 + now.duplicate):
                await self._deliver(event)

    async def _deliver(self, event: _Event) -> None:
        """Sends a webhook until the response is 2xx, at most DELIVERY_TRIES times.

        All tries have the same id; each has its own time and, because of that, its own signature.
        """
        for number in range(DELIVERY_TRIES):
            if number:
                await asyncio.sleep(FIRST_RETRY_SECONDS * 2 ** (number - 1))
            status = await self._post(event.body, signed_headers(self._signers, event.event_id, event.body))
            if 200 <= status < 300:
                return
        _log.warning("webhook not delivered", event_id=event.event_id)

    async def _post(self, body: bytes, headers: dict[str, str]) -> int:
        assert self._session is not None
        with suppress(aiohttp.ClientError, TimeoutError):
            async with self._session.post(self.webhook_url, data=body, headers=headers, ssl=self._trusted) as answer:
                self.deliveries.append(answer.status)
                return answer.status
        return 0

    def _soon(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def signed_headers(
    signers: Sequence[Webhook], event_id: str, body: bytes, *, time: datetime | None = None
) -> dict[str, str]:
    """Returns the headers of a webhook by Standard Webhooks 1.0.0."""
    moment = time or datetime.now(UTC)
    return {
        "content-type": "application/json",
        "webhook-id": event_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signer.sign(event_id, moment, body.decode()) for signer in signers),
    }


def forged(signers: Sequence[Webhook], event: _Event, how: Forgery) -> tuple[bytes, dict[str, str]]:
    """Returns body and headers of a forged webhook, which a receiver must refuse."""
    # An id of its own: if a receiver accepts the webhook by mistake, its effect is seen. With the same id, the receiver
    # would drop it as a repeat.
    event_id = f"{event.event_id}_forged"
    headers = signed_headers(signers, event_id, event.body)
    match how:
        case "unsigned":
            del headers["webhook-signature"]
        case "wrong_key":
            headers = signed_headers([Webhook(secrets.token_bytes(32))], event_id, event.body)
        case "altered_body":
            altered = json.loads(event.body)
            altered["data"]["amount"]["minor_units"] += 1
            return json.dumps(altered).encode(), headers
        case "stale":
            headers = signed_headers(signers, event_id, event.body, time=datetime.now(UTC) - STALE)
    return event.body, headers


@asynccontextmanager
async def serving(settings: ProviderSettings) -> AsyncIterator[PaymentProvider]:
    """Runs the provider during the block."""
    provider = PaymentProvider(settings)
    async with provider.working(), serving_http(settings.listen, provider.routes()) as provider.url:
        _log.info("serving", url=provider.url, webhook_url=provider.webhook_url)
        yield provider


if __name__ == "__main__":
    telemetry.configure_logging("mock-payment-provider", "info")
    run_until_told(serving(load(ProviderSettings)))
