"""Mail: an address has one rule, and a mail goes to that address only."""

from __future__ import annotations

from typing import Any, cast

import aiosmtplib
import pytest
from google.protobuf.message import Message
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.mail.v1 import mail_pb2

from services.db import Conn
from services.errors import InvalidArgument
from services.mail import MailRefused, MailSettings, Postman, recipient
from services.validation import validate

PLAIN = ["jan@example.org", "o'brien+sky/high@mail.example.org", "a=b?c@example.org", "a`b{c}@example.org"]
AMBIGUOUS = [
    "=?utf-8?q?victim=40evil.example=3e=20?=jan@example.org",
    "=?utf-8?b?dmljdGlt?=@example.org",
    "a..b@example.org",
    ".a@example.org",
    "a.@example.org",
    "(comment)a@example.org",
    '"a"@example.org',
    "a@example.org,b@example.org",
    "a@example.org;b@example.org",
    "Jan <a@example.org>",
    "friends:a@example.org",
    " a@example.org",
    "a@example.org\n",
    "a@example.org\r\nBcc: b@example.org",
]


def is_taken(request: Message) -> bool:
    try:
        validate(request)
    except InvalidArgument as refusal:
        return "contact_email" not in {violation.field for violation in refusal.fields}
    return True


@pytest.mark.parametrize("kind", [booking.CreateBookingRequest, checkin.ManifestPassenger])
@pytest.mark.parametrize("address", PLAIN + AMBIGUOUS)
def test_every_contract_accepts_plain_addresses_only(kind: type[Message], address: str) -> None:
    assert is_taken(kind(contact_email=address)) == (address in PLAIN)


@pytest.mark.parametrize("address", PLAIN)
def test_a_plain_address_is_its_own_recipient(address: str) -> None:
    assert recipient(address) == address


@pytest.mark.parametrize("address", AMBIGUOUS)
def test_a_stored_ambiguous_address_gets_no_mail(address: str) -> None:
    with pytest.raises(MailRefused):
        recipient(address)


async def test_the_envelope_has_the_validated_recipient(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[dict[str, Any]] = []

    async def send(letter: object, **more: Any) -> None:
        sent.append(more)

    monkeypatch.setattr(aiosmtplib, "send", send)
    postman = Postman(MailSettings.model_construct(smtp_address="127.0.0.1:1", mail_from="a@b.c"))
    (handle,) = [postman.subscription("booking").handle]
    await handle(cast("Conn", None), mail_pb2.Mail(mail_id="1", to=PLAIN[0], subject="s", text="t"))
    assert [each["recipients"] for each in sent] == [[PLAIN[0]]]
    with pytest.raises(MailRefused):
        await handle(cast("Conn", None), mail_pb2.Mail(mail_id="2", to=AMBIGUOUS[0], subject="s", text="t"))
    assert len(sent) == 1
