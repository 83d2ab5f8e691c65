"""The demo airline: its passengers, and `skyhigh demo load`, `pnr` and `flight`."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Final
from zoneinfo import ZoneInfo

import pytest
import typer
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from typer.testing import CliRunner, Result

from operations.commands import demo
from operations.demo import airline, loading
from operations.demo.airline import DAYS, TIMETABLE, Flight
from operations.demo.passengers import candidates
from services.validation import validate
from tests import dates
from tests.operations.fake_services import FakeCheckIn, FakeFlights, serving

# The clock of these tests is injected; the tests of commands at the end use the real one.
DAY: Final = date(2019, 12, 3)
FLIGHTS: Final = airline.flights(DAY, days=2)
MANIFESTS: Final = {flight: airline.manifest(flight) for flight in FLIGHTS}
LOCATOR: Final = re.compile(r"[ABCDEFGHJKMNPQRSTUVWXYZ][23456789ABCDEFGHJKMNPQRSTUVWXYZ]{5}")
TIME_ZONES: Final = {
    "FRA": "Europe/Berlin",
    "LIS": "Europe/Lisbon",
    "ATH": "Europe/Athens",
    "VIE": "Europe/Vienna",
    "JFK": "America/New_York",
    "SIN": "Asia/Singapore",
}

app = typer.Typer()
demo.register(app)

each_flight = pytest.mark.parametrize("flight", FLIGHTS, ids=lambda flight: flight.flight_id)
# The contract accepts only departures near the real date.
each_flight_to_come = pytest.mark.parametrize(
    "flight", airline.flights(date.fromisoformat(dates.DAY), days=2), ids=lambda flight: flight.flight_id
)


def passengers() -> list[pb.ManifestPassenger]:
    """Returns all passengers of today and tomorrow."""
    return [passenger for manifest in MANIFESTS.values() for passenger in manifest.passengers]


def test_two_days_have_a_thousand_passengers_of_all_kinds() -> None:
    assert len(FLIGHTS) == 12
    assert len(passengers()) >= 1000
    kinds = Counter(pb.PassengerType.Name(each.type) for each in passengers())
    assert min(kinds[kind] for kind in ("ADULT", "CHILD", "INFANT")) >= 20
    assert {each.fare for each in passengers()} == {"BASIC", "STANDARD", "FLEX", "BUSINESS"}
    assert {code for each in passengers() for code in each.special_services} >= {"WCHR", "BLND", "UMNR", "INFT"}
    assert sum(not (each.given_name + each.last_name).isascii() for each in passengers()) > 300


@each_flight_to_come
def test_a_manifest_is_as_the_contract_wants_it(flight: Flight) -> None:
    validate(airline.manifest(flight))


@each_flight_to_come
def test_a_flight_is_in_the_schedule_as_it_is_in_the_manifest(flight: Flight) -> None:
    scheduled, facts = airline.schedule(flight), airline.manifest(flight).flight
    validate(scheduled)
    for name in ("flight_number", "origin", "destination", "departure_time", "arrival_time", "gate"):
        assert getattr(scheduled, name) == getattr(facts, name)
    for name in ("check_in_opens_before", "check_in_closes_before"):
        assert getattr(scheduled, name) == getattr(facts, name)


def test_only_flights_to_come_are_added() -> None:
    noon = datetime.combine(DAY, time(12), tzinfo=UTC)
    left = {flight.flight_id for flight in FLIGHTS} - {flight.flight_id for flight in airline.flights_to_come(noon)}
    assert left == {f"{number}-{DAY}" for number in ("SH202", "SH505", "SH606")}


@each_flight
def test_a_flight_is_well_booked_and_not_overbooked(flight: Flight) -> None:
    seated = Counter(pb.Cabin.Name(each.cabin) for each in MANIFESTS[flight].passengers if each.type != pb.INFANT)
    for cabin, seats in flight.service.aircraft.cabins.items():
        assert 0.5 <= seated.pop(cabin) / seats <= 0.85
    assert not seated


def test_another_process_makes_the_same_airline() -> None:
    script = (
        "import datetime, hashlib; from operations.demo import airline\n"
        f"flights = airline.flights(datetime.date.fromisoformat('{DAY}'), days=2)\n"
        "content = b''.join(airline.manifest(each).SerializeToString(deterministic=True) for each in flights)\n"
        "print(hashlib.sha256(content).hexdigest())"
    )
    ours = hashlib.sha256(b"".join(each.SerializeToString(deterministic=True) for each in MANIFESTS.values()))
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "7",
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
    }
    theirs = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env=environment)
    assert theirs.stdout.strip() == ours.hexdigest()


def test_each_booking_has_a_locator_of_its_own() -> None:
    bookings = defaultdict(set)
    for flight in airline.flights(DAY, days=20):
        for party in airline.parties(flight):
            (pnr,) = {each.pnr for each in party.passengers}
            bookings[pnr].add(tuple((each.passenger_id, each.given_name, each.last_name) for each in party.passengers))
    assert len(bookings) > 5000
    assert all(len(parties) == 1 for parties in bookings.values())
    assert all(LOCATOR.fullmatch(pnr) for pnr in bookings)


def test_a_connection_is_one_booking_on_two_flights_that_meet() -> None:
    flights_of = defaultdict(list)
    for flight in airline.flights(DAY, days=3):
        for party in airline.parties(flight):
            for each in party.passengers:
                flights_of[each.passenger_id, each.pnr, each.given_name, each.last_name].append(flight)
    connections = [flights for flights in flights_of.values() if len(flights) > 1]
    assert len(connections) >= 20
    for first, second in (sorted(flights, key=lambda flight: flight.departure_time) for flights in connections):
        assert first.service.destination == second.service.origin
        assert timedelta(minutes=45) <= second.departure_time - first.arrival_time <= timedelta(days=1)


@each_flight
def test_infants_are_on_the_laps_of_adults_of_their_booking(flight: Flight) -> None:
    by_id = {each.passenger_id: each for each in MANIFESTS[flight].passengers}
    assert len(by_id) == len(MANIFESTS[flight].passengers)
    laps = [each.accompanying_passenger_id for each in by_id.values() if each.type == pb.INFANT]
    assert len(set(laps)) == len(laps)
    for each in by_id.values():
        assert bool(each.accompanying_passenger_id) == (each.type == pb.INFANT)
        assert ("INFT" in each.special_services) == (each.passenger_id in laps)
        if each.type == pb.INFANT:
            adult = by_id[each.accompanying_passenger_id]
            assert (adult.type, adult.pnr, adult.cabin) == (pb.ADULT, each.pnr, each.cabin)


@each_flight
def test_children_alone_are_announced(flight: Flight) -> None:
    for party in airline.parties(flight):
        no_adult = all(each.type != pb.ADULT for each in party.passengers)
        assert no_adult == any("UMNR" in each.special_services for each in party.passengers)
        assert not no_adult or len(party.passengers) == 1


def test_a_mail_address_is_made_of_the_name() -> None:
    for each in passengers():
        assert re.fullmatch(r"[a-z]+\.[a-z]+@passengers\.example", each.contact_email)


@pytest.mark.parametrize("hour", range(24))
def test_at_any_hour_several_flights_can_be_checked_in(hour: int) -> None:
    now = datetime.combine(DAY, time(hour, 7), tzinfo=UTC)
    opened = [each for each in FLIGHTS if each.check_in_is_open(now, for_another=timedelta(minutes=30))]
    assert len(opened) >= 5
    for each in opened:
        assert timedelta(minutes=90) < each.departure_time - now <= timedelta(hours=24)
        assert len(airline.alone(each)) >= 2


@each_flight
def test_the_date_at_the_origin_is_that_of_the_id(flight: Flight) -> None:
    zone = ZoneInfo(TIME_ZONES[flight.service.origin])
    for day in (flight.departure_time, flight.departure_time.replace(month=7)):
        assert day.astimezone(zone).date() == day.date()


@pytest.fixture
async def check_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCheckIn]:
    """Yields the check-in service that the commands call."""
    fake = FakeCheckIn()
    async with serving(fake, FakeFlights()) as address:
        monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))
        monkeypatch.setenv("SKYHIGH_FLIGHT_ADDRESS", address)
        monkeypatch.setenv("SKYHIGH_CHECKIN_ADDRESS", address)
        yield fake


async def skyhigh(*arguments: str) -> Result:
    """Runs a command beside the services."""
    return await asyncio.to_thread(CliRunner().invoke, app, ["demo", *arguments])


async def test_the_airline_is_loaded_once(check_in: FakeCheckIn) -> None:
    check_in.at_once_first = loading.CALLS_AT_ONCE
    first, second = await skyhigh("load"), await skyhigh("load")
    assert first.exit_code == second.exit_code == 0, first.output
    head, *lines = first.stdout.splitlines()
    # Flights of today that have departed are not added.
    assert len(TIMETABLE) * (DAYS - 1) <= len(lines) == len(check_in.manifests) <= len(TIMETABLE) * DAYS
    assert head.startswith(f"{len(lines)} flights of 6 aircraft types, {len(lines)}00 seats: SH")
    assert all(line.endswith(" added, 0 changed, 0 unchanged") for line in lines)
    again = second.stdout.splitlines()[1:]
    assert all(": 0 added, 0 changed, " in line for line in again)
    assert check_in.most_calls_at_once == loading.CALLS_AT_ONCE


async def test_somebody_who_can_check_in_now_is_printed(check_in: FakeCheckIn) -> None:
    await skyhigh("load")
    result = await skyhigh("pnr")
    assert result.exit_code == 0, result.output
    pnr, last_name = result.stdout.removesuffix("\n").split(" ")
    now = datetime.now(UTC)
    ((flight, passenger),) = [
        (flight, passenger)
        for flight in airline.flights(now.date(), days=2)
        for passenger in airline.manifest(flight).passengers
        if passenger.pnr == pnr
    ]
    assert passenger.last_name == last_name
    assert flight.check_in_is_open(now, for_another=timedelta(minutes=25))
    assert (passenger.type, passenger.fare, list(passenger.special_services)) == (pb.ADULT, "STANDARD", [])


async def test_other_people_come_each_time(check_in: FakeCheckIn) -> None:
    await skyhigh("load")
    many = (await skyhigh("pnr", "--number", "20")).stdout.splitlines()
    assert len(set(many)) == 20
    assert {(await skyhigh("pnr")).stdout for _ in range(5)} != {(await skyhigh("pnr")).stdout}


async def test_whoever_is_checked_in_is_not_printed(check_in: FakeCheckIn) -> None:
    await skyhigh("load")
    (person,) = await candidates(1)
    on_board = {each.passenger_id: each for each in check_in.manifests[person.flight_id].values()}
    check_in.checked_in = on_board.keys() - {person.passenger_id}
    for _ in range(3):
        only = await skyhigh("pnr", "--flight", person.flight_id)
        assert only.stdout == f"{person.pnr} {person.last_name}\n"
    check_in.checked_in.add(person.passenger_id)
    refused = await skyhigh("pnr", "--flight", person.flight_id)
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "only 0 of 1 passengers can check in now" in refused.stderr


async def test_candidates_share_a_flight(check_in: FakeCheckIn) -> None:
    await skyhigh("load")
    people = await candidates(2)
    assert len({each.flight_id for each in people}) == 1
    assert len({each.passenger_id for each in people}) == 2
    named = await candidates(2, flight_id=people[0].flight_id)
    assert {each.flight_id for each in named} == {people[0].flight_id}
    with pytest.raises(typer.Exit):
        await candidates(90)


async def test_an_airline_that_was_not_loaded_has_nobody(check_in: FakeCheckIn) -> None:
    refused = await skyhigh("pnr")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "skyhigh demo load" in refused.stderr


async def test_a_flight_that_is_not_today_or_tomorrow_is_refused(check_in: FakeCheckIn) -> None:
    refused = await skyhigh("pnr", "--flight", "SH101-2010-01-01")
    assert (refused.exit_code, refused.stdout) == (1, "")
    assert "is not a flight of the demo airline" in refused.stderr


@pytest.mark.parametrize(
    ("variable", "named"), [("SKYHIGH_FLIGHT_ADDRESS", "flight"), ("SKYHIGH_CHECKIN_ADDRESS", "check-in")]
)
async def test_a_service_that_is_away_is_named(
    check_in: FakeCheckIn, monkeypatch: pytest.MonkeyPatch, variable: str, named: str
) -> None:
    monkeypatch.setenv(variable, "127.0.0.1:1")
    monkeypatch.setattr(loading, "PATIENCE_SECONDS", 1)
    refused = await skyhigh("load")
    assert refused.exit_code == 1
    assert f"the {named} service responded with UNAVAILABLE" in refused.stderr


async def test_a_flight_is_printed_alone() -> None:
    printed = (await skyhigh("flight")).stdout
    tomorrow = datetime.now(UTC).date() + timedelta(days=1)
    assert printed == f"{next(iter(TIMETABLE))}-{tomorrow}\n"
