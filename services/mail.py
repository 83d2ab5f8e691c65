"""Mails to passengers. A mail is an event that a service sends to itself: written in the transaction of what it tells,
retried with growing delay, and at last a dead letter that can be looked at and replayed.
"""

from __future__ import annotations

from email.message import EmailMessage
from email.utils import formatdate
from typing import Final
from uuid import uuid4

import aiosmtplib
from pydantic import Field
from skyhigh.mail.v1 import mail_pb2

from services.db import Conn
from services.endpoints import Endpoint
from services.inbox import Subscription
from services.outbox import Event
from services.settings import ServiceSettings

SMTP_TIMEOUT_SECONDS: Final = 5


class MailRefused(Exception):
    """The mail server did not take a mail, or could not be reached."""


class MailSettings(ServiceSettings):
    """What a service that sends mails reads besides."""

    smtp_address: str = Field(default="127.0.0.1:50063", validation_alias="SKYHIGH_SMTP_ADDRESS")
    """`host:port` of the mail server."""
    mail_from: str = Field(default="SkyHigh <noreply@skyhigh.example>", validation_alias="SKYHIGH_MAIL_FROM")


def mail(service: str, *, to: str, subject: str, text: str) -> Event:
    """Returns the event that has a mail sent; enqueue it in the transaction of what it tells."""
    mail_id = uuid4()
    return Event(mail_id, f"{service}.mail.v1", mail_pb2.Mail(mail_id=str(mail_id), to=to, subject=subject, text=text))


def recipient(address: str) -> str:
    """Returns the address if a mail header with it names this one recipient. Raises MailRefused.

    A header decodes RFC 2047 words, comments and quotes, so that its text may name another recipient than it shows. The
    contracts refuse such addresses; this check is for addresses that were stored before.
    """
    header = EmailMessage()
    try:
        header["To"] = address
    except ValueError as error:
        raise MailRefused(f"{address!r} is no address") from error
    read = [each.addr_spec for each in header["To"].addresses]
    if read != [address] or header["To"].defects:
        raise MailRefused(f"{address!r} is not one plain address")
    return address


class Postman:
    """Sends a service's mails. At least once: a mail sent again has the same Message-ID."""

    def __init__(self, settings: MailSettings) -> None:
        self._server = Endpoint.parse(settings.smtp_address)
        self._from = settings.mail_from

    def subscription(self, service: str) -> Subscription:
        """Returns what to consume."""
        return Subscription(f"{service}.mail.v1", mail_pb2.Mail, self._send)

    async def _send(self, conn: Conn, message: mail_pb2.Mail) -> None:
        """Raises MailRefused."""
        to = recipient(message.to)
        letter = EmailMessage()
        letter["From"] = self._from
        letter["To"] = to
        letter["Subject"] = message.subject
        letter["Date"] = formatdate()
        letter["Message-ID"] = f"<{message.mail_id}@skyhigh.example>"
        letter.set_content(message.text)
        await aiosmtplib.send(
            letter,
            recipients=[to],
            hostname=self._server.host,
            port=self._server.port,
            timeout=SMTP_TIMEOUT_SECONDS,
            start_tls=False,
        )
