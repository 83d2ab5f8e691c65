"""Mails to passengers.

A mail is an event that a service sends to itself. It is written in the transaction of the change that it reports,
retried with growing delay, and finally dead-lettered, where an operator can inspect and replay it (decision 16).
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
    """The recipient's address cannot be used."""


class MailSettings(ServiceSettings):
    """Additional settings of a service that sends mails."""

    smtp_address: str = Field(default="127.0.0.1:50063", validation_alias="SKYHIGH_SMTP_ADDRESS")
    """`host:port` of the mail server."""
    mail_from: str = Field(default="SkyHigh <noreply@skyhigh.example>", validation_alias="SKYHIGH_MAIL_FROM")


def mail(service: str, *, to: str, subject: str, text: str) -> Event:
    """Returns the event that sends a mail.

    Enqueue it in the transaction of the change that the mail reports.
    """
    mail_id = uuid4()
    return Event(mail_id, f"{service}.mail.v1", mail_pb2.Mail(mail_id=str(mail_id), to=to, subject=subject, text=text))


def recipient(address: str) -> str:
    """Returns the address if a `To` header with it names exactly this recipient.

    Raises MailRefused otherwise. A header decodes RFC 2047 words, comments and quotes, so that its text may name
    another recipient than it shows. The contracts refuse such addresses; this check is for addresses that were stored
    before.
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
    """Sends a service's mails at least once; a repeated mail has the same Message-ID."""

    def __init__(self, settings: MailSettings) -> None:
        self._server = Endpoint.parse(settings.smtp_address)
        self._from = settings.mail_from

    def subscription(self, service: str) -> Subscription:
        """Returns the subscription that sends the mails of a service."""
        return Subscription(f"{service}.mail.v1", mail_pb2.Mail, self._send)

    async def _send(self, conn: Conn, message: mail_pb2.Mail) -> None:
        """Sends one mail.

        Raises MailRefused for a bad recipient, and the errors of aiosmtplib if the mail server is down or refuses the
        mail.
        """
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
