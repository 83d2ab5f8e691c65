"""Conventions that a reviewer would otherwise have to remember.

See docs/rules.md section 15.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest
from google.protobuf.descriptor import EnumDescriptor, ServiceDescriptor
from skyhigh.booking.v1 import booking_service_pb2 as booking
from skyhigh.checkin.v1 import checkin_service_pb2 as checkin
from skyhigh.flight.v1 import flight_service_pb2 as flight
from skyhigh.gateway.v1 import error_reason_pb2 as gateway_reasons
from skyhigh.payment.v1 import payment_service_pb2 as payment
from skyhigh.seat.v1 import seat_service_pb2 as seat
from skyhigh.waitlist.v1 import waitlist_service_pb2 as waitlist

from booking_service.servicer import BookingServicer
from checkin_service.servicer import CheckInServicer
from flight_service.servicer import FlightServicer
from payment_service.servicer import PaymentServicer
from seat_service.servicer import SeatServicer
from services import errors, migrate
from tests.instances import connected
from waitlist_service.servicer import WaitlistServicer

if TYPE_CHECKING:
    from tests.conftest import World

ROOT: Final = Path(__file__).resolve().parents[2]
REFUSALS: Final = {name for name, value in vars(errors).items() if isinstance(value, type)} | {"cls", "__init__"}
# A service's own reasons start at this number. The numbers below belong to the chassis and mean the same everywhere.
FIRST_OWN_REASON: Final = 20
# The chassis refuses with these reasons; only services with streams have them.
STREAM_REASONS: Final = {"SLOW_READER", "TOO_MANY_WATCHES"}


@dataclass(frozen=True, slots=True)
class Convention:
    """A service and the conventions that it has to follow."""

    name: str
    contract: ServiceDescriptor
    servicer: type
    enums: dict[str, EnumDescriptor]
    """The contract's enums by the names of their SQL types."""
    stateful: tuple[str, ...]
    """The tables whose rows have a state."""
    internal: frozenset[str] = frozenset()
    """The SQL enums that callers never see."""

    @property
    def package(self) -> str:
        """The name of its Python package."""
        return f"{self.name}_service"

    @property
    def reasons(self) -> EnumDescriptor:
        """The ErrorReason enum of its contract."""
        reasons: EnumDescriptor = import_module(self.reasons_module).ErrorReason.DESCRIPTOR
        return reasons

    @property
    def reasons_module(self) -> str:
        """The name of the module that defines its ErrorReason."""
        return f"skyhigh.{self.name}.v1.error_reason_pb2"


SERVICES: Final = {
    convention.name: convention
    for convention in (
        Convention(
            "seat",
            seat.DESCRIPTOR.services_by_name["SeatService"],
            SeatServicer,
            enums={
                "seat_state": seat.Seat.State.DESCRIPTOR,
                "hold_state": seat.Hold.State.DESCRIPTOR,
                "hold_purpose": seat.Hold.Purpose.DESCRIPTOR,
            },
            stateful=("seats", "holds"),
        ),
        Convention(
            "checkin",
            checkin.DESCRIPTOR.services_by_name["CheckInService"],
            CheckInServicer,
            enums={
                "check_in_state": checkin.CheckIn.State.DESCRIPTOR,
                "passenger_type": checkin.PassengerType.DESCRIPTOR,
                "cabin": checkin.Cabin.DESCRIPTOR,
            },
            stateful=("check_ins",),
        ),
        Convention(
            "payment",
            payment.DESCRIPTOR.services_by_name["PaymentService"],
            PaymentServicer,
            enums={"intent_state": payment.PaymentIntent.State.DESCRIPTOR},
            stateful=("intents", "charges", "refunds"),
            internal=frozenset({"charge_state", "refund_state", "webhook_outcome"}),
        ),
        Convention(
            "waitlist",
            waitlist.DESCRIPTOR.services_by_name["WaitlistService"],
            WaitlistServicer,
            enums={
                "entry_state": waitlist.WaitlistEntry.State.DESCRIPTOR,
                "waitlist_mode": waitlist.WaitlistMode.DESCRIPTOR,
                "seat_position": waitlist.SeatPreferences.Position.DESCRIPTOR,
                "cabin": waitlist.Cabin.DESCRIPTOR,
                # The waitlist's contract has no such enum: the session or the manifest tells the passenger type.
                "passenger_type": checkin.PassengerType.DESCRIPTOR,
            },
            stateful=("entries",),
        ),
        Convention(
            "flight",
            flight.DESCRIPTOR.services_by_name["FlightService"],
            FlightServicer,
            enums={"flight_status": flight.Flight.Status.DESCRIPTOR, "cabin": flight.Cabin.DESCRIPTOR},
            stateful=("flights",),
        ),
        Convention(
            "booking",
            booking.DESCRIPTOR.services_by_name["BookingService"],
            BookingServicer,
            enums={
                "booking_state": booking.Booking.State.DESCRIPTOR,
                "passenger_type": booking.PassengerType.DESCRIPTOR,
                "cabin": booking.Cabin.DESCRIPTOR,
            },
            stateful=("bookings",),
        ),
    )
}
each_service: Final = pytest.mark.parametrize("service", SERVICES.values(), ids=SERVICES)


def sources(package: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yields the path and the parsed tree of each module of a package."""
    for path in sorted((ROOT / package).rglob("*.py")):
        yield path, ast.parse(path.read_text())


def names(enum: EnumDescriptor) -> list[str]:
    """Returns the value names of a proto enum without its zero value."""
    return [value.name for value in enum.values if value.number]


def texts(node: ast.AST) -> Iterator[str]:
    """Yields the strings of a module; the fixed parts of an f-string as one."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from texts(child)


def raised_reasons(package: str) -> set[str]:
    """Returns the reasons that a package uses.

    A reason is an attribute of an ErrorReason, or the first argument of a refusal.
    """
    raised = set()
    for _, module in sources(package):
        for node in ast.walk(module):
            match node:
                case ast.Attribute(value=ast.Name(id="ErrorReason"), attr=attribute) if attribute.isupper():
                    raised.add(attribute)
                case ast.Call(
                    func=ast.Attribute(attr=function) | ast.Name(id=function), args=[ast.Constant(first), *_]
                ):
                    if function in REFUSALS and re.fullmatch(r"[A-Z_]+", str(first)):
                        raised.add(str(first))
    return raised


@pytest.mark.parametrize(
    ("service", "sql"), [pytest.param(s, sql, id=f"{s.name}.{sql}") for s in SERVICES.values() for sql in s.enums]
)
async def test_sql_and_contract_have_the_same_enum_values(world: World, service: Convention, sql: str) -> None:
    async with connected(world.servers.database_url(service.name)) as database:
        labels = await database.fetch(
            "SELECT enumlabel FROM pg_enum WHERE enumtypid = $1::regtype ORDER BY enumsortorder",
            f"{service.name}.{sql}",
        )
    told = names(service.enums[sql])
    assert [row["enumlabel"] for row in labels] == told, "extend both, by a migration and in the proto"


@each_service
async def test_every_sql_enum_is_compared(world: World, service: Convention) -> None:
    async with connected(world.servers.database_url(service.name)) as database:
        rows = await database.fetch(
            "SELECT typname FROM pg_type WHERE typtype = 'e' AND typnamespace = $1::regnamespace", service.name
        )
    assert {row["typname"] for row in rows} == service.enums.keys() | service.internal


@each_service
def test_every_raised_reason_is_declared(service: Convention) -> None:
    streams = any(method.server_streaming for method in service.contract.methods)
    chassis = raised_reasons("services") - (set() if streams else STREAM_REASONS)
    assert raised_reasons("services") >= STREAM_REASONS
    assert raised_reasons(service.package) | chassis <= set(names(service.reasons))


@each_service
def test_every_service_reason_is_raised(service: Convention) -> None:
    own = {value.name for value in service.reasons.values if value.number >= FIRST_OWN_REASON}
    assert own - STREAM_REASONS <= raised_reasons(service.package)


@each_service
def test_a_service_raises_only_its_contracts_reasons(service: Convention) -> None:
    imported = {
        node.module
        for _, module in sources(service.package)
        for node in ast.walk(module)
        if isinstance(node, ast.ImportFrom) and any(alias.name == "ErrorReason" for alias in node.names)
    }
    assert imported == {service.reasons_module}


def test_a_common_reason_has_the_same_number_everywhere() -> None:
    def common(reasons: EnumDescriptor) -> dict[str, int]:
        return {value.name: value.number for value in reasons.values if value.number < FIRST_OWN_REASON}

    chassis = common(SERVICES["seat"].reasons)
    assert sorted(chassis.values()) == list(range(8))
    for service in SERVICES.values():
        assert common(service.reasons) == chassis, service.name
    assert common(gateway_reasons.ErrorReason.DESCRIPTOR).items() <= chassis.items(), "the edge needs fewer"


@each_service
def test_every_update_of_a_state_has_a_guard(service: Convention) -> None:
    tables = "|".join(service.stateful)
    statement = re.compile(rf"\bUPDATE ({tables})\b(.*?)(?=\bRETURNING\b|\bUPDATE (?:{tables})\b|\Z)", re.DOTALL)
    guarded = set()
    for path, module in sources(service.package):
        for text in texts(module):
            for table, update in statement.findall(text):
                where = update.partition("WHERE")[2]
                assert re.search(r"\bstate (\|\| '' )?(=|IN)", where), (
                    f"{path.name}: UPDATE {table} without its from-states"
                )
                guarded.add(table)
    assert guarded == set(service.stateful), "the tables were renamed, or the statements are written otherwise now"


@each_service
def test_every_method_of_the_contract_is_served(service: Convention) -> None:
    assert set(service.contract.methods_by_name) <= set(vars(service.servicer))


@each_service
async def test_migrations_run_once_and_edited_files_are_refused(
    world: World, service: Convention, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = world.servers.database_url(service.name)
    await migrate.migrate(url, schema=service.name, package=service.package)
    assert await migrate.migrate(url, schema=service.name, package=service.package) == []
    real = migrate._files
    monkeypatch.setattr(migrate, "_files", lambda package: [(name, sql + "\n--") for name, sql in real(package)])
    with pytest.raises(RuntimeError, match="edited after it was applied"):
        await migrate.migrate(url, schema=service.name, package=service.package)
