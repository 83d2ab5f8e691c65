"""The provider's contract, which payment_service is written against, and each of its misbehaviours."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from deploy.mocks.behaviour import serving_http
from deploy.mocks.payment_provider import PaymentProvider, ProviderSettings, serving
from tests.callers import eventually

SECRET = "whsec_" + base64.b64encode(b"tests tests tests tests tests 32").decode()


@dataclass
class Receiver:
    """Who is told."""

    url: str = ""
    good: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    forged: int = 0
    refuse: int = 0

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            event = Webhook(SECRET).verify(body, dict(request.headers))
        except WebhookVerificationError:
            self.forged += 1
            return web.Response(status=401)
        if self.refuse:
            self.refuse -= 1
            return web.Response(status=503)
        self.good.append(event)
        self.ids.append(request.headers["webhook-id"])
        return web.Response()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    told = Receiver()
    async with serving_http("127.0.0.1:0", [web.post("/", told.take)]) as told.url:
        yield told


@pytest.fixture
async def provider(receiver: Receiver) -> AsyncIterator[PaymentProvider]:
    settings = ProviderSettings(listen="127.0.0.1:0", webhook_url=receiver.url, webhook_secret=SECRET, seed=1)
    async with serving(settings) as running:
        running.behaviour.now.decision_delay_seconds = 0.01
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def asked(code: str = "00000", minor_units: int = 9000) -> dict[str, Any]:
    return {
        "amount": {"currency": "USD", "minor_units": minor_units},
        "payment_code": code,
        "metadata": {"intent_id": "i"},
    }


async def charge(
    http: aiohttp.ClientSession, provider: PaymentProvider, key: str, body: dict[str, Any] | None = None
) -> tuple[int, Any]:
    headers = {"Idempotency-Key": key}
    async with http.post(f"{provider.url}/charges", json=body or asked(), headers=headers) as answer:
        return answer.status, await answer.json()


async def told(receiver: Receiver, count: int) -> None:
    async def enough() -> bool:
        return len(receiver.good) >= count

    await eventually(enough, within_seconds=5)


@pytest.mark.parametrize(("code", "status"), [("00000", "succeeded"), ("99999", "failed")])
async def test_the_code_decides_and_a_webhook_tells(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver, code: str, status: str
) -> None:
    key = str(uuid4())
    answered, body = await charge(http, provider, key, asked(code))
    assert (answered, body["status"]) == (202, "pending")
    await told(receiver, 1)
    assert receiver.good[0]["type"] == f"charge.{status}"
    assert receiver.good[0]["data"]["key"] == key
    async with http.get(f"{provider.url}/charges/{key}") as found:
        assert (await found.json())["status"] == status


async def test_a_key_is_charged_once(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    key = str(uuid4())
    answers = await asyncio.gather(*(charge(http, provider, key) for _ in range(10)))
    assert len({body["charge_id"] for _, body in answers}) == 1
    assert (await charge(http, provider, key, asked(minor_units=1)))[0] == 409
    await told(receiver, 1)
    assert len(provider.charges) == len(receiver.good) == 1


async def test_a_lost_answer_is_a_charge_all_the_same(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.lose_answers = 1
    key = str(uuid4())
    with pytest.raises(aiohttp.ClientError):
        await charge(http, provider, key)
    await told(receiver, 1)
    assert (await charge(http, provider, key))[1]["status"] == "succeeded"
    assert len(provider.charges) == 1


async def test_a_voided_key_is_never_charged(http: aiohttp.ClientSession, provider: PaymentProvider) -> None:
    key = str(uuid4())
    async with http.get(f"{provider.url}/charges/{key}") as unknown:
        assert unknown.status == 404
    async with http.delete(f"{provider.url}/charges/{key}") as voided:
        assert (await voided.json())["status"] == "voided"
    assert (await charge(http, provider, key))[1]["status"] == "voided"


async def test_a_charge_is_refunded_once(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    _, made = await charge(http, provider, str(uuid4()))
    await told(receiver, 1)

    async def refund(charge_id: str) -> tuple[int, Any]:
        async with http.post(
            f"{provider.url}/refunds", json={"charge_id": charge_id}, headers={"Idempotency-Key": str(uuid4())}
        ) as answer:
            return answer.status, await answer.json()

    first, second = await refund(made["charge_id"]), await refund(made["charge_id"])
    assert first == second
    assert first[0] == 200
    assert (await refund("ch_unknown"))[0] == 404
    await told(receiver, 2)
    assert [event["type"] for event in receiver.good] == ["charge.succeeded", "refund.succeeded"]


async def test_webhooks_come_often_late_and_in_the_wrong_order(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.duplicate = 2
    provider.behaviour.now.reorder = 3
    keys = [str(uuid4()) for _ in range(3)]
    for key in keys:
        await charge(http, provider, key)
        await asyncio.sleep(0.05)
    await told(receiver, 9)
    assert [event["data"]["key"] for event in receiver.good[::3]] == keys[::-1]
    assert len(set(receiver.ids)) == 3


async def test_a_webhook_that_is_not_taken_comes_again(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    receiver.refuse = 1
    await charge(http, provider, str(uuid4()))
    await told(receiver, 1)
    assert list(provider.deliveries) == [503, 200]


@pytest.mark.parametrize("how", ["unsigned", "wrong_key", "altered_body", "stale"])
async def test_a_forged_webhook_is_one_that_verification_refuses(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver, how: Any
) -> None:
    provider.behaviour.now.forge = how
    await charge(http, provider, str(uuid4()))
    await told(receiver, 1)
    assert (receiver.forged, len(receiver.good)) == (1, 1)


async def test_switches_are_turned_over_http_and_checked(
    http: aiohttp.ClientSession, provider: PaymentProvider
) -> None:
    url = f"{provider.url}/behaviour"
    async with http.put(url, data=json.dumps({"down": True})) as turned:
        assert (await turned.json())["down"]
    assert (await charge(http, provider, str(uuid4())))[0] == 503
    wrong_ones: list[Any] = [{"colour": "red"}, {"failure_rate": 2}, []]
    for wrong in wrong_ones:
        async with http.put(url, data=json.dumps(wrong)) as refused:
            assert refused.status == 400
    async with http.delete(url) as normal:
        assert not (await normal.json())["down"]


@pytest.mark.parametrize(
    "body", [{}, asked("1234"), asked(minor_units=0), {**asked(), "card_number": "4111111111111111"}]
)
async def test_a_malformed_charge_is_refused(
    http: aiohttp.ClientSession, provider: PaymentProvider, body: dict[str, Any]
) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    async with http.post(f"{provider.url}/charges", data=json.dumps(body), headers=headers) as answer:
        assert answer.status == 400
