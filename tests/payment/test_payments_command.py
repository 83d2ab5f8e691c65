"""`skyhigh payments` shows an intent, quarantined webhooks and unknown outcomes."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import pytest
import typer
from typer.testing import CliRunner

from deploy.mocks.payment_provider import PaymentProvider
from operations.commands import payments
from tests.callers import Caller
from tests.conftest import World
from tests.payment.conftest import paying
from tests.payment.rules import SUCCEEDS, Payments, event, signed


@pytest.fixture(autouse=True)
def stack(silent: Payments, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the command read the silent service's database."""
    monkeypatch.setenv("SKYHIGH_DATABASE_URL", silent.database_url)


async def skyhigh(*arguments: str, code: int = 0) -> str:
    """Runs the command; returns its output."""
    app = typer.Typer()
    payments.register(app)
    result = await asyncio.to_thread(CliRunner().invoke, app, ["payments", *arguments])
    assert result.exit_code == code, result.output
    return result.output


async def test_show_prints_the_history_without_the_code(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    told = await skyhigh("show", intent.intent_id)
    assert intent.reference in told
    assert "PROVIDER_UNAVAILABLE" in told
    assert SUCCEEDS not in told.split()
    assert [word for word in ("history", "charges", "timers") if f"\n{word}\n" not in told] == []
    await silent.deliver(event(intent))
    await silent.refund(intent)
    told = await skyhigh("show", intent.intent_id)
    assert [word for word in ("history", "charges", "refunds", "webhooks", "timers") if f"\n{word}\n" not in told] == []


async def test_unsettled_lists_payments_and_refunds_until_they_are_settled(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    told = await skyhigh("unsettled")
    assert [line.split()[0] for line in told.splitlines() if intent.intent_id in line] == ["payment"]
    await silent.deliver(event(intent))
    assert intent.intent_id not in await skyhigh("unsettled")
    await silent.refund(intent)
    told = await skyhigh("unsettled")
    assert [line.split()[0] for line in told.splitlines() if intent.intent_id in line] == ["refund"]
    await silent.deliver(event(intent, "refund.succeeded"))
    assert intent.intent_id not in await skyhigh("unsettled")


async def test_quarantine_prints_what_is_wrong(silent: Payments, passenger: Caller) -> None:
    body = event(await silent.unanswered(passenger), amount={"currency": "USD", "minor_units": 1})
    headers = signed(body)
    await silent.deliver(body, headers)
    told = await skyhigh("quarantine")
    (line,) = [line for line in told.splitlines() if headers["webhook-id"] in line]
    assert "AMOUNT_DIFFERS" in line


async def test_an_unknown_intent_ends_with_a_clear_message(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a UUID" in await skyhigh("show", "1", code=1)
    assert "there is no intent" in await skyhigh("show", str(uuid4()), code=1)
    monkeypatch.setenv("SKYHIGH_DATABASE_URL", "postgresql://127.0.0.1:1/none")
    assert "the database is unreachable" in await skyhigh("unsettled", code=1)


async def test_an_empty_list_is_reported(
    world: World, provider: PaymentProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with paying(world, provider) as service:
        monkeypatch.setenv("SKYHIGH_DATABASE_URL", service.database_url)
        intent = await service.intent(payer := service.callers.passenger())
        await service.pay(payer, intent)
        await service.becomes(intent, "SUCCEEDED")
        assert "No payment or refund is unsettled." in await skyhigh("unsettled")
