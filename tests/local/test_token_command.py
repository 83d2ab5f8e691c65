"""`skyhigh token`: its output, and its messages about invalid arguments."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet
from typer.testing import CliRunner

from operations.__main__ import app
from tests.dates import flight_id

FLIGHT = flight_id()


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns a home without a stack: tokens need only its keys."""
    monkeypatch.setenv("SKYHIGH_HOME", str(tmp_path))
    return tmp_path


def claims_of(home: Path, *arguments: str) -> dict[str, Any]:
    """Returns the claims of the printed token after a check of its signature."""
    result = CliRunner().invoke(app, ["token", *arguments])
    assert result.exit_code == 0, result.output
    (token,) = result.stdout.splitlines()
    keys = KeySet.import_key_set(json.loads((home / "keys" / "jwks.json").read_text()))
    decoded = jwt.decode(token, keys, algorithms=["ES256"])
    return dict(decoded.claims)


@pytest.mark.parametrize("role", ["agent", "operations", "service", "customer"])
def test_a_role_gets_a_token_for_this_stack(home: Path, role: str) -> None:
    claims = claims_of(home, "--role", role, "--sub", "ada", "--ttl-seconds", "60")
    assert (claims["iss"], claims["aud"]) == ("https://skyhigh.example/demo", "skyhigh")
    assert (claims["role"], claims["sub"]) == (role, "ada")
    assert claims["exp"] - claims["iat"] == 60
    assert abs(claims["iat"] - time.time()) < 30


def test_a_passenger_session_names_its_passengers(home: Path) -> None:
    claims = claims_of(
        home,
        *("--role", "passenger", "--pnr", "XK4T7Q"),
        *("--passenger", f"p1:{FLIGHT}", "--passenger", f"p2:{FLIGHT}:BUSINESS:ADULT+INFT+WCHR"),
    )
    assert (claims["role"], claims["sub"]) == ("passenger", "XK4T7Q")
    assert claims["passengers"] == [
        {"id": "p1", "flight": FLIGHT, "cabin": "ECONOMY", "type": "ADULT", "ssr": []},
        {"id": "p2", "flight": FLIGHT, "cabin": "BUSINESS", "type": "ADULT", "ssr": ["INFT", "WCHR"]},
    ]


def test_the_private_keys_are_their_owners_alone_and_not_in_the_jwks(home: Path) -> None:
    claims_of(home, "--role", "agent")
    for name in ("token_key.json", "session_key.json"):
        assert (home / "keys" / name).stat().st_mode & 0o777 == 0o600
    for_all, for_sessions = json.loads((home / "keys" / "jwks.json").read_text())["keys"]
    assert "d" not in for_all
    assert "d" not in for_sessions
    assert "skyhigh_roles" not in for_all
    assert for_sessions["skyhigh_roles"] == ["passenger", "customer"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ([], "--role"),
        (["--role", "pilot"], "--role"),
        (["--role", "agent", "--sub", "a b"], "--sub"),
        (["--role", "agent", "--sub", ""], "--sub"),
        (["--role", "agent", "--pnr", "XK4T7Q"], "--pnr"),
        (["--role", "agent", "--passenger", f"p1:{FLIGHT}"], "--passenger"),
        (["--role", "agent", "--ttl-seconds", "0"], "--ttl-seconds"),
        (["--role", "passenger", "--passenger", f"p1:{FLIGHT}"], "--pnr"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--sub", "ada"], "--sub"),
        (["--role", "passenger", "--pnr", "XK4T70", "--passenger", f"p1:{FLIGHT}"], "XK4T70"),
        (["--role", "passenger", "--pnr", "4K4T7Q", "--passenger", f"p1:{FLIGHT}"], "4K4T7Q"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", "p1"], "ID:FLIGHT"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", f"p 1:{FLIGHT}"], "ID 'p 1'"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", "p1:S"], "FLIGHT 'S'"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", f"p1:{FLIGHT}:COACH"], "CABIN 'COACH'"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", f"p1:{FLIGHT}::PET"], "TYPE 'PET'"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", f"p1:{FLIGHT}::ADULT+dog"], "'dog'"),
        (["--role", "passenger", "--pnr", "XK4T7Q", "--passenger", f"p1:{FLIGHT}:::"], "ID:FLIGHT"),
    ],
)
def test_what_is_wrong_is_named(arguments: list[str], named: str) -> None:
    result = CliRunner().invoke(app, ["token", *arguments], env={"TERMINAL_WIDTH": "200"})
    assert result.exit_code == 2
    assert named in result.stderr
    assert result.stdout == ""


def test_help_shows_the_default_subject() -> None:
    # Rich takes text in brackets, such as `[default: demo]`, for markup and does not print it.
    help_text = CliRunner().invoke(app, ["token", "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"}).output
    assert "Default: demo." in help_text
