"""The payment service's tables: states, guards, history."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from skyhigh.payment.v1 import payment_service_pb2 as pb

import payment_service
from payment_service import intents
from tests.callers import Caller
from tests.payment.rules import Payments

SOURCES: Final = sorted(Path(payment_service.__file__).parent.glob("*.py"))


async def test_sql_and_contract_have_the_same_states(silent: Payments) -> None:
    labels = await silent.database.fetch(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = 'intent_state'::regtype ORDER BY enumsortorder"
    )
    assert [row["enumlabel"] for row in labels] == [
        value.name for value in pb.PaymentIntent.State.DESCRIPTOR.values if value.number
    ], "extend both, by a migration and in the proto"


def test_every_update_of_a_state_has_a_guard() -> None:
    updates = 0
    for source in SOURCES:
        for table, statement in re.findall(
            r"UPDATE (intents|charges|refunds)\b(.*?)(?:RETURNING|\"\"\")", source.read_text(), re.DOTALL
        ):
            updates += 1
            where = statement.partition("WHERE")[2]
            assert re.search(r"\bstate (=|IN)", where), f"{source.name}: UPDATE {table} without its from-states"
    assert updates >= 12


async def test_the_history_is_append_only(silent: Payments, passenger: Caller) -> None:
    await silent.intent(passenger)
    for statement in ("UPDATE intent_events SET reason = 'x'", "DELETE FROM intent_events"):
        with pytest.raises(asyncpg.RaiseError, match="append-only"):
            await silent.database.execute(statement)


def test_the_query_reads_every_shown_column() -> None:
    needed = re.findall(r"row\[\"(\w+)\"\]", Path(intents.__file__).read_text())
    columns = set(re.findall(r"\w+", intents.COLUMNS))
    assert set(needed) <= columns
