"""The payment provider's contract, for which payment_service is written, and each of its faults."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import aiohttp
import pytest
from aiohttp import web
from pydantic import ValidationError
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from deploy.mocks import payment_provider
from deploy.mocks.behaviour import serving_http
from deploy.mocks.payment_provider import PaymentProvider, ProviderSettings, serving
from tests.waiting import eventually

SECRET = "whsec_" + base64.b64encode(b"tests tests tests tests tests 32").decode()
NEXT_SECRET = "whsec_" + base64.b64encode(b"after after after after after 32").decode()


@dataclass
class Receiver:
    """Receives the provider's webhooks."""

    url: str = ""
    good: list[dict[str, Any]] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    forged: int = 0
    refuse: int = 0
    secret: str = SECRET

    async def take(self, request: web.Request) -> web.Response:
        body = await request.read()
        try:
            event = Webhook(self.secret).verify(body, dict(request.headers))
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


async def refund(
    http: aiohttp.ClientSession, provider: PaymentProvider, charge_id: str, key: str = ""
) -> tuple[int, Any]:
    headers = {"Idempotency-Key": key or str(uuid4())}
    async with http.post(f"{provider.url}/refunds", json={"charge_id": charge_id}, headers=headers) as answer:
        return answer.status, await answer.json()


async def decided(provider: PaymentProvider, key: str) -> str:
    async def found() -> bool:
        return provider.charges[key].status != "pending"

    await eventually(found)
    return provider.charges[key].status


async def told(receiver: Receiver, count: int) -> None:
    async def enough() -> bool:
        return len(receiver.good) >= count

    await eventually(enough)


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


async def test_only_a_pending_charge_can_be_voided(http: aiohttp.ClientSession, provider: PaymentProvider) -> None:
    made, pending = str(uuid4()), str(uuid4())
    await charge(http, provider, made)
    assert await decided(provider, made) == "succeeded"
    provider.behaviour.now.decision_delay_seconds = 600
    await charge(http, provider, pending)
    for key, status in ((made, "succeeded"), (pending, "voided")):
        async with http.delete(f"{provider.url}/charges/{key}") as answer:
            assert (await answer.json())["status"] == status
    # The bank decides after the charge was voided.
    provider.behaviour.now.decision_delay_seconds = 0
    await provider._decide(pending, "00000")
    assert provider.charges[pending].status == "voided"


async def test_a_late_answer_does_not_delay_the_charge(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.answer_delay_seconds = 600
    answer = asyncio.create_task(charge(http, provider, str(uuid4())))
    await told(receiver, 1)
    assert not answer.done()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer


async def test_a_charge_is_refunded_once(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    _, made = await charge(http, provider, str(uuid4()))
    await told(receiver, 1)
    first, second = [await refund(http, provider, made["charge_id"]) for _ in range(2)]
    assert first == second
    assert first[0] == 200
    await told(receiver, 2)
    assert [event["type"] for event in receiver.good] == ["charge.succeeded", "refund.succeeded"]
    assert receiver.good[1]["data"]["refund_id"] == first[1]["refund_id"]


async def test_a_refund_that_cannot_be_is_refused(http: aiohttp.ClientSession, provider: PaymentProvider) -> None:
    keys = {code: str(uuid4()) for code in ("00000", "99999", "12345")}
    provider.behaviour.now.failure_rate = 0
    ids = {code: (await charge(http, provider, key, asked(code)))[1]["charge_id"] for code, key in keys.items()}
    assert [await decided(provider, key) for key in keys.values()] == ["succeeded", "failed", "succeeded"]
    assert (await refund(http, provider, "ch_unknown"))[0] == 404
    assert (await refund(http, provider, ids["99999"]))[0] == 409
    assert (await refund(http, provider, ids["00000"], "one key"))[0] == 200
    assert (await refund(http, provider, ids["12345"], "one key"))[0] == 409
    assert len(provider.refunds) == 1


async def test_the_failure_rate_decides_the_same_with_the_same_seed(http: aiohttp.ClientSession) -> None:
    async def decisions(seed: int) -> list[str]:
        settings = ProviderSettings(listen="127.0.0.1:0", webhook_secret=SECRET, failure_rate=0.5, seed=seed)
        async with serving(settings) as provider:
            provider.behaviour.now.decision_delay_seconds = 0
            provider.behaviour.now.drop_webhooks = True
            keys = [str(number) for number in range(40)]
            for key in keys:
                await charge(http, provider, key, asked("12345"))
            return [await decided(provider, key) for key in keys]

    first = await decisions(7)
    assert set(first) == {"succeeded", "failed"}
    assert await decisions(7) == first
    assert await decisions(8) != first


async def test_memory_is_bounded(
    http: aiohttp.ClientSession, provider: PaymentProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payment_provider, "KEPT_CHARGES", 2)
    for key in ("1", "2", "3"):
        _, made = await charge(http, provider, key)
        await decided(provider, key)
        await refund(http, provider, made["charge_id"])
    async with http.get(f"{provider.url}/charges") as listed:
        kept = await listed.json()
    assert [entry["key"] for entry in kept["charges"]] == ["2", "3"]
    assert [entry["charge_id"] for entry in kept["refunds"]] == [entry["charge_id"] for entry in kept["charges"]]


async def test_webhooks_come_often_and_in_the_wrong_order(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.duplicate = 2
    provider.behaviour.now.reorder = 3
    keys = [str(uuid4()) for _ in range(3)]
    for key in keys:
        await charge(http, provider, key)
        await decided(provider, key)
    await told(receiver, 9)
    assert [event["data"]["key"] for event in receiver.good[::3]] == keys[::-1]
    assert len(set(receiver.ids)) == 3


async def test_what_is_held_back_is_sent_when_all_is_normal_again(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.reorder = 3
    key = str(uuid4())
    await charge(http, provider, key)
    await decided(provider, key)
    assert not receiver.good
    async with http.delete(f"{provider.url}/behaviour"):
        await told(receiver, 1)


async def test_webhooks_are_dropped_delayed_and_tell_another_amount(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    provider.behaviour.now.drop_webhooks = True
    dropped, delayed = str(uuid4()), str(uuid4())
    await charge(http, provider, dropped)
    await decided(provider, dropped)
    provider.behaviour.now.drop_webhooks = False
    provider.behaviour.now.wrong_amount = True
    provider.behaviour.now.webhook_delay_seconds = 0.2
    began = time.monotonic()
    await charge(http, provider, delayed)
    await told(receiver, 1)
    assert time.monotonic() - began >= 0.2
    assert [event["data"]["key"] for event in receiver.good] == [delayed]
    assert receiver.good[0]["data"]["amount"] == {"currency": "USD", "minor_units": 9001}


async def test_a_webhook_that_is_not_taken_comes_again(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver
) -> None:
    receiver.refuse = 1
    await charge(http, provider, str(uuid4()))

    async def taken() -> bool:
        return list(provider.deliveries) == [503, 200]

    await eventually(taken)


async def test_a_webhook_that_is_never_taken_is_given_up(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payment_provider, "FIRST_RETRY_SECONDS", 0)
    receiver.refuse = payment_provider.DELIVERY_TRIES
    given_up, taken = str(uuid4()), str(uuid4())
    await charge(http, provider, given_up)

    async def tried() -> bool:
        return not receiver.refuse

    await eventually(tried)
    await charge(http, provider, taken)
    await told(receiver, 1)
    assert [event["data"]["key"] for event in receiver.good] == [taken]


@pytest.mark.parametrize("secret", [SECRET, NEXT_SECRET])
async def test_each_of_several_secrets_signs(http: aiohttp.ClientSession, receiver: Receiver, secret: str) -> None:
    receiver.secret = secret
    settings = ProviderSettings(
        listen="127.0.0.1:0", webhook_url=receiver.url, webhook_secret=f"{SECRET},{NEXT_SECRET}"
    )
    async with serving(settings) as provider:
        await charge(http, provider, str(uuid4()))
        await told(receiver, 1)


@pytest.mark.parametrize("secret", ["", "whsec_", "whsec_x", f"{SECRET},"])
def test_a_secret_that_cannot_sign_is_refused_at_start(secret: str) -> None:
    with pytest.raises(ValidationError, match="each secret must be"):
        ProviderSettings(webhook_secret=secret)


@pytest.mark.parametrize("how", ["unsigned", "wrong_key", "altered_body", "stale"])
async def test_a_forged_webhook_is_one_that_verification_refuses(
    http: aiohttp.ClientSession, provider: PaymentProvider, receiver: Receiver, how: Any
) -> None:
    provider.behaviour.now.forge = how
    provider.behaviour.now.duplicate = 1
    _, made = await charge(http, provider, str(uuid4()))
    await told(receiver, 2)
    await refund(http, provider, made["charge_id"])
    await told(receiver, 4)
    assert (receiver.forged, len(receiver.good), len(set(receiver.ids))) == (2, 4, 2)


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
    ("body", "field"),
    [
        ({}, "amount"),
        (asked("1234"), "payment_code"),
        (asked(minor_units=0), "amount.minor_units"),
        ({**asked(), "amount": {"currency": "USD", "minor_units": "9000"}}, "amount.minor_units"),
        ({**asked(), "card_number": "4111111111111111"}, "card_number"),
    ],
)
async def test_a_malformed_charge_is_refused_by_name(
    http: aiohttp.ClientSession, provider: PaymentProvider, body: dict[str, Any], field: str
) -> None:
    headers = {"Idempotency-Key": str(uuid4())}
    async with http.post(f"{provider.url}/charges", data=json.dumps(body), headers=headers) as answer:
        assert answer.status == 400
        assert f"{field}: " in (await answer.json())["error"]
    assert not provider.charges


async def test_a_charge_without_a_key_is_refused(http: aiohttp.ClientSession, provider: PaymentProvider) -> None:
    assert (await charge(http, provider, ""))[0] == 400
