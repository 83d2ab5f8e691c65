"""The ports, addresses and settings of a local stack."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from booking_service.settings import BookingSettings
from checkin_service.settings import CheckInSettings
from deploy.local.port_table import PORT_SPAN
from deploy.local.process import Process
from deploy.local.process_table import processes_of
from deploy.local.secrets import SigningKeys
from deploy.local.servers.postgres import POSTGRES_SETTINGS
from deploy.local.servers.rabbitmq import broker_permissions
from deploy.local.services import SERVICES
from deploy.local.stack import AUDIENCE, ISSUER, Stack
from flight_service.settings import FlightSettings
from gateway.guard.settings import GatewayServiceSettings
from payment_service.settings import PaymentSettings
from seat_service.settings import SeatSettings
from services.settings import ServiceSettings
from waitlist_service.settings import WaitlistSettings

SETTINGS: Final[dict[str, type[ServiceSettings]]] = {
    "seat": SeatSettings,
    "checkin": CheckInSettings,
    "waitlist": WaitlistSettings,
    "payment": PaymentSettings,
    "flight": FlightSettings,
    "booking": BookingSettings,
    "limits": GatewayServiceSettings,
}
NAMES: Final = [service.name for service in SERVICES]
LABELS: Final = {service.name: service.label for service in SERVICES}


def stack(home: Path, **given: str) -> Stack:
    """Returns a stack with these settings."""
    return Stack.from_environment({"SKYHIGH_HOME": str(home), **given})


def process(stack: Stack, name: str) -> Process:
    """Returns a process of the stack by name."""
    return next(process for process in processes_of(stack) if process.name == name)


def settings_of(process: Process, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the settings that a service reads from its process's environment."""
    for name, value in process.environment.items():
        monkeypatch.setenv(name, value)
    return SETTINGS[process.name]()  # type: ignore[call-arg]


def test_the_default_ports_are_the_documented_ones(tmp_path: Path) -> None:
    ports = stack(tmp_path).ports
    assert (ports["gateway"], ports["gateway_admin"]) == (8080, 9901)
    services = ("seat", "checkin", "waitlist", "payment", "flight", "booking", "limits")
    assert [ports[name] for name in services] == [50051, 50052, 50053, 50054, 50055, 50056, 50057]
    mocks = ("mock_weight", "mock_provider", "mock_mail", "mock_mail_control", "mock_weight_control")
    assert [ports[name] for name in mocks] == [50061, 50062, 50063, 50064, 50065]


def test_no_port_is_used_twice(tmp_path: Path) -> None:
    for ports in (stack(tmp_path).ports, stack(tmp_path, SKYHIGH_PORT_BASE="20000").ports):
        assert len(set(ports.values())) == len(ports)


def test_two_bases_never_meet(tmp_path: Path) -> None:
    one = set(stack(tmp_path, SKYHIGH_PORT_BASE="20000").ports.values())
    other = set(stack(tmp_path, SKYHIGH_PORT_BASE=str(20000 + PORT_SPAN)).ports.values())
    assert not one & other
    assert len(one) == len(other)


def test_one_port_can_be_set_alone(tmp_path: Path) -> None:
    ports = stack(tmp_path, SKYHIGH_PORT_BASE="20000", SKYHIGH_GATEWAY_PORT="8081").ports
    assert (ports["gateway"], ports["gateway_admin"]) == (8081, 20001)


@pytest.mark.parametrize("value", ["eighty", "80", "70000", "-1", "8080.0"])
def test_a_wrong_port_is_named(tmp_path: Path, value: str) -> None:
    with pytest.raises(ValueError, match="SKYHIGH_GATEWAY_PORT"):
        stack(tmp_path, SKYHIGH_GATEWAY_PORT=value)


def test_given_servers_are_used_instead_of_own_ones(tmp_path: Path) -> None:
    given = stack(
        tmp_path,
        SKYHIGH_DATABASE_URL="postgresql://me:secret@db.example:5432/air?sslmode=require",
        SKYHIGH_AMQP_URL="amqp://me:secret@mq.example/air",
        SKYHIGH_REDIS_URL="redis://cache.example/3",
    )
    mocks = ["mock-weight", "mock-provider", "mock-mail"]
    assert [process.name for process in processes_of(given)] == [
        *mocks,
        *(service.label for service in SERVICES),
        "gateway",
    ]
    seat = process(given, "seat")
    assert seat.after == ()
    assert seat.environment["SKYHIGH_REDIS_URL"] == "redis://cache.example/3"
    assert seat.environment["SKYHIGH_SEAT_AMQP_URL"] == "amqp://me:secret@mq.example/air"
    url = seat.environment["SKYHIGH_SEAT_DATABASE_URL"]
    assert url == f"postgresql://seat:{given.secrets['postgres/seat']}@db.example:5432/air?sslmode=require"


@pytest.mark.parametrize("name", NAMES)
def test_a_service_sees_no_owners_url_but_its_own(tmp_path: Path, name: str) -> None:
    service = process(stack(tmp_path), LABELS[name])
    assert {"SKYHIGH_DATABASE_URL", "SKYHIGH_AMQP_URL"} <= service.hidden
    assert service.environment[f"SKYHIGH_{name.upper()}_DATABASE_URL"].startswith(f"postgresql://{name}:")
    assert service.environment[f"SKYHIGH_{name.upper()}_AMQP_URL"].startswith(f"amqp://{name}:")


@pytest.mark.parametrize("name", NAMES)
def test_a_service_can_start_with_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    own = stack(tmp_path)
    settings = settings_of(process(own, LABELS[name]), monkeypatch)
    assert settings.listen == f"127.0.0.1:{own.ports[LABELS[name]]}"
    assert settings.processes == (2 if name == "seat" else 1)


def test_all_pools_fit_into_postgres() -> None:
    pool_size = ServiceSettings.model_fields["pool_size"].default
    most_processes = 20
    assert len(SERVICES) * most_processes * pool_size < int(POSTGRES_SETTINGS["max_connections"])


def test_a_service_is_told_where_each_process_of_those_is_that_it_calls(tmp_path: Path) -> None:
    own = stack(tmp_path, SKYHIGH_PORT_BASE="20000", SKYHIGH_PAYMENT_PROCESSES="3")
    checkin = process(own, "checkin").environment
    assert checkin["SKYHIGH_SEAT_ADDRESS"] == "127.0.0.1:20120,127.0.0.1:20121"
    assert checkin["SKYHIGH_PAYMENT_ADDRESS"] == "127.0.0.1:20180,127.0.0.1:20181,127.0.0.1:20182"
    assert process(own, "payment").environment["SKYHIGH_PAYMENT_PROCESSES"] == "3"
    booking = process(own, "booking").environment
    assert booking["SKYHIGH_SEAT_ADDRESS"] == "127.0.0.1:20120,127.0.0.1:20121"
    assert booking["SKYHIGH_FLIGHT_ADDRESS"] == "127.0.0.1:20200"
    assert booking["SKYHIGH_PAYMENT_ADDRESS"] == checkin["SKYHIGH_PAYMENT_ADDRESS"]


def test_addresses_of_another_stack_mislead_nobody(tmp_path: Path) -> None:
    own = stack(tmp_path, SKYHIGH_PORT_BASE="20000", SKYHIGH_SEAT_ADDRESS="127.0.0.1:50051")
    assert process(own, "checkin").environment["SKYHIGH_SEAT_ADDRESS"].startswith("127.0.0.1:20120")
    assert own.addresses["SKYHIGH_SEAT_ADDRESS"] == "127.0.0.1:20051"


def prepared(process: Process) -> Process:
    """Runs the preparation of a process before its start; returns the process."""

    async def prepare() -> None:
        assert process.prepare is not None
        await process.prepare()

    asyncio.run(prepare())
    return process


def test_exactly_those_who_call_get_a_token_to_show(tmp_path: Path) -> None:
    own = stack(tmp_path)
    keys = SigningKeys(tmp_path / "keys")
    for name in NAMES:
        service = prepared(process(own, LABELS[name]))
        variable = f"SKYHIGH_{name.upper()}_TOKEN_FILE"
        assert (variable in service.environment) == (name in {"checkin", "waitlist", "flight", "booking"}), name
        if variable in service.environment:
            file = Path(service.environment[variable])
            public = KeySet.import_key_set(json.loads(keys.jwks.read_text()))
            claims = jwt.decode(file.read_text(), public, algorithms=["ES256"]).claims
            shown = (claims["iss"], claims["aud"], claims["sub"], claims["role"])
            assert shown == (ISSUER, AUDIENCE, name, "service")
            assert file.stat().st_mode & 0o777 == 0o600


def test_a_home_from_before_there_was_a_session_key_gets_one_and_keeps_its_tokens(tmp_path: Path) -> None:
    own = stack(tmp_path)
    token = own.signing_keys.sign({"sub": "AA1"})
    own.signing_keys.session_key.unlink()
    checkin = prepared(process(own, "checkin"))
    assert Path(checkin.environment["SKYHIGH_SESSION_KEY"]).exists()
    public = KeySet.import_key_set(json.loads(own.signing_keys.jwks.read_text()))
    assert len(public.keys) == 2
    assert jwt.decode(token, public, algorithms=["ES256"]).claims == {"sub": "AA1"}


def test_only_check_in_and_booking_can_open_sessions(tmp_path: Path) -> None:
    told = {name for name in NAMES if "SKYHIGH_SESSION_KEY" in process(stack(tmp_path), LABELS[name]).environment}
    assert told == {"checkin", "booking"}


def test_the_provider_signs_with_what_the_payment_service_trusts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = stack(tmp_path, SKYHIGH_PORT_BASE="20000")
    provider = process(own, "mock-provider").environment
    trusted = settings_of(process(own, "payment"), monkeypatch).webhook_secrets
    assert trusted == (provider["SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET"],)
    assert provider["SKYHIGH_MOCK_PROVIDER_WEBHOOK_URL"] == "http://127.0.0.1:20000/v1/payments/webhook"


def test_while_the_webhook_key_is_rotated_the_provider_signs_with_the_first(tmp_path: Path) -> None:
    own = stack(tmp_path, SKYHIGH_PAYMENT_WEBHOOK_SECRETS="whsec_new, whsec_old")
    assert process(own, "mock-provider").environment["SKYHIGH_MOCK_PROVIDER_WEBHOOK_SECRET"] == "whsec_new"
    assert process(own, "payment").environment["SKYHIGH_PAYMENT_WEBHOOK_SECRETS"] == "whsec_new, whsec_old"


def test_the_services_use_the_mocks(tmp_path: Path) -> None:
    own = stack(tmp_path, SKYHIGH_PORT_BASE="20000")
    assert process(own, "checkin").environment["SKYHIGH_WEIGHT_ADDRESS"] == "127.0.0.1:20061"
    assert process(own, "payment").environment["SKYHIGH_PAYMENT_PROVIDER_URL"] == "http://127.0.0.1:20062"
    for name in ("checkin", "waitlist", "booking"):
        assert process(own, name).environment["SKYHIGH_SMTP_ADDRESS"] == "127.0.0.1:20063"


def test_what_is_given_needs_no_mock(tmp_path: Path) -> None:
    given = stack(tmp_path, SKYHIGH_SMTP_ADDRESS="mail.example:25")
    assert "mock-mail" not in [process.name for process in processes_of(given)]
    assert "SKYHIGH_MOCK_MAIL_URL" not in given.addresses
    assert process(given, "checkin").environment["SKYHIGH_SMTP_ADDRESS"] == "mail.example:25"


def test_a_service_setting_that_is_given_wins(tmp_path: Path) -> None:
    seat = process(stack(tmp_path, SKYHIGH_SEAT_DATABASE_URL="postgresql://x@db.example/seats"), "seat")
    assert seat.environment["SKYHIGH_SEAT_DATABASE_URL"] == "postgresql://x@db.example/seats"


def test_the_addresses_are_the_documented_variables(tmp_path: Path) -> None:
    addresses = stack(tmp_path, SKYHIGH_PORT_BASE="20000").addresses
    assert list(addresses) == [
        "SKYHIGH_GATEWAY_URL",
        "SKYHIGH_DATABASE_URL",
        "SKYHIGH_AMQP_URL",
        "SKYHIGH_REDIS_URL",
        "SKYHIGH_SEAT_ADDRESS",
        "SKYHIGH_CHECKIN_ADDRESS",
        "SKYHIGH_WAITLIST_ADDRESS",
        "SKYHIGH_PAYMENT_ADDRESS",
        "SKYHIGH_FLIGHT_ADDRESS",
        "SKYHIGH_BOOKING_ADDRESS",
        "SKYHIGH_GATEWAY_ADDRESS",
        "SKYHIGH_MOCK_WEIGHT_CONTROL_URL",
        "SKYHIGH_MOCK_PROVIDER_URL",
        "SKYHIGH_MOCK_MAIL_URL",
    ]
    assert addresses["SKYHIGH_GATEWAY_URL"] == "http://127.0.0.1:20000"
    assert addresses["SKYHIGH_SEAT_ADDRESS"] == "127.0.0.1:20051"
    assert addresses["SKYHIGH_MOCK_WEIGHT_CONTROL_URL"] == "http://127.0.0.1:20065"
    assert addresses["SKYHIGH_MOCK_PROVIDER_URL"] == "http://127.0.0.1:20062"
    assert addresses["SKYHIGH_MOCK_MAIL_URL"] == "http://127.0.0.1:20064"


def test_secrets_stay_and_are_their_owners_alone(tmp_path: Path) -> None:
    first = stack(tmp_path).servers.database_url()
    assert stack(tmp_path).servers.database_url() == first
    assert (tmp_path / "secrets.json").stat().st_mode & 0o777 == 0o600


def test_a_service_declares_its_own_queues_and_no_exchange() -> None:
    assert broker_permissions("seat") == {
        "configure": r"^seat\..*$",
        "write": r"^(seat\..*|skyhigh\.(events|dead))$",
        "read": r"^(seat\..*|skyhigh\.(events|dead))$",
    }
