"""Scales that measure, fail, hang or return wrong weights.

A mail server that keeps the mails it receives.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from email.message import EmailMessage
from typing import Any

import aiohttp
import aiosmtplib
import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from skyhigh.weight.v1 import weight_service_pb2 as pb
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceStub

from deploy.mocks import mail, weight
from deploy.mocks.mail import MailSettings, MailSink
from deploy.mocks.weight import Scales, WeightSettings

FREE_PORTS = {"listen": "127.0.0.1:0", "control": "127.0.0.1:0"}


@pytest.fixture
async def scales() -> AsyncIterator[Scales]:
    async with weight.serving(WeightSettings(**FREE_PORTS)) as running:
        yield running


@pytest.fixture
async def sink() -> AsyncIterator[MailSink]:
    async with mail.serving(MailSettings(**FREE_PORTS)) as running:
        yield running


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def weigh(scales: Scales, *grams: int, within_seconds: float = 20) -> list[int]:
    async with grpc.aio.insecure_channel(scales.address) as channel:
        stub: Any = WeightServiceStub(channel)
        request = pb.WeighBagsRequest(reference="checkin/1", declared_grams=grams)
        return list((await stub.WeighBags(request, timeout=within_seconds)).measured_grams)


async def send(sink: MailSink, to: str = "b@x.example", subject: str = "Seat 12A") -> None:
    letter = EmailMessage()
    letter["From"], letter["To"], letter["Subject"] = "a@skyhigh.example", to, subject
    letter["Message-ID"] = "<1@skyhigh.example>"
    letter.set_content("Platz 12A für <b>Sie</b>")
    host, _, port = sink.address.rpartition(":")
    await aiosmtplib.send(letter, hostname=host, port=int(port))


async def test_the_scales_do_as_they_are_told(scales: Scales) -> None:
    assert await weigh(scales, 500, 31_000) == [500, 31_000]
    scales.behaviour.now.offset_grams = -600
    assert await weigh(scales, 500, 31_000) == [1, 30_400]
    scales.behaviour.now.mode = "down"
    with pytest.raises(grpc.aio.AioRpcError) as down:
        await weigh(scales, 500)
    assert down.value.code() is grpc.StatusCode.UNAVAILABLE
    scales.behaviour.now.mode = "hang"
    with pytest.raises(grpc.aio.AioRpcError) as hanging:
        await weigh(scales, 500, within_seconds=0.2)
    assert hanging.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_slow_scales_measure_right(scales: Scales) -> None:
    scales.behaviour.now.slow_seconds = 0.3
    began = time.monotonic()
    assert await weigh(scales, 500) == [500]
    assert time.monotonic() - began >= 0.3


async def test_the_scales_say_that_they_are_well(scales: Scales) -> None:
    async with grpc.aio.insecure_channel(scales.address) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        answer = await stub.Check(health_pb2.HealthCheckRequest(service=weight.SERVICE), timeout=20)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_the_scales_are_told_over_http(scales: Scales, http: aiohttp.ClientSession) -> None:
    url = f"{scales.control_url}/behaviour"
    async with http.put(url, json={"offset_grams": 250}) as turned:
        assert await turned.json() == {"mode": "normal", "slow_seconds": 0, "offset_grams": 250}
    assert await weigh(scales, 500) == [750]
    async with http.put(url, json={"mode": "broken"}) as refused:
        assert (refused.status, (await refused.json())["error"].split(":")[0]) == (400, "mode")
    async with http.delete(url):
        assert await weigh(scales, 500) == [500]


async def test_a_mail_is_taken_shown_and_forgotten(sink: MailSink, http: aiohttp.ClientSession) -> None:
    await send(sink, subject="Grüße")
    await send(sink, to="c@x.example")
    async with http.get(f"{sink.url}/mails", params={"to": "b@x.example"}) as found:
        (taken,) = await found.json()
    assert taken.pop("time")
    assert taken == {
        "id": 1,
        "message_id": "<1@skyhigh.example>",
        "from": "a@skyhigh.example",
        "to": ["b@x.example"],
        "subject": "Grüße",
        "text": "Platz 12A für <b>Sie</b>\n",
    }
    async with http.delete(f"{sink.url}/mails"), http.get(f"{sink.url}/mails") as found:
        assert await found.json() == []


async def test_the_page_escapes_all_that_mails_bring(sink: MailSink, http: aiohttp.ClientSession) -> None:
    await send(sink, to='"<script>t</script>"@x.example', subject="<script>s</script>")
    async with http.get(f"{sink.url}/") as answer:
        page = await answer.text()
    assert "<script>" not in page
    assert "<b>Sie" not in page
    assert "&lt;script&gt;s&lt;/script&gt;" in page
    assert "&lt;b&gt;Sie&lt;/b&gt;" in page


async def test_mails_are_refused_for_the_time_being(sink: MailSink, http: aiohttp.ClientSession) -> None:
    url = f"{sink.url}/behaviour"
    refusals: list[tuple[Any, int]] = [(1, 1), (True, 3)]
    for switch, refused in refusals:
        async with http.put(url, json={"refuse": switch}) as turned:
            assert (await turned.json())["refuse"] is switch
        for _ in range(refused):
            with pytest.raises(aiosmtplib.SMTPDataError) as error:
                await send(sink)
            assert error.value.code == 451
        if switch is True:
            async with http.delete(url):
                pass
        await send(sink)
    assert len(sink.mails) == 2


async def test_a_mail_is_taken_late(sink: MailSink) -> None:
    sink.behaviour.now.slow_seconds = 0.3
    began = time.monotonic()
    await send(sink)
    assert time.monotonic() - began >= 0.3
