"""`skyhigh mock` sets the switches of running mocks, and explains errors."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import aiosmtplib
import pytest
from structlog.testing import capture_logs
from typer.testing import CliRunner

from deploy.mocks import mail, payment_provider, weight
from deploy.mocks.mail import MailSettings, MailSink
from deploy.mocks.payment_provider import PaymentProvider, ProviderSettings
from deploy.mocks.weight import Scales, WeightSettings
from operations.__main__ import app

FREE_PORTS = {"listen": "127.0.0.1:0", "control": "127.0.0.1:0"}


@dataclass(frozen=True)
class Mocks:
    """All three mocks at the addresses where the commands look for them."""

    scales: Scales
    provider: PaymentProvider
    sink: MailSink


@pytest.fixture
async def mocks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> AsyncIterator[Mocks]:
    settings = ProviderSettings(listen="127.0.0.1:0", webhook_secret="whsec_dGVzdHMgdGVzdHMgdGVzdHMgdGVzdHM=")
    async with AsyncExitStack() as stack:
        # Keeps the log lines of the mocks out of the commands' output.
        stack.enter_context(capture_logs())
        running = Mocks(
            await stack.enter_async_context(weight.serving(WeightSettings(**FREE_PORTS))),
            await stack.enter_async_context(payment_provider.serving(settings)),
            await stack.enter_async_context(mail.serving(MailSettings(**FREE_PORTS))),
        )
        monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))
        monkeypatch.setenv("SKYHIGH_MOCK_WEIGHT_CONTROL_URL", running.scales.control_url)
        monkeypatch.setenv("SKYHIGH_MOCK_PROVIDER_URL", running.provider.url)
        monkeypatch.setenv("SKYHIGH_MOCK_MAIL_URL", running.sink.url)
        yield running


async def mock(*arguments: str, code: int = 0) -> str:
    """Runs the command; returns what it printed."""
    result = await asyncio.to_thread(CliRunner().invoke, app, ["mock", *arguments])
    assert result.exit_code == code, result.output
    return result.output


def switches(mocks: Mocks, name: str) -> dict[str, Any]:
    """Returns the switches of one mock that differ from their defaults."""
    running: dict[str, Any] = {"weight": mocks.scales, "provider": mocks.provider, "mail": mocks.sink}
    behaviour = running[name].behaviour.now
    now, normal = behaviour.model_dump(), type(behaviour)().model_dump()
    return {switch: value for switch, value in now.items() if value != normal[switch]}


@pytest.mark.parametrize(
    ("command", "turned"),
    [
        ("weight down", {"mode": "down"}),
        ("weight hang", {"mode": "hang"}),
        ("weight slow 2.5", {"slow_seconds": 2.5}),
        ("weight offset -700", {"offset_grams": -700}),
        ("provider down", {"down": True}),
        ("provider failure-rate 0.5", {"failure_rate": 0.5}),
        ("provider lose-answers 2", {"lose_answers": 2}),
        ("provider answer-late 11", {"answer_delay_seconds": 11}),
        ("provider decide-late 3", {"decision_delay_seconds": 3}),
        ("provider delay 4", {"webhook_delay_seconds": 4}),
        ("provider drop", {"drop_webhooks": True}),
        ("provider duplicate 9", {"duplicate": 9}),
        ("provider reorder 3", {"reorder": 3}),
        ("provider forge wrong_key", {"forge": "wrong_key"}),
        ("provider wrong-amount", {"wrong_amount": True}),
        ("provider set duplicate=1 forge=stale down=false", {"duplicate": 1, "forge": "stale"}),
        ("mail refuse 2", {"refuse": 2}),
        ("mail refuse all", {"refuse": True}),
    ],
)
async def test_a_command_turns_its_switch_until_all_is_normal(
    mocks: Mocks, command: str, turned: dict[str, Any]
) -> None:
    name = command.split(maxsplit=1)[0]
    printed = await mock(*command.split())
    assert switches(mocks, name) == turned
    assert all(f"{switch}={json.dumps(value)}" in printed for switch, value in turned.items())
    if name != "mail":
        assert await mock(name, "show") == printed
    await mock(name, "normal")
    assert not switches(mocks, name)


async def test_one_command_makes_all_of_them_normal(mocks: Mocks) -> None:
    await mock("weight", "down")
    await mock("provider", "down")
    await mock("mail", "refuse", "all")
    assert await mock("normal") == "normal\n"
    assert not any(switches(mocks, name) for name in ("weight", "provider", "mail"))


async def test_charges_are_listed_as_json_lines(mocks: Mocks) -> None:
    body = {"amount": {"currency": "USD", "minor_units": 9000}, "payment_code": "00000"}
    async with aiohttp.ClientSession() as http:
        await http.post(f"{mocks.provider.url}/charges", json=body, headers={"Idempotency-Key": "k"})
    (line,) = (await mock("provider", "charges")).splitlines()
    assert json.loads(line)["key"] == "k"


async def test_mails_are_listed_shown_and_forgotten(mocks: Mocks) -> None:
    host, _, port = mocks.sink.address.rpartition(":")
    for to in ("a+b@x.example", "c@x.example"):
        text = f"From: s@x.example\r\nTo: {to}\r\nSubject: Seat\r\n\r\n12A for {to}"
        async with aiosmtplib.SMTP(hostname=host, port=int(port)) as client:
            await client.sendmail("s@x.example", to, text)
    assert len((await mock("mail", "list")).splitlines()) == 2
    (line,) = (await mock("mail", "list", "--to", "a+b@x.example")).splitlines()
    shown = await mock("mail", "show", line.split()[0])
    assert shown == "From: s@x.example\nTo: a+b@x.example\nSubject: Seat\n\n12A for a+b@x.example\n"
    assert "there is no mail 7" in await mock("mail", "show", "7", code=1)
    await mock("mail", "clear")
    assert not mocks.sink.mails


@pytest.mark.parametrize("arguments", ["provider set colour=red", "provider set failure_rate=2", "weight slow 601"])
async def test_a_switch_that_the_mock_refuses_is_named(mocks: Mocks, arguments: str) -> None:
    printed = await mock(*arguments.split(), code=1)
    assert printed.startswith("skyhigh: the mock refused the request: ")
    assert len(printed.splitlines()) == 1


@pytest.mark.parametrize("arguments", ["provider set down", "provider forge nicely", "mail refuse some"])
async def test_a_wrong_argument_is_refused_before_anybody_is_asked(mocks: Mocks, arguments: str) -> None:
    await mock(*arguments.split(), code=2)


async def test_a_mock_that_is_away_is_named(mocks: Mocks, monkeypatch: pytest.MonkeyPatch) -> None:
    # No program listens on port 1; the scales' own port does not speak HTTP; the last is not a URL.
    for url in ("http://127.0.0.1:1", f"http://{mocks.scales.address}", "nowhere"):
        monkeypatch.setenv("SKYHIGH_MOCK_PROVIDER_URL", url)
        printed = await mock("provider", "show", code=1)
        assert printed.startswith("skyhigh: ")
        assert url in printed
        assert len(printed.splitlines()) == 1
