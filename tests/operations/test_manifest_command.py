"""`skyhigh manifest import` (CHK-1).

Covers the requests that it sends, and the line that it names for each error.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, Final

import pytest
import typer
from skyhigh.checkin.v1 import checkin_service_pb2 as pb
from typer.testing import CliRunner, Result

from operations.commands import manifest
from operations.manifest_file import COLUMNS, FileError, read
from services.errors import FieldViolation
from tests.dates import DAY, flight_id
from tests.operations.fake_services import FakeCheckIn, FakeFlights, serving

FLIGHT: Final = flight_id("SH101")
OTHER: Final = flight_id("SH202")
THIRD: Final = flight_id("SH303")
HEADER: Final = "flight_id,passenger_id,pnr,given_name,last_name\n"
FACTS: Final = {
    "flight_number": "SH101",
    "origin": "FRA",
    "destination": "LIS",
    "departure_time": f"{DAY}T18:30:00Z",
    "arrival_time": f"{DAY}T21:40:00Z",
}
ADA: Final = {"passenger_id": "P1", "pnr": "XK4T7Q", "given_name": "Ada", "last_name": "Lovelace"}

app = typer.Typer()
manifest.register(app)


@pytest.fixture
async def check_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeCheckIn]:
    """Yields the check-in service that the command calls."""
    fake = FakeCheckIn()
    async with serving(fake, FakeFlights()) as address:
        monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("SKYHIGH_CHECKIN_ADDRESS", address)
        yield fake


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    """Returns a function that writes a CSV file."""

    def write(content: str) -> Path:
        file = tmp_path / "manifest.csv"
        file.write_text(content, encoding="utf-8")
        return file

    return write


async def import_(file: Path, *arguments: str) -> Result:
    """Runs the command beside the service."""
    return await asyncio.to_thread(CliRunner().invoke, app, ["manifest", "import", str(file), *arguments])


async def test_a_csv_file_is_imported_flight_by_flight(check_in: FakeCheckIn, write: Callable[[str], Path]) -> None:
    file = write(
        "\N{ZERO WIDTH NO-BREAK SPACE}flight_id,flight_number,origin,destination,departure_time,arrival_time,gate,"
        "check_in_closes_before_minutes,passenger_id,pnr,given_name,last_name,type,cabin,fare,special_services,"
        "accompanying_passenger_id,contact_email\n"
        f"{FLIGHT},SH101,FRA,LIS,{DAY}T18:30:00Z,{DAY}T21:40:00+00:00,A24,45,"
        "P1,XK4T7Q,Zoë,Müller-Lüdenscheidt,adult,BUSINESS,BUSINESS,INFT+WCHR,,zoe@passengers.example\n"
        f"{OTHER},,,,,,,,P9,R7WQ2C,Seán,O'Brien,,,,,,\n"
        f"{FLIGHT},,,,,,,,P2,XK4T7Q, Björn ,Müller-Lüdenscheidt,INFANT,BUSINESS,BUSINESS,,P1,\n"
    )
    result = await import_(file)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        f"{FLIGHT}: 2 added, 0 changed, 0 unchanged",
        f"{OTHER}: 1 added, 0 changed, 0 unchanged",
    ]
    first, second = check_in.imports
    expected = pb.FlightFacts(flight_number="SH101", origin="FRA", destination="LIS", gate="A24")
    expected.departure_time.FromJsonString(FACTS["departure_time"])
    expected.arrival_time.FromJsonString(FACTS["arrival_time"])
    expected.check_in_closes_before.FromSeconds(45 * 60)
    assert first.flight == expected
    mother, infant = first.passengers
    assert mother == pb.ManifestPassenger(
        passenger_id="P1",
        pnr="XK4T7Q",
        given_name="Zoë",
        last_name="Müller-Lüdenscheidt",
        type=pb.ADULT,
        cabin=pb.BUSINESS,
        fare="BUSINESS",
        special_services=["INFT", "WCHR"],
        contact_email="zoe@passengers.example",
    )
    assert (infant.type, infant.given_name, infant.accompanying_passenger_id) == (pb.INFANT, "Björn", "P1")
    assert (second.flight_id, second.HasField("flight")) == (OTHER, False)
    assert "2 unchanged" in (await import_(file)).stdout


async def test_json_says_the_same_as_csv(check_in: FakeCheckIn, tmp_path: Path) -> None:
    row: dict[str, Any] = {"flight_id": FLIGHT, **FACTS, **ADA, "special_services": ["WCHR", "BLND"], "gate": None}
    (tmp_path / "a.json").write_text(json.dumps([{**row, "boarding_before_minutes": 30}]))
    cells = {**row, "special_services": "WCHR+BLND", "gate": "", "boarding_before_minutes": "30"}
    (tmp_path / "a.csv").write_text(f"{','.join(cells)}\n{','.join(cells.values())}\n")
    for name in ("a.json", "a.csv"):
        assert (await import_(tmp_path / name)).exit_code == 0
    from_json, from_csv = check_in.imports
    assert from_json == from_csv
    assert from_json.flight.boarding_before.seconds == 1800


async def test_one_flight_of_a_file_is_imported_alone(check_in: FakeCheckIn, write: Callable[[str], Path]) -> None:
    file = write(f"{HEADER}{FLIGHT},P1,XK4T7Q,Ada,Lovelace\n{OTHER},P2,XK4T7Q,Ada,Lovelace\n,P3,XK4T7Q,Alan,Turing\n")
    assert (await import_(file, "--flight", FLIGHT)).exit_code == 0
    assert [(each.flight_id, [p.passenger_id for p in each.passengers]) for each in check_in.imports] == [
        (FLIGHT, ["P1", "P3"])
    ]
    other = await import_(write(f"{HEADER}{OTHER},P2,XK4T7Q,Ada,Lovelace\n"), "--flight", FLIGHT)
    assert (other.exit_code, other.stdout) == (1, "")
    assert f"has no passenger of {FLIGHT}" in other.stderr


async def test_a_rejected_line_is_named_and_the_others_imported(
    check_in: FakeCheckIn, write: Callable[[str], Path]
) -> None:
    """A flight is refused only if all its lines are wrong.

    A cell with a line break moves the numbers of the lines below.
    """
    check_in.violations[OTHER] = [
        FieldViolation("passengers[1].accompanying_passenger_id", "there is no such passenger on this flight"),
        FieldViolation("flight.check_in_closes_before", "check-in must open before it closes"),
    ]
    file = write(
        f"{HEADER}"
        f'{FLIGHT},P1,XK4T7Q,"Ada\n Augusta",Lovelace\n'
        "\n"
        f"{FLIGHT},P2,XK4T70,Alan,Turing\n"
        f"{OTHER},P3,R7WQ2C,Grace,Hopper\n"
        f"{OTHER},P4,R7WQ2C,Edsger,Dijkstra\n"
        f"{FLIGHT},P6,XK4T7Q,Jan,'t Hart\n"
        f"{THIRD},P5,R7WQ20,Barbara,Liskov\n"
    )
    result = await import_(file)
    assert result.exit_code == 1
    told = result.stderr.splitlines()
    assert told[0].startswith(f"{file}:2: given_name: 'Ada\\n Augusta' must have a letter, and only")
    assert told[1].startswith(f"{file}:5: pnr: 'XK4T70' does not match")
    assert told[2] == f"{file}:6: check_in_closes_before: check-in must open before it closes"
    assert told[3] == f"{file}:7: accompanying_passenger_id: there is no such passenger on this flight"
    assert told[4] == f"{OTHER}: nothing was imported"
    assert told[5].startswith(f"{file}:9: pnr: ")
    assert told[6] == f"{THIRD}: nothing was imported"
    assert result.stdout == f"{FLIGHT}: 1 added, 0 changed, 0 unchanged, 2 rejected\n"
    assert list(check_in.manifests[FLIGHT]) == ["P6"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"type": "PILOT"}, "type: 'PILOT' is not one of ADULT, CHILD, INFANT"),
        ({"cabin": "COACH"}, "cabin: 'COACH' is not one of"),
        ({"cabin": "CABIN_UNSPECIFIED"}, "cabin: 'CABIN_UNSPECIFIED' is not one of"),
        ({"boarding_before_minutes": "-5"}, "boarding_before_minutes: '-5' is not a number of minutes"),
        ({"origin": "MUC"}, "origin: 'MUC' contradicts 'FRA' of an earlier row"),
        ({"passenger_id": "P1"}, "passenger_id: is already the passenger of line 2"),
    ],
)
async def test_a_row_that_can_not_be_read_is_named_and_not_sent(
    check_in: FakeCheckIn, tmp_path: Path, change: dict[str, str], told: str
) -> None:
    file = tmp_path / "manifest.json"
    rows = [{"flight_id": FLIGHT, **ADA, **FACTS}, {"flight_id": FLIGHT, **ADA, "passenger_id": "P2", **change}]
    file.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    result = await import_(file)
    assert result.exit_code == 1
    assert f"{file}:3: {told}" in result.stderr
    assert result.stdout == f"{FLIGHT}: 1 added, 0 changed, 0 unchanged, 1 rejected\n"
    (sent,) = check_in.imports
    assert [each.passenger_id for each in sent.passengers] == ["P1"]
    assert sent.flight.origin == "FRA"


def test_a_time_that_can_not_be_read_is_named(write: Callable[[str], Path]) -> None:
    (flight,) = read(write(f"flight_id,passenger_id,departure_time\n{FLIGHT},P1,noon\n"))
    (fault,) = flight.faults
    assert str(fault).startswith("departure_time: 'noon' is not a time such as ")
    assert not flight.request.flight.HasField("departure_time")


async def test_a_cell_that_clears_fields_names_them_as_columns(
    check_in: FakeCheckIn, write: Callable[[str], Path]
) -> None:
    header = HEADER.replace("\n", ",cleared_fields\n")
    file = write(f"{header}{FLIGHT},P1,XK4T7Q,Ada,Lovelace,special_services+contact_email\n")
    assert (await import_(file)).exit_code == 0
    (sent,) = check_in.imports
    assert list(sent.passengers[0].cleared_fields) == ["specialServices", "contactEmail"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.xlsx", b"", "is neither .csv nor .json"),
        ("a.csv", b"flight_id\xff", "is not UTF-8, from byte 9 on"),
        ("a.csv", b"flight_id,surname\n", "line 1: 'surname' is not a column of a manifest"),
        ("a.csv", b"pnr,pnr\n", "line 1: a column occurs twice"),
        ("a.csv", HEADER.encode() + b"\nSH1,P1\n", "line 3: 2 cells instead of 5"),
        ("a.csv", HEADER.encode() + b'SH1,"P1"x,XK4T7Q,A,B\n', "line 2: "),
        ("a.json", b"", "is not a JSON array"),
        ("a.json", b"{}", "is not a JSON array"),
        ("a.json", b"[\n{},\n7]", "line 3: is not an object"),
        ("a.json", b'[\n{"pnr": "A" "B"}]', "line 2"),
        ("a.json", b'[{"pnr": "A"} {"pnr": "B"}]', "neither a comma nor the end of the array"),
        ("a.json", b"[{}", "neither a comma nor the end of the array"),
        ("a.json", b"[{}] 7", "has text after the array"),
        ("a.json", b'[{"pnr": 7}]', "pnr must be text"),
        ("a.json", b'[{"pnr": "\\ud800"}]', "pnr must be text"),
        ("a.json", b'[{"pnr": "A", "pnr": "B"}]', "a column occurs twice"),
        ("a.json", b'[{"surname": "A"}]', "'surname' is not a column of a manifest"),
        ("a.json", b'[{"pnr": ' + b"[" * 100_000, "line 1"),
        ("a.json", b'[{"boarding_before_minutes": ' + b"9" * 5000 + b"}]", "line 1"),
    ],
)
def test_a_file_that_is_no_manifest_imports_nothing(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(FileError, match=told):
        read(file)
    result = CliRunner().invoke(app, ["manifest", "import", str(file)])
    assert result.exit_code == 1
    assert "nothing was imported" in result.stderr


@pytest.mark.parametrize(("name", "content"), [("a.csv", ""), ("a.csv", HEADER), ("a.json", "[ ]")])
def test_a_file_without_passengers_is_told(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    result = CliRunner().invoke(app, ["manifest", "import", str(tmp_path / name)])
    assert (result.exit_code, "has no passenger" in result.stderr) == (1, True)


async def test_a_service_that_is_away_is_told(
    check_in: FakeCheckIn, write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKYHIGH_CHECKIN_ADDRESS", "127.0.0.1:1")
    result = await import_(write(f"{HEADER}{FLIGHT},P1,XK4T7Q,Ada,Lovelace\n"))
    assert result.exit_code == 1
    assert "the check-in service responded with UNAVAILABLE" in result.stderr


async def test_the_examples_of_the_documentation_work(check_in: FakeCheckIn, tmp_path: Path) -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text()
    for kind in ("csv", "json"):
        example = documentation.split(f"```{kind}\n")[1].split("```")[0]
        (tmp_path / f"example.{kind}").write_text(example)
        result = await import_(tmp_path / f"example.{kind}")
        assert result.exit_code == 0, result.output


def test_every_column_is_documented() -> None:
    documentation = (Path(__file__).parents[2] / "docs" / "manifest.md").read_text()
    told = CliRunner().invoke(app, ["manifest", "import", "--help"], env={"TERMINAL_WIDTH": "200"}).output
    for column in COLUMNS:
        assert f"`{column}`" in documentation
        assert column in told


def test_every_field_of_the_contract_has_a_column() -> None:
    fields = {name for message in (pb.FlightFacts, pb.ManifestPassenger) for name in message.DESCRIPTOR.fields_by_name}
    assert fields | {"flight_id"} == {column.removesuffix("_minutes") for column in COLUMNS}
