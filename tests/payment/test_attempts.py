"""Attempts of a payment while the provider works or fails (PAY-2, PAY-3).

The provider declines, is slow, loses responses or is down.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from deploy.mocks.payment_provider import PaymentProvider
from payment_service import verdicts
from payment_service.charging import charge_key_of
from payment_service.provider import ProviderCharge
from payment_service.settings import Attempts, PaymentSettings
from services import db
from services.db import Conn
from services.timers import set_timer
from tests.callers import Caller
from tests.conftest import World
from tests.instances import database_with
from tests.payment.conftest import STEPWISE, paying
from tests.payment.rules import FAILS, PRICE, SECRET, Payments, state_of
from tests.waiting import eventually


def switch(provider: PaymentProvider, **switches: object) -> None:
    provider.behaviour.now = provider.behaviour.now.model_copy(update=switches)


def charged(provider: PaymentProvider, intent_id: str) -> Counter[str]:
    """Counts the provider's charges for an intent by status."""
    return Counter(
        charge.status for charge in provider.charges.values() if charge.metadata.get("intent_id") == intent_id
    )


@pytest.fixture
def attempts(world: World) -> Attempts:
    """The default settings of PAY-3."""
    return world.settings_of(PaymentSettings, SKYHIGH_PAYMENT_WEBHOOK_SECRETS=SECRET).attempts


async def test_code_00000_succeeds(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    paid = await prompt.becomes(intent, "SUCCEEDED")
    assert (paid.attempts, paid.last_error) == (1, "")
    assert charged(provider, intent.intent_id) == {"succeeded": 1}
    assert provider.charges[str(charge_key_of(UUID(intent.intent_id), 1))].amount["minor_units"] == PRICE


async def test_code_99999_fails_after_three_attempts_and_is_repeatable(world: World, provider: PaymentProvider) -> None:
    async with paying(world, provider, **STEPWISE) as service:
        payer = service.callers.passenger()
        intent = await service.intent(payer)
        await service.pay(payer, intent, FAILS)
        for attempts in (1, 2):
            await service.shows(intent, attempts=attempts, last_error="DECLINED")
            await service.goes_on(intent)
        await service.shows(intent, attempts=3, last_error="DECLINED", state="FAILED")
        ((key, message),) = await service.told(intent)
        assert (key, message.error, message.attempts) == ("payment.failed.v1", "DECLINED", 3)
        assert charged(provider, intent.intent_id) == {"failed": 3}

        again = await service.pay(payer, intent)
        assert (again.attempts, again.last_error) == (0, "")
        await service.becomes(intent, "SUCCEEDED")
        assert [charge["number"] for charge in await service.charges(intent)] == [1, 2, 3, 4]
        assert [key for key, _ in await service.told(intent)] == ["payment.failed.v1", "payment.succeeded.v1"]
        assert await service.violations() == []


async def test_other_codes_succeed_within_three_attempts_or_fail(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    switch(provider, failure_rate=0.5)
    intents = [await prompt.intent(payer) for _ in range(12)]
    for intent in intents:
        await prompt.pay(payer, intent, "12345")
    for intent in intents:

        async def ended(intent_id: str = intent.intent_id) -> bool:
            state = await prompt.database.fetchval(
                "SELECT state::text FROM intents WHERE intent_id = $1", UUID(intent_id)
            )
            return state in ("SUCCEEDED", "FAILED")

        await eventually(ended)
        end = await prompt.get(intent)
        expected = Counter(failed=3) if state_of(end) == "FAILED" else Counter(failed=end.attempts - 1, succeeded=1)
        assert charged(provider, intent.intent_id) == expected
    assert await prompt.violations() == []


async def test_a_lost_response_never_charges_twice(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    switch(provider, lose_answers=1, drop_webhooks=True)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    paid = await prompt.becomes(intent, "SUCCEEDED")
    assert paid.attempts == 2
    assert charged(provider, intent.intent_id) == {"succeeded": 1}
    ((_, state, tries),) = [(row["key"], row["state"], row["tries"]) for row in await prompt.charges(intent)]
    assert (state, tries) == ("SUCCEEDED", 2)


async def test_a_slow_provider_charges_once(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    # The charge stays pending. An attempt that ends before its call times out asks for the verdict, and would find a
    # decided one.
    switch(provider, answer_delay_seconds=3600, decision_delay_seconds=3600, drop_webhooks=True)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    await prompt.shows(intent, attempts=3, last_error="TIMEOUT")
    key = str(charge_key_of(UUID(intent.intent_id), 1))
    provider.charges[key] = replace(provider.charges[key], status="succeeded")
    await prompt.goes_on(intent)
    paid = await prompt.becomes(intent, "SUCCEEDED")
    assert paid.attempts == 3
    assert charged(provider, intent.intent_id) == {"succeeded": 1}


async def test_a_payment_ends_uncharged_while_the_provider_is_down(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    switch(provider, down=True)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)

    await prompt.shows(intent, attempts=3, last_error="PROVIDER_ERROR")
    switch(provider, down=False)
    await prompt.goes_on(intent)
    # The provider does not know the key, so the key is voided. A charge that is still under way will then be refused.
    failed = await prompt.becomes(intent, "FAILED")
    assert failed.last_error == "VOIDED"
    (charge,) = await prompt.charges(intent)
    assert (charge["state"], charge["tries"]) == ("VOIDED", 3)
    assert provider.charges[str(charge["key"])].status == "voided"
    assert [key for key, _ in await prompt.told(intent)] == ["payment.failed.v1"]
    await prompt.pay(payer, intent)
    await prompt.becomes(intent, "SUCCEEDED")


async def test_a_provider_back_within_the_attempts_charges(world: World, provider: PaymentProvider) -> None:
    switch(provider, down=True)
    async with paying(world, provider, **STEPWISE) as service:
        payer = service.callers.passenger()
        intent = await service.intent(payer)
        await service.pay(payer, intent)
        await service.shows(intent, attempts=1, last_error="PROVIDER_ERROR")
        switch(provider, down=False)
        await service.goes_on(intent)
        assert (await service.becomes(intent, "SUCCEEDED")).attempts == 2
        assert charged(provider, intent.intent_id) == {"succeeded": 1}


async def test_the_verdict_of_a_lost_webhook_is_requested(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    switch(provider, drop_webhooks=True)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    assert (await prompt.becomes(intent, "SUCCEEDED")).attempts == 1
    declined = await prompt.intent(payer)
    await prompt.pay(payer, declined, FAILS)
    await prompt.becomes(declined, "FAILED")
    assert charged(provider, declined.intent_id) == {"failed": 3}


async def test_an_unknown_outcome_is_requested_until_known(world: World, provider: PaymentProvider) -> None:
    switch(provider, drop_webhooks=True, decision_delay_seconds=600)
    due_time = "SELECT due_time FROM timers WHERE name = 'reconcile' AND subject = $1"
    async with paying(world, provider) as service:
        payer = service.callers.passenger()
        intent = await service.intent(payer)
        await service.pay(payer, intent)
        await service.shows(intent, attempts=3, last_error="TIMEOUT")
        key = charge_key_of(UUID(intent.intent_id), 1)
        await service.goes_on(intent)
        # The timer is set in the transaction that ends the last attempt.
        asked_time = await service.database.fetchval(due_time, str(key))
        assert asked_time is not None

        async def asked_in_vain() -> bool:
            # The timer was set to a later time.
            next_time = await service.database.fetchval(due_time, str(key))
            assert next_time is not None, "the charge is decided, and nobody decided it"
            return bool(next_time > asked_time)

        await eventually(asked_in_vain)
        provider.charges[str(key)] = replace(provider.charges[str(key)], status="succeeded")
        await service.goes_on(intent)
        await service.becomes(intent, "SUCCEEDED")
        assert charged(provider, intent.intent_id) == {"succeeded": 1}


async def test_an_undecided_charge_is_voided(prompt: Payments, provider: PaymentProvider, payer: Caller) -> None:
    switch(provider, decision_delay_seconds=600)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    await prompt.shows(intent, attempts=3, last_error="TIMEOUT")
    await prompt.database.execute(
        "UPDATE charges SET create_time = create_time - interval '2 hours' WHERE intent_id = $1", UUID(intent.intent_id)
    )
    await prompt.goes_on(intent)
    assert (await prompt.becomes(intent, "FAILED")).last_error == "VOIDED"
    assert charged(provider, intent.intent_id) == {"voided": 1}


async def test_duplicate_reordered_and_forged_webhooks_change_nothing(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    for forge in ("unsigned", "wrong_key", "altered_body", "stale"):
        switch(provider, duplicate=5, reorder=2, forge=forge)
        intents = [await prompt.intent(payer) for _ in range(2)]
        for intent in intents:
            await prompt.pay(payer, intent)
        for intent in intents:
            await prompt.becomes(intent, "SUCCEEDED")
            assert [key for key, _ in await prompt.told(intent)] == ["payment.succeeded.v1"]
            assert charged(provider, intent.intent_id) == {"succeeded": 1}
    assert await prompt.violations() == []


async def test_a_webhook_of_another_amount_is_quarantined(
    prompt: Payments, provider: PaymentProvider, payer: Caller
) -> None:
    switch(provider, wrong_amount=True)
    intent = await prompt.intent(payer)
    await prompt.pay(payer, intent)
    await prompt.becomes(intent, "SUCCEEDED")
    key = charge_key_of(UUID(intent.intent_id), 1)

    async def reported() -> bool:
        outcome = await prompt.database.fetchval("SELECT reason FROM webhook_events WHERE charge_key = $1", key)
        return bool(outcome == "AMOUNT_DIFFERS")

    await eventually(reported)


async def test_a_response_with_another_amount_pays_nothing(world: World, provider: PaymentProvider) -> None:
    switch(provider, drop_webhooks=True, decision_delay_seconds=600)
    async with paying(world, provider, **STEPWISE) as service:
        intent = await service.begun(service.callers.passenger())
        key = str(charge_key_of(UUID(intent.intent_id), 1))

        async def arrived() -> bool:
            return key in provider.charges

        await eventually(arrived)
        asked_for = provider.charges[key].amount
        other = {**asked_for, "minor_units": asked_for["minor_units"] + 1}
        provider.charges[key] = replace(provider.charges[key], status="succeeded", amount=other)

        async def doubted() -> bool:
            # On a slow machine the attempt may have ended earlier; then the next attempt asks.
            await service.goes_on(intent)
            shown = await service.get(intent)
            return (state_of(shown), shown.last_error) == ("PROCESSING", "AMOUNT_DIFFERS")

        await eventually(doubted)
        provider.charges[key] = replace(provider.charges[key], amount=asked_for)

        async def paid() -> bool:
            await service.goes_on(intent)
            return state_of(await service.get(intent)) == "SUCCEEDED"

        await eventually(paid)


async def test_an_attempt_killed_before_commit_charges_once(
    prompt: Payments, provider: PaymentProvider, payer: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The provider decides the charge before it responds, so the response contains the verdict.
    switch(provider, decision_delay_seconds=0, answer_delay_seconds=0.1, drop_webhooks=True)
    intent = await prompt.intent(payer)
    key = charge_key_of(UUID(intent.intent_id), 1)
    real, died = verdicts.apply, list[bool]()

    async def fail_once(conn: Conn, verdict: ProviderCharge, **more: Any) -> Any:
        if verdict.key == key and not died:
            died.append(True)
            raise RuntimeError("the commit is never reached")
        return await real(conn, verdict, **more)

    monkeypatch.setattr(verdicts, "apply", fail_once)
    await prompt.pay(payer, intent)
    paid = await prompt.becomes(intent, "SUCCEEDED")
    assert died == [True]
    assert paid.attempts == 1
    assert charged(provider, intent.intent_id) == {"succeeded": 1}
    assert await prompt.history(intent) == ["REQUIRES_PAYMENT", "PROCESSING", "SUCCEEDED"]


async def test_another_process_continues_a_stopped_attempt(world: World, provider: PaymentProvider) -> None:
    url = (await database_with(world, "payment"))["SKYHIGH_PAYMENT_DATABASE_URL"]
    switch(provider, answer_delay_seconds=60, drop_webhooks=True)
    async with paying(world, provider, database_url=url) as first:
        payer = first.callers.passenger()
        intent = await first.begun(payer)

        async def arrived() -> bool:
            return bool(charged(provider, intent.intent_id))

        await eventually(arrived)
    switch(provider, answer_delay_seconds=0)
    async with paying(world, provider, database_url=url) as second:
        await second.becomes(intent, "SUCCEEDED")
        assert charged(provider, intent.intent_id) == {"succeeded": 1}
        assert await second.violations() == []


async def test_two_processes_charge_each_intent_once(world: World, provider: PaymentProvider) -> None:
    url = (await database_with(world, "payment"))["SKYHIGH_PAYMENT_DATABASE_URL"]
    switch(provider, lose_answers=5)
    async with paying(world, provider, database_url=url), paying(world, provider, database_url=url) as service:
        payer = service.callers.passenger()
        intents = [await service.intent(payer) for _ in range(25)]
        for intent in intents:
            await service.pay(payer, intent)
        for intent in intents:
            await service.becomes(intent, "SUCCEEDED")
            assert charged(provider, intent.intent_id) == {"succeeded": 1}
        assert await service.violations() == []


def test_the_pauses_equal_the_contracts(attempts: Attempts) -> None:
    assert [attempts.pause_after(n).total_seconds() for n in range(1, 7)] == [1, 1.5, 2.25, 3.375, 5, 5]
    assert (attempts.most, attempts.length.total_seconds()) == (3, 10)


async def test_timers_fire_once_and_never_early(prompt: Payments) -> None:
    # The subject is no intent's id, so nothing cancels this timer.
    subject = str(uuid4())
    async with db.transaction(prompt.pool) as conn:
        await set_timer(conn, verdicts.CHARGE, subject, after=timedelta(seconds=0.2))

    async def fired() -> bool:
        fire_time = "SELECT fire_time FROM timers WHERE subject = $1 AND tries = 1"
        return bool(await prompt.database.fetchval(fire_time, subject))

    await eventually(fired)
    assert await prompt.database.fetch("SELECT * FROM timers WHERE fire_time < due_time") == []
