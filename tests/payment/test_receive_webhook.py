"""ReceiveWebhook: only signed webhooks count, once, in any order (PAY-4, PAY-6)."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any, Final
from uuid import uuid4

import pytest
from google.api import httpbody_pb2
from prometheus_client import REGISTRY

from payment_service import webhooks
from tests.callers import Caller, refused
from tests.payment.rules import FOREIGN_SECRET, NEXT_SECRET, PRICE, Payments, event, signed, state_of
from tests.seat.rules import at_once, outcomes
from tests.waiting import eventually

Headers = dict[str, str]
CARD: Final = "4111111111111111"
# More than 5 min, also if a slow machine delivers the webhook 30 s after it was signed.
FUTURE_SECONDS: Final = 330


def without(name: str) -> Callable[[bytes], Headers]:
    return lambda body: {key: value for key, value in signed(body).items() if key != name}


def altered(name: str, change: Callable[[str], str]) -> Callable[[bytes], Headers]:
    def headers(body: bytes) -> Headers:
        right = signed(body)
        return {**right, name: change(right[name])}

    return headers


FORGERIES: Final[dict[str, tuple[str, str, Callable[[bytes], Headers]]]] = {
    "no headers": ("UNAUTHENTICATED", "WEBHOOK_UNSIGNED", lambda body: {}),
    "no id": ("UNAUTHENTICATED", "WEBHOOK_UNSIGNED", without("webhook-id")),
    "no timestamp": ("UNAUTHENTICATED", "WEBHOOK_UNSIGNED", without("webhook-timestamp")),
    "no signature": ("UNAUTHENTICATED", "WEBHOOK_UNSIGNED", without("webhook-signature")),
    "another key": ("UNAUTHENTICATED", "WEBHOOK_FORGED", lambda body: signed(body, secret=FOREIGN_SECRET)),
    "another body": ("UNAUTHENTICATED", "WEBHOOK_FORGED", lambda body: signed(body + b" ")),
    "another id": ("UNAUTHENTICATED", "WEBHOOK_FORGED", altered("webhook-id", lambda value: value + "0")),
    "an id with dots": ("UNAUTHENTICATED", "WEBHOOK_FORGED", lambda body: signed(body, event_id="evt.1")),
    "a newer time": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        altered("webhook-timestamp", lambda value: str(int(value) + 1)),
    ),
    "a time that is not a number": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        altered("webhook-timestamp", lambda value: "now"),
    ),
    "a time with a fraction": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        altered("webhook-timestamp", lambda value: f"{value}.5"),
    ),
    "a time out of range": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        altered("webhook-timestamp", lambda value: "99999999999"),
    ),
    "half a signature": ("UNAUTHENTICATED", "WEBHOOK_FORGED", altered("webhook-signature", lambda value: value[:-4])),
    "another version": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        altered("webhook-signature", lambda value: value.replace("v1,", "v1a,")),
    ),
    "no version": ("UNAUTHENTICATED", "WEBHOOK_FORGED", altered("webhook-signature", lambda value: value[3:])),
    "many commas": ("UNAUTHENTICATED", "WEBHOOK_FORGED", altered("webhook-signature", lambda value: "v1,,, ,v1 v1")),
    "a stale time": ("INVALID_ARGUMENT", "WEBHOOK_STALE", lambda body: signed(body, age_seconds=302)),
    "a time in the future": (
        "INVALID_ARGUMENT",
        "WEBHOOK_STALE",
        lambda body: signed(body, age_seconds=-FUTURE_SECONDS),
    ),
    "a stale forgery": (
        "UNAUTHENTICATED",
        "WEBHOOK_FORGED",
        lambda body: signed(body, age_seconds=302, secret=FOREIGN_SECRET),
    ),
}


async def stored(payments: Payments) -> int:
    count: int = await payments.database.fetchval("SELECT count(*) FROM webhook_events")
    return count


@pytest.mark.parametrize("forgery", FORGERIES)
async def test_a_forged_or_stale_delivery_changes_and_stores_nothing(
    silent: Payments, passenger: Caller, forgery: str
) -> None:
    code, reason, headers = FORGERIES[forgery]
    intent = await silent.unanswered(passenger)
    body = event(intent)
    before, count = await silent.rows(intent), await stored(silent)
    for _ in range(10):
        with refused(code, reason):
            await silent.deliver(body, headers(body))
    assert (await silent.rows(intent), await stored(silent)) == (before, count)


async def test_a_signature_is_accepted_within_five_minutes(silent: Payments, passenger: Caller) -> None:
    # Leaves 30 s for a slow machine, because the signature ages until the webhook is delivered.
    for age_seconds in (270, -295):
        body = event(await silent.unanswered(passenger))
        await silent.deliver(body, signed(body, age_seconds=age_seconds))


async def test_a_success_pays_and_publishes_an_event(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    paid = await silent.get(intent)
    assert (state_of(paid), paid.attempts, paid.last_error) == ("SUCCEEDED", 1, "")
    ((key, message),) = await silent.told(intent)
    assert (key, message.reference, message.amount) == ("payment.succeeded.v1", intent.reference, intent.amount)
    assert await silent.history(intent) == ["REQUIRES_PAYMENT", "PROCESSING", "SUCCEEDED"]
    assert await silent.database.fetchval(
        "SELECT payment_code IS NULL FROM intents WHERE intent_id::text = $1", intent.intent_id
    )


async def test_a_decline_is_shown_while_attempts_continue(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent, "charge.failed"))
    shown = await silent.get(intent)
    assert (state_of(shown), shown.attempts, shown.last_error) == ("PROCESSING", 1, "DECLINED")
    assert await silent.told(intent) == []


async def test_a_repeat_changes_nothing(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    body = event(intent)
    await silent.deliver(body, signed(body, event_id="evt_same"))
    before, count = await silent.rows(intent), await stored(silent)
    for n in range(10):
        # The provider may retry the event with a new timestamp.
        await silent.deliver(body, signed(body, event_id="evt_same", age_seconds=n))
    assert (await silent.rows(intent), await stored(silent)) == (before, count)
    assert len(await silent.told(intent)) == 1


async def test_concurrent_deliveries_of_one_event_apply_once(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    body = event(intent)
    results = await at_once(*(silent.deliver(body, signed(body, event_id="evt_race")) for _ in range(30)))
    assert outcomes(results) == {"OK": 30}
    assert len(await silent.told(intent)) == 1
    assert await silent.history(intent) == ["REQUIRES_PAYMENT", "PROCESSING", "SUCCEEDED"]


async def test_concurrent_events_of_one_charge_apply_once(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    kinds = ["charge.succeeded", "charge.failed"] * 10
    assert outcomes(await at_once(*(silent.deliver(event(intent, kind)) for kind in kinds))) == {"OK": 20}
    assert state_of(await silent.get(intent)) == "SUCCEEDED"
    assert [key for key, _ in await silent.told(intent)] == ["payment.succeeded.v1"]
    assert await silent.violations() == []


async def test_failed_after_succeeded_is_ignored(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    before = await silent.rows(intent)
    await silent.deliver(event(intent, "charge.failed"))
    assert await silent.rows(intent) == before


async def test_a_success_after_a_failure_pays(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent, "charge.failed"))
    await silent.deliver(event(intent))
    assert state_of(await silent.get(intent)) == "SUCCEEDED"


async def test_only_distinct_valid_deliveries_of_a_mix_apply(silent: Payments, passenger: Caller) -> None:
    chance = random.Random(4)
    intents = [await silent.unanswered(passenger) for _ in range(4)]
    good = []
    for n, intent in enumerate(intents):
        for kind in ("charge.failed", "charge.succeeded") if n % 2 else ("charge.succeeded", "charge.failed"):
            body = event(intent, kind)
            good.append((body, signed(body)))
    bad = [
        (body, headers(body)) for intent in intents for body in [event(intent)] for _, _, headers in FORGERIES.values()
    ]
    deliveries = [*good * 10, *bad * 2]
    chance.shuffle(deliveries)
    before = await silent.webhook_events()
    results = await at_once(*(silent.deliver(body, headers) for body, headers in deliveries))
    told = outcomes(results)
    assert told["OK"] == len(good) * 10
    assert set(told) == {"OK", "WEBHOOK_UNSIGNED", "WEBHOOK_FORGED", "WEBHOOK_STALE"}
    new = set(await silent.webhook_events()) - set(before)
    assert new == {headers["webhook-id"] for _, headers in good}
    for intent in intents:
        assert state_of(await silent.get(intent)) == "SUCCEEDED"
        assert [key for key, _ in await silent.told(intent)] == ["payment.succeeded.v1"]
    assert await silent.violations() == []


async def test_both_keys_are_accepted_during_a_rotation(silent: Payments, passenger: Caller) -> None:
    body = event(await silent.unanswered(passenger))
    await silent.deliver(body, signed(body, secret=NEXT_SECRET))
    intent = await silent.unanswered(passenger)
    body = event(intent)
    ours, foreign = signed(body, event_id="evt_both"), signed(body, event_id="evt_both", secret=FOREIGN_SECRET)
    both = f"{foreign['webhook-signature']} v1a,AAAA {ours['webhook-signature']}"
    await silent.deliver(body, {**ours, "webhook-signature": both})
    assert state_of(await silent.get(intent)) == "SUCCEEDED"


@pytest.mark.parametrize(
    ("different", "reason"),
    [
        ({"amount": {"currency": "USD", "minor_units": PRICE - 1}}, "AMOUNT_DIFFERS"),
        ({"amount": {"currency": "USD", "minor_units": PRICE * 100}}, "AMOUNT_DIFFERS"),
        ({"amount": {"currency": "EUR", "minor_units": PRICE}}, "CURRENCY_DIFFERS"),
        ({"metadata": {"intent_id": str(uuid4())}}, "INTENT_DIFFERS"),
        ({"key": str(uuid4())}, "UNKNOWN_CHARGE"),
    ],
)
@pytest.mark.parametrize("kind", ["charge.succeeded", "charge.failed", "refund.succeeded"])
async def test_a_mismatch_is_quarantined_and_reported(
    silent: Payments, passenger: Caller, capsys: pytest.CaptureFixture[str], *, kind: str, different: Any, reason: str
) -> None:
    intent = await silent.unanswered(passenger)
    before = await silent.rows(intent)
    counted = REGISTRY.get_sample_value("skyhigh_payment_quarantined_total", {"reason": reason}) or 0
    body = event(intent, kind, **different)
    headers = signed(body)
    for _ in range(3):
        await silent.deliver(body, headers)
    assert (await silent.webhook_events())[headers["webhook-id"]] == ("QUARANTINED", reason)
    assert await silent.rows(intent) == before
    assert REGISTRY.get_sample_value("skyhigh_payment_quarantined_total", {"reason": reason}) == counted + 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "verdict quarantined" in line]
    assert [(line["level"], line["reason"]) for line in lines] == [("error", reason)]


async def test_an_unrequested_refund_is_quarantined(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    await silent.deliver(event(intent))
    before = await silent.rows(intent)
    body = event(intent, "refund.succeeded")
    headers = signed(body)
    await silent.deliver(body, headers)
    assert (await silent.webhook_events())[headers["webhook-id"]] == ("QUARANTINED", "UNKNOWN_REFUND")
    assert await silent.rows(intent) == before


@pytest.mark.parametrize(
    "body",
    [
        b"{}",
        b"[]",
        b"null",
        b"true {",
        b'{"type":"charge.succeeded"}',
        b'{"type":"charge.exploded","data":{}}',
        b"[" * 20_000,
        b'{"type":"charge.succeeded","data":{"key":"x"}}',
    ],
    ids=lambda body: body[:20].decode(),
)
async def test_a_signed_body_without_an_event_is_refused(silent: Payments, body: bytes) -> None:
    count = await stored(silent)
    with refused("INVALID_ARGUMENT", "WEBHOOK_MALFORMED"):
        await silent.deliver(body)
    assert await stored(silent) == count


@pytest.mark.parametrize(
    "different",
    [
        {"amount": {"currency": "USD", "minor_units": 90.0}},
        {"amount": {"currency": "USD", "minor_units": "9000"}},
        {"amount": {"currency": "USD", "minor_units": -1}},
        {"amount": {"currency": "USD", "minor_units": 2**63}},
        {"amount": {"currency": "usd", "minor_units": PRICE}},
        {"amount": None},
        {"charge_id": ""},
        {"charge_id": "c" * 129},
        {"metadata": {"intent_id": "1"}},
        {"status": "great"},
    ],
    ids=str,
)
async def test_an_event_with_a_wrong_field_is_refused(silent: Payments, passenger: Caller, different: Any) -> None:
    intent = await silent.unanswered(passenger)
    before, count = await silent.rows(intent), await stored(silent)
    with refused("INVALID_ARGUMENT", "WEBHOOK_MALFORMED"):
        await silent.deliver(event(intent, **different))
    assert (await silent.rows(intent), await stored(silent)) == (before, count)


async def test_a_nul_character_is_malformed(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    with refused("INVALID_ARGUMENT", "WEBHOOK_MALFORMED"):
        await silent.deliver(event(intent, "charge.failed", error="a\0b"))


async def test_no_body_and_no_text_are_refused(silent: Payments) -> None:
    with refused("INVALID_ARGUMENT", "WEBHOOK_MALFORMED"):
        await silent.deliver(b"")
    headers = signed(b"{}")
    with refused("UNAUTHENTICATED", "WEBHOOK_FORGED"):
        await silent.deliver(b"\xff\xfe", headers)


@pytest.mark.parametrize("number", [CARD, "4111 1111 1111 1111", "4111-1111-1111-1111"])
async def test_a_card_number_is_refused_and_not_stored(
    silent: Payments, passenger: Caller, capsys: pytest.CaptureFixture[str], number: str
) -> None:
    intent = await silent.unanswered(passenger)
    before, count = await silent.rows(intent), await stored(silent)
    for body in (event(intent, error=number), event(intent, pan=number), json.dumps({"card": number}).encode()):
        with refused("INVALID_ARGUMENT", "CARD_DATA_REFUSED") as refusal:
            await silent.deliver(body)
        assert number[-4:] not in refusal.message
    assert (await silent.rows(intent), await stored(silent)) == (before, count)
    said = capsys.readouterr()
    assert number not in said.out + said.err


async def test_events_are_kept_for_at_least_a_week(silent: Payments, passenger: Caller) -> None:
    body = event(await silent.unanswered(passenger))
    for event_id, days in (("evt_week", 8), ("evt_old", webhooks.KEPT_DAYS + 1)):
        await silent.deliver(body, signed(body, event_id=event_id))
        await silent.database.execute(
            "UPDATE webhook_events SET receive_time = now() - make_interval(days => $2) WHERE event_id = $1",
            event_id,
            days,
        )
    await webhooks.forget_once(silent.pool)
    kept = await silent.webhook_events()
    assert "evt_week" in kept
    assert "evt_old" not in kept


async def test_a_token_is_neither_required_nor_read(silent: Payments, passenger: Caller) -> None:
    body = event(await silent.unanswered(passenger))
    await passenger.ReceiveWebhook(httpbody_pb2.HttpBody(data=body), metadata=tuple(signed(body).items()))


async def test_an_event_is_redelivered_after_a_busy_database(silent: Payments, passenger: Caller) -> None:
    intent = await silent.unanswered(passenger)
    body = event(intent)
    headers = signed(body)
    async with silent.pool.acquire() as conn, conn.transaction():
        await conn.execute("SELECT FROM intents WHERE intent_id::text = $1 FOR UPDATE", intent.intent_id)
        with refused("UNAVAILABLE", "DEPENDENCY_UNAVAILABLE"):
            await silent.deliver(body, headers)
    await silent.deliver(body, headers)

    async def paid() -> bool:
        return state_of(await silent.get(intent)) == "SUCCEEDED"

    await eventually(paid)
