"""Conventions are tests: what a reviewer would otherwise have to remember (DESIGN section 5)."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import asyncpg
import pytest
from google.protobuf.descriptor import EnumDescriptor
from skyhigh.seat.v1 import seat_service_pb2 as pb
from skyhigh.seat.v1.error_reason_pb2 import ErrorReason

from seat_service.servicer import SeatServicer
from services import errors, migrate
from tests.conftest import World

ROOT: Final = Path(__file__).resolve().parents[2]
REFUSALS: Final = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"cls", "__init__"}


def sources(package: str) -> Iterator[tuple[Path, ast.Module]]:
    """The parsed modules of a package."""
    for path in sorted((ROOT / package).glob("*.py")):
        yield path, ast.parse(path.read_text())


def names(enum: EnumDescriptor) -> list[str]:
    """The values of a proto enum without its zero."""
    return [value.name for value in enum.values if value.number]


@pytest.mark.parametrize(
    ("sql", "proto"),
    [
        ("seat_state", pb.Seat.State.DESCRIPTOR),
        ("hold_state", pb.Hold.State.DESCRIPTOR),
        ("hold_purpose", pb.Hold.Purpose.DESCRIPTOR),
    ],
)
async def test_an_enum_is_the_same_in_sql_and_in_the_contract(
    database: asyncpg.Connection[asyncpg.Record], sql: str, proto: EnumDescriptor
) -> None:
    labels = await database.fetch(
        "SELECT enumlabel FROM pg_enum WHERE enumtypid = $1::regtype ORDER BY enumsortorder", sql
    )
    assert [row["enumlabel"] for row in labels] == names(proto), "extend both, by a migration and in the proto"


@pytest.mark.parametrize("package", ["services", "seat_service"])
def test_every_reason_that_is_raised_is_declared(package: str) -> None:
    raised = set()
    for _, module in sources(package):
        for node in ast.walk(module):
            if isinstance(node, ast.Call) and node.args and isinstance(first := node.args[0], ast.Constant):
                function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if function in REFUSALS and re.fullmatch(r"[A-Z_]+", str(first.value)):
                    raised.add(str(first.value))
    assert raised <= set(ErrorReason.keys())
    assert raised or package == "seat_service", "the seat service takes its reasons from the enum itself"


def test_every_update_of_a_state_carries_its_guard() -> None:
    updates = 0
    for path, module in sources("seat_service"):
        for node in ast.walk(module):
            if not isinstance(node, ast.Constant) or not isinstance(node.value, str):
                continue
            for table, statement in re.findall(r"UPDATE (seats|holds)\b(.*?)(?:RETURNING|\Z)", node.value, re.DOTALL):
                updates += 1
                where = statement.partition("WHERE")[2]
                assert re.search(r"\bstate (=|IN)", where), f"{path.name}: UPDATE {table} without its from-states"
    assert updates >= 9


def test_every_method_of_the_contract_is_served() -> None:
    methods = set(pb.DESCRIPTOR.services_by_name["SeatService"].methods_by_name)
    assert methods <= set(vars(SeatServicer))


async def test_a_second_migration_does_nothing_and_an_edited_file_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = world.servers.database_url("seat")
    assert await migrate.migrate(url, schema="seat", package="seat_service") == []
    real = migrate._files
    monkeypatch.setattr(migrate, "_files", lambda package: [(name, sql + "\n--") for name, sql in real(package)])
    with pytest.raises(RuntimeError, match="edited after it was applied"):
        await migrate.migrate(url, schema="seat", package="seat_service")
