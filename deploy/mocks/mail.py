"""`python -m deploy.mocks.mail`: a mail server that delivers no mail.

It shows the mails that it accepted over HTTP, as JSON and as a page.
"""

from __future__ import annotations

import asyncio
import html
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email import message_from_bytes, policy
from typing import Annotated, Any, Final, cast

from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from deploy.mocks.behaviour import Behaviour, run_until_told, serving_http
from services import telemetry
from services.binding import bound
from services.endpoints import Endpoint
from services.settings import load

KEPT_MAILS: Final = 1000

_log = telemetry.log("mail")


class MailSettings(BaseSettings):
    """The addresses of the SMTP server and of the HTTP server."""

    model_config = SettingsConfigDict(env_prefix="SKYHIGH_MOCK_MAIL_", extra="ignore", frozen=True)

    listen: str = "127.0.0.1:50063"
    control: str = "127.0.0.1:50064"


class MailBehaviour(BaseModel, extra="forbid"):
    """The switches of the mail server."""

    refuse: bool | Annotated[int, Field(ge=0)] = 0
    """How many of the next mails are refused with 451 (try again later); True refuses all."""
    slow_seconds: float = Field(default=0, ge=0, le=600)


@dataclass(frozen=True, slots=True)
class Mail:
    """A mail that the server accepted."""

    id: int
    time: str
    message_id: str
    sender: str
    to: list[str]
    subject: str
    text: str

    def shown(self) -> dict[str, Any]:
        """Returns the mail as a JSON object."""
        return {
            "id": self.id,
            "time": self.time,
            "message_id": self.message_id,
            "from": self.sender,
            "to": self.to,
            "subject": self.subject,
            "text": self.text,
        }


class MailSink:
    """A running mail server."""

    def __init__(self) -> None:
        self.behaviour = Behaviour(MailBehaviour())
        self.mails: deque[Mail] = deque(maxlen=KEPT_MAILS)
        self.address = ""
        self.url = ""
        self._taken = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Envelope) -> str:
        """Accepts or refuses a mail; aiosmtpd calls this after DATA."""
        now = self.behaviour.now
        if now.refuse and now.refuse is not True:
            self.behaviour.now = now.model_copy(update={"refuse": now.refuse - 1})
        await asyncio.sleep(now.slow_seconds)
        if now.refuse:
            return "451 try again later"
        message = message_from_bytes(cast("bytes", envelope.content), policy=policy.default)
        body = message.get_body(("plain",))
        self._taken += 1
        self.mails.append(
            Mail(
                id=self._taken,
                time=datetime.now(UTC).isoformat(timespec="milliseconds"),
                message_id=str(message.get("Message-ID", "")),
                sender=str(message.get("From", "")),
                to=[str(address) for address in envelope.rcpt_tos],
                subject=str(message.get("Subject", "")),
                text=body.get_content().replace("\r\n", "\n") if body is not None else "",
            )
        )
        return "250 taken"

    def routes(self) -> list[web.RouteDef]:
        """Returns the HTTP routes of the mails and the switches."""
        return [
            web.get("/", self._page),
            web.get("/mails", self._list),
            web.delete("/mails", self._forget),
            *self.behaviour.routes(),
        ]

    async def _list(self, request: web.Request) -> web.Response:
        wanted = request.query.get("to")
        return web.json_response([mail.shown() for mail in self.mails if wanted is None or wanted in mail.to])

    async def _forget(self, request: web.Request) -> web.Response:
        self.mails.clear()
        return web.json_response([])

    async def _page(self, request: web.Request) -> web.Response:
        rows = "".join(
            f"<details><summary>{html.escape(mail.time)} · {html.escape(', '.join(mail.to))} · "
            f"<b>{html.escape(mail.subject)}</b></summary><p>From {html.escape(mail.sender)}</p>"
            f"<pre>{html.escape(mail.text)}</pre></details>"
            for mail in reversed(self.mails)
        )
        page = f"<!doctype html><meta charset=utf-8><title>Mails</title><h1>{len(self.mails)} mails</h1>{rows}"
        return web.Response(text=page, content_type="text/html")


@asynccontextmanager
async def serving(settings: MailSettings) -> AsyncIterator[MailSink]:
    """Runs the mail server during the block."""
    sink = MailSink()
    endpoint = Endpoint.parse(settings.listen)
    loop = asyncio.get_running_loop()

    def session() -> SMTP:
        # Without a host name, aiosmtpd looks one up by DNS, which takes time.
        return SMTP(sink, hostname="localhost", enable_SMTPUTF8=True, data_size_limit=1 << 20)

    server = await bound(lambda: loop.create_server(session, endpoint.host, endpoint.port), settings.listen)
    # Closed without a wait for open connections, because clients may keep them.
    with closing(server):
        sink.address = str(replace(endpoint, port=server.sockets[0].getsockname()[1]))
        async with serving_http(settings.control, sink.routes()) as sink.url:
            _log.info("serving", address=sink.address, url=sink.url)
            yield sink


if __name__ == "__main__":
    telemetry.configure_logging("mock-mail", "info")
    run_until_told(serving(load(MailSettings)))
