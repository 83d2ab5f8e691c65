"""Scales that measure, fail, hang and err; a mail server that keeps what it takes."""

from __future__ import annotations

from email.message import EmailMessage
from typing import Any

import aiohttp
import aiosmtplib
import grpc
import pytest
from skyhigh.weight.v1 import weight_service_pb2 as pb
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceStub

from deploy.mocks import mail, weight
from deploy.mocks.mail import MailSettings
from deploy.mocks.weight import WeightSettings

FREE_PORTS = {"listen": "127.0.0.1:0", "control": "127.0.0.1:0"}


async def test_the_scales_do_as_they_are_told() -> None:
    async with (
        weight.serving(WeightSettings(**FREE_PORTS)) as scales,
        grpc.aio.insecure_channel(scales.address) as channel,
    ):
        stub: Any = WeightServiceStub(channel)

        async def weigh(within_seconds: float = 5) -> list[int]:
            request = pb.WeighBagsRequest(reference="checkin/1", declared_grams=[500, 31_000])
            return list((await stub.WeighBags(request, timeout=within_seconds)).measured_grams)

        assert await weigh() == [500, 31_000]
        scales.behaviour.now.offset_grams = -600
        assert await weigh() == [1, 30_400]
        scales.behaviour.now.mode = "down"
        with pytest.raises(grpc.aio.AioRpcError) as down:
            await weigh()
        assert down.value.code() is grpc.StatusCode.UNAVAILABLE
        scales.behaviour.now.mode = "hang"
        with pytest.raises(grpc.aio.AioRpcError) as hanging:
            await weigh(within_seconds=0.2)
        assert hanging.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_a_mail_is_taken_shown_and_escaped() -> None:
    async with mail.serving(MailSettings(**FREE_PORTS)) as sink, aiohttp.ClientSession() as http:
        host, _, port = sink.address.rpartition(":")
        letter = EmailMessage()
        letter["From"], letter["To"], letter["Subject"] = "a@skyhigh.example", "b@x.example", "<script>Grüße"
        letter["Message-ID"] = "<1@skyhigh.example>"
        letter.set_content("Platz 12A")
        sink.behaviour.now.refuse = 1
        with pytest.raises(aiosmtplib.SMTPException):
            await aiosmtplib.send(letter, hostname=host, port=int(port))
        await aiosmtplib.send(letter, hostname=host, port=int(port))
        async with http.get(f"{sink.url}/mails", params={"to": "b@x.example"}) as found:
            (taken,) = await found.json()
        assert (taken["subject"], taken["text"].strip()) == ("<script>Grüße", "Platz 12A")
        assert taken["message_id"] == "<1@skyhigh.example>"
        async with http.get(f"{sink.url}/") as page:
            assert "<script>" not in await page.text()
        async with http.delete(f"{sink.url}/mails"):
            assert not sink.mails
