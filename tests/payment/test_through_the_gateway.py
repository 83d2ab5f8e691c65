"""Payments through a real Envoy: JSON calls and the provider's webhooks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Final

import httpx
import pytest

from deploy.local.process import answers, free_ports
from deploy.local.servers.envoy import envoy
from deploy.local.supervisor import Supervisor
from deploy.mocks.payment_provider import PaymentProvider
from gateway.guard.settings import RateLimits
from gateway.render import write
from gateway.settings import GatewaySettings
from tests.callers import ISSUER, Caller
from tests.conftest import World
from tests.payment.rules import FOREIGN_SECRET, Payments, event, signed
from tests.payment.test_attempts import switch
from tests.waiting import eventually

UNSIGNED: Final = (
    b"POST /v1/payments/webhook HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b"Content-Length: 2\r\nConnection: close\r\n\r\n{}"
)


@pytest.fixture(scope="module")
async def gateway_url(world: World, prompt: Payments) -> AsyncIterator[str]:
    """An Envoy in front of the prompt service."""
    port, admin_port = free_ports(2)
    settings = GatewaySettings(
        rate_limits=RateLimits.OFF,
        gateway_port=port,
        gateway_admin_port=admin_port,
        payment_address=(prompt.callers.address,),
        jwks=world.keys.jwks,
        token_issuer=ISSUER,
    )
    process = envoy(write(settings, world.folder / "payment gateway"), port=port)
    # Envoy's health check needs all services, and only this one runs. The gateway is ready once the service refuses an
    # unsigned webhook.
    alone = replace(process, ready=answers(port, ask=UNSIGNED, expect=[b"HTTP/1.1 401"]))
    async with Supervisor([alone], logs=world.folder / "payment gateway logs", restart=False):
        yield f"http://127.0.0.1:{port}"


async def test_a_webhook_through_the_gateway_completes_the_payment(
    prompt: Payments, provider: PaymentProvider, payer: Caller, gateway_url: str
) -> None:
    former_url, provider.webhook_url = provider.webhook_url, f"{gateway_url}/v1/payments/webhook"
    switch(provider, forge="altered_body", duplicate=2)
    provider.deliveries.clear()
    intent = await prompt.intent(payer)
    try:
        async with httpx.AsyncClient(base_url=gateway_url, headers={"authorization": f"Bearer {payer.token}"}) as phone:
            path = f"/v1/payments/{intent.intent_id}"
            answer = await phone.post(f"{path}/pay", json={"paymentCode": "00000"})
            assert (answer.status_code, answer.json()["state"]) == (200, "PROCESSING")

            async def paid() -> bool:
                return bool((await phone.get(path)).json()["state"] == "SUCCEEDED")

            await eventually(paid)

            async def delivered() -> bool:
                return sorted(provider.deliveries) == [200, 200, 200, 401]

            await eventually(delivered)
    finally:
        provider.webhook_url = former_url


async def test_each_webhook_error_has_its_http_status(prompt: Payments, payer: Caller, gateway_url: str) -> None:
    body = event(await prompt.intent(payer))
    card = event(await prompt.intent(payer), pan="4111 1111 1111 1111")
    async with httpx.AsyncClient(base_url=gateway_url) as somebody:
        told = await asyncio.gather(
            somebody.post("/v1/payments/webhook", content=body),
            somebody.post("/v1/payments/webhook", content=body, headers=signed(body, secret=FOREIGN_SECRET)),
            somebody.post("/v1/payments/webhook", content=body, headers=signed(body, age_seconds=400)),
            somebody.post("/v1/payments/webhook", content=card, headers=signed(card)),
            somebody.post("/v1/payments/webhook", content=body, headers=signed(body)),
        )
    assert [(answer.status_code, _reason(answer)) for answer in told] == [
        (401, "WEBHOOK_UNSIGNED"),
        (401, "WEBHOOK_FORGED"),
        (400, "WEBHOOK_STALE"),
        (400, "CARD_DATA_REFUSED"),
        (200, ""),
    ]


def _reason(answer: httpx.Response) -> str:
    return next((detail["reason"] for detail in answer.json().get("details", ()) if "reason" in detail), "")
