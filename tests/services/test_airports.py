"""Airports by their code, with their time zones."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta

import airportsdata
import pytest

from services import airports


@pytest.mark.parametrize(
    ("iata", "zone", "city", "country"),
    [
        ("LIS", "Europe/Lisbon", "Lisbon", "PT"),
        ("SIN", "Asia/Singapore", "Singapore", "SG"),
        ("AKL", "Pacific/Auckland", "Auckland", "NZ"),
        ("HNL", "Pacific/Honolulu", "Honolulu", "US"),
    ],
)
def test_an_airport_is_found_by_its_code(iata: str, zone: str, city: str, country: str) -> None:
    airport = airports.find(iata)
    assert airport is not None
    assert (airport.iata, airport.zone.key, airport.city, airport.country) == (iata, zone, city, country)
    assert airport.name
    assert airports.zone(iata) is airport.zone


@pytest.mark.parametrize("iata", ["", "XXX", "lis", "LPPT", "LIS "])
def test_an_unknown_code_is_no_airport(iata: str) -> None:
    assert airports.find(iata) is None
    assert airports.zone(iata) is None


def test_every_airports_time_zone_is_installed() -> None:
    """A service that lacks a zone would find out when the first passenger asks for it."""
    moment = datetime.now(UTC)
    for iata in airportsdata.load("IATA"):
        zone = airports.zone(iata)
        assert zone is not None
        offset = moment.astimezone(zone).utcoffset()
        assert offset is not None
        assert timedelta(hours=-12) <= offset <= timedelta(hours=14)


def test_the_airport_list_is_read_on_first_use() -> None:
    never = "import airportsdata; airportsdata.load = None; import flight_service.service"
    subprocess.run([sys.executable, "-c", never], check=True, timeout=60)


@pytest.mark.parametrize(
    ("iata", "local"),
    [
        ("FRA", "2010-07-01 02:30 CEST (+02:00)"),
        ("LIS", "2010-07-01 01:30 WEST (+01:00)"),
        ("KTM", "2010-07-01 06:15 (+05:45)"),
        ("HNL", "2010-06-30 14:30 HST (-10:00)"),
        ("XXX", "2010-07-01 00:30 UTC"),
    ],
)
def test_a_local_time_has_zone_and_utc_offset(iata: str, local: str) -> None:
    assert airports.local_time(datetime(2010, 7, 1, 0, 30, tzinfo=UTC), airports.zone(iata)) == local
