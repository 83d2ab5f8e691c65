"""The payment service's tables: authorization, states, reasons, guards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import asyncpg
import grpc
import pytest
from google.protobuf import message_factory
from skyhigh.payment.v1 import payment_service_pb2 as pb

import payment_service
from payment_service import intents
from payment_service.authorization import POLICY
from payment_service.servicer import PaymentServicer
from services.auth import Role
from tests.callers import Caller, read, refused
from tests.payment.rules import Payments

SERVICE: Final = pb.DESCRIPTOR.services_by_name["PaymentService"]
ROLES: Final = {
    "P": Role.PASSENGER,
    "C": Role.CUSTOMER,
    "A": Role.AGENT,
    "O": Role.OPERATIONS,
    "S": Role.SERVICE,
    "-": Role.ANYBODY,
}
MAY_CALL: Final = {
    "CreatePaymentIntent": "S",
    "CancelPaymentIntent": "S",
    "RefundPayment": "AS",
    "GetPaymentIntent": "PCAS",
    "SubmitPaymentCode": "PCS",
    "ReceiveWebhook": "-",
}
SOURCES: Final = sorted(Path(payment_service.__file__).parent.glob("*.py"))


def test_the_authorization_table_equals_the_contracts() -> None:
    assert set(POLICY) == set(SERVICE.methods_by_name) == set(MAY_CALL)
    assert {method: access.roles for method, access in POLICY.items()} == {
        method: frozenset(ROLES[letter] for letter in letters) for method, letters in MAY_CALL.items()
    }
    assert {method for method, access in POLICY.items() if access.owned} == {"GetPaymentIntent", "SubmitPaymentCode"}
    assert set(MAY_CALL) <= set(vars(PaymentServicer))


@pytest.mark.parametrize("letter", "PCAOS")
@pytest.mark.parametrize("method", MAY_CALL)
async def test_a_role_can_call_only_its_methods(silent: Payments, method: str, letter: str) -> None:
    callers = silent.callers
    opened: dict[str, Any] = {
        "P": callers.passenger,
        "C": callers.customer,
        "A": callers.agent,
        "O": callers.operations,
        "S": callers.service,
    }
    caller: Caller = opened[letter]()
    request = message_factory.GetMessageClass(SERVICE.methods_by_name[method].input_type)()
    with pytest.raises(grpc.aio.AioRpcError) as answer:
        await getattr(caller, method)(request)
    reached = {"-": "WEBHOOK_UNSIGNED"}.get(MAY_CALL[method], "INVALID_FIELD")
    may = letter in MAY_CALL[method] or MAY_CALL[method] == "-"
    assert read(answer.value).reason == (reached if may else "PERMISSION_DENIED")


@pytest.mark.parametrize("method", [method for method, letters in MAY_CALL.items() if letters != "-"])
async def test_calls_without_a_token_are_refused(silent: Payments, method: str) -> None:
    request = message_factory.GetMessageClass(SERVICE.methods_by_name[method].input_type)()
    with refused("UNAUTHENTICATED", "UNAUTHENTICATED"):
        await getattr(silent.callers.anybody("none"), method)(request)


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
