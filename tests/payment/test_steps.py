"""Steps of timers that run early, late or twice change nothing.

Invalid settings end the start of the service.
"""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from deploy.mocks.payment_provider import PaymentProvider
from payment_service import intents
from payment_service.charging import Charging, charge_key_of
from payment_service.provider import Provider
from payment_service.refunds import Refunding
from payment_service.settings import PaymentSettings
from services import db
from services.settings import load
from tests.callers import Caller
from tests.conftest import World
from tests.payment.rules import NEXT_SECRET, SECRET, Payments, event, state_of
from tests.seat.rules import at_once


def settings(world: World, secrets: str = SECRET) -> PaymentSettings:
    return world.settings_of(PaymentSettings, SKYHIGH_PAYMENT_WEBHOOK_SECRETS=secrets)


async def test_a_step_of_a_decided_intent_does_nothing(
    world: World, silent: Payments, provider: PaymentProvider
) -> None:
    intent = await silent.unanswered(silent.callers.passenger())
    await silent.deliver(event(intent))
    await silent.refund(intent)
    await silent.deliver(event(intent, "refund.succeeded"))
    before, told = await silent.rows(intent), []
    client = Provider(provider.url, timeout_seconds=20)
    charging = Charging(silent.pool, client, settings(world).attempts, tell=lambda: told.append(True))
    refunding = Refunding(silent.pool, client, tell=lambda: told.append(True))
    key = str(charge_key_of(UUID(intent.intent_id), 1))
    for subject in (key, str(uuid4())):
        await charging.reconcile(subject)
        await refunding.refund(subject)
    for subject in (intent.intent_id, str(uuid4())):
        await charging.charge(subject)
    await client.close()
    assert (await silent.rows(intent), told) == (before, [])


async def test_a_step_during_an_attempt_waits_for_its_end(
    world: World, silent: Payments, provider: PaymentProvider
) -> None:
    intent = await silent.unanswered(silent.callers.passenger())
    await silent.database.execute(
        "UPDATE intents SET attempt_end = now() + interval '1 hour' WHERE intent_id = $1 AND state = 'PROCESSING'",
        UUID(intent.intent_id),
    )
    client = Provider(provider.url, timeout_seconds=20)
    charging = Charging(silent.pool, client, settings(world).attempts, tell=lambda: None)
    await at_once(*(charging.charge(intent.intent_id) for _ in range(5)))
    await client.close()
    left = await silent.database.fetchval(
        "SELECT due_time - now() FROM timers WHERE name = 'charge' AND subject = $1", intent.intent_id
    )
    assert timedelta(minutes=59) < left < timedelta(minutes=61)
    assert (await silent.get(intent)).attempts == 1
    assert not [charge for charge in provider.charges.values() if charge.metadata == {"intent_id": intent.intent_id}]


async def test_concurrent_steps_begin_one_attempt(
    world: World, silent: Payments, passenger: Caller, provider: PaymentProvider
) -> None:
    intent = await silent.unanswered(passenger)
    client = Provider(provider.url, timeout_seconds=20)
    charging = Charging(silent.pool, client, settings(world).attempts, tell=lambda: None)
    await at_once(*(charging.charge(intent.intent_id) for _ in range(8)))
    await client.close()
    assert (await silent.get(intent)).attempts == 2
    made = [charge for charge in provider.charges.values() if charge.metadata == {"intent_id": intent.intent_id}]
    assert len(made) == 1
    assert state_of(await silent.get(intent)) == "PROCESSING"


async def test_a_late_failure_ends_no_other_attempt(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    intent_id = UUID(intent.intent_id)
    async with db.transaction(silent.pool) as conn:
        second = await intents.begin_attempt(conn, intent_id, length=timedelta(hours=1))
    assert second is not None
    before = await silent.rows(intent)
    first_end = second["attempt_end"] - timedelta(hours=1)
    async with db.transaction(silent.pool) as conn:
        assert await intents.end_attempt(conn, intent_id, attempt_end=first_end, error="TIMEOUT") is None
    assert await silent.rows(intent) == before


def test_several_secrets_are_accepted(world: World) -> None:
    assert settings(world, f"{SECRET}, {NEXT_SECRET},").webhook_secrets == (SECRET, NEXT_SECRET)


@pytest.mark.parametrize("secret", ["", " , ", "secret", "whsec_c2hvcnQ=", SECRET.removeprefix("whsec_"), "whsec_a"])
def test_a_weak_secret_fails_the_start_without_being_shown(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], secret: str
) -> None:
    for name, value in world.environment(SKYHIGH_PAYMENT_WEBHOOK_SECRETS=secret).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as ended:
        load(PaymentSettings)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("SKYHIGH_PAYMENT_WEBHOOK_SECRETS: ")
    assert not secret.strip(" ,") or secret not in said
