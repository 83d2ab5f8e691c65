"""Constraints of the schema refuse rows that must not exist.

The enums are those of the contract.
"""

from __future__ import annotations

import asyncpg
import pytest
from google.protobuf.descriptor import EnumDescriptor
from skyhigh.checkin.v1 import checkin_service_pb2 as pb

from tests.checkin.airport import Airport
from tests.instances import Database


@pytest.mark.parametrize(
    ("sql", "proto"),
    [
        ("check_in_state", pb.CheckIn.State.DESCRIPTOR),
        ("passenger_type", pb.PassengerType.DESCRIPTOR),
        ("cabin", pb.Cabin.DESCRIPTOR),
    ],
)
async def test_sql_and_contract_have_the_same_enum_values(
    checkin_database: Database, sql: str, proto: EnumDescriptor
) -> None:
    labels = await checkin_database.fetch(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = $1::regtype ORDER BY enumsortorder", sql
    )
    assert [row["enumlabel"] for row in labels] == [value.name for value in proto.values if value.number]


@pytest.mark.parametrize(
    ("change", "constraint"),
    [
        ("state = 'COMPLETED'", "state_has_what_it_needs"),
        ("state = 'COMPLETED', complete_time = now(), sequence_number = 1", "state_has_what_it_needs"),
        ("fee_pay_time = now(), state = 'COMPLETED', complete_time = now(), sequence_number = 1, seat_number = NULL, "
         "hold_id = NULL", "state_has_what_it_needs"),
        ("state = 'INITIATED'", "state_has_what_it_needs"),
        ("state = 'BAGGAGE_VALIDATED'", "state_has_what_it_needs"),
        ("state = 'CANCELLED'", "state_has_what_it_needs"),
        ("state = 'CANCELLED', cancel_time = now()", "cancellation_has_its_reason"),
        ("cancel_time = now(), cancel_reason = 'ILL'", "state_has_what_it_needs"),
        ("payment_intent_id = NULL", "fee_has_its_intent"),
        ("payment_deadline = NULL", "fee_has_its_intent"),
        ("fee_cents = 0", "fee_has_its_intent"),
        ("fee_currency = ''", "fee_has_its_intent"),
        ("hold_id = NULL", "seat_belongs_to_a_hold"),
        ("seat_number = 'INF'", "seat_belongs_to_a_hold"),
        ("complete_time = now()", "sequence_number_comes_with_completion"),
    ],
)  # fmt: skip
async def test_a_row_cannot_be_inconsistent(
    airport: Airport, checkin_database: Database, change: str, constraint: str
) -> None:
    traveller = await airport.traveller()
    await traveller.waiting()
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await checkin_database.execute(f"UPDATE check_ins SET {change} WHERE checkin_id = $1", traveller.checkin_id)
    assert refusal.value.constraint_name == constraint


async def test_a_sequence_number_is_unique_per_flight(airport: Airport, checkin_database: Database) -> None:
    first, second = await airport.travellers("P1", "P2")
    await first.completed()
    await second.completed()
    with pytest.raises(asyncpg.UniqueViolationError):
        await checkin_database.execute(
            "UPDATE check_ins SET sequence_number = 1 WHERE checkin_id = $1", second.checkin_id
        )


@pytest.mark.parametrize("statement", ["UPDATE check_in_events SET actor = 'nobody'", "DELETE FROM check_in_events"])
async def test_the_history_is_append_only(airport: Airport, checkin_database: Database, statement: str) -> None:
    await (await airport.traveller()).start()
    with pytest.raises(asyncpg.RaiseError, match="append-only"):
        await checkin_database.execute(statement)


@pytest.mark.parametrize(
    ("before", "after"),
    [(None, "COMPLETED"), ("INITIATED", "COMPLETED"), ("CANCELLED", "CANCELLED"), ("COMPLETED", "INITIATED"),
     ("BAGGAGE_VALIDATED", "WAITING_FOR_PAYMENT"), (None, "CANCELLED")],
)  # fmt: skip
async def test_an_illegal_transition_cannot_be_written(
    airport: Airport, checkin_database: Database, before: str | None, after: str
) -> None:
    traveller = await airport.traveller()
    await traveller.start()
    with pytest.raises(asyncpg.CheckViolationError) as refusal:
        await checkin_database.execute(
            """
            INSERT INTO check_in_events (checkin_id, version, from_state, to_state, actor, reason)
            VALUES ($1, 9, $2::text::check_in_state, $3::text::check_in_state, 'nobody', 'NONE')
            """,
            traveller.checkin_id,
            before,
            after,
        )
    assert refusal.value.constraint_name == "legal_transition"
