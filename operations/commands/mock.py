"""`skyhigh mock`: changes how the mocks behave, for example lets them fail."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from enum import StrEnum
from http.client import HTTPException
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from operations.local_stack import address_of
from operations.terminal import fail

TIMEOUT_SECONDS: Final = 5
WEIGHT: Final = "SKYHIGH_MOCK_WEIGHT_CONTROL_URL"
PROVIDER: Final = "SKYHIGH_MOCK_PROVIDER_URL"
MAIL: Final = "SKYHIGH_MOCK_MAIL_URL"

mock = typer.Typer(help="The mocks: scales, payment provider, mail server.", no_args_is_help=True)
weight = typer.Typer(help="The scales.", no_args_is_help=True)
provider = typer.Typer(help="The payment provider.", no_args_is_help=True)
mail = typer.Typer(help="The mail server.", no_args_is_help=True)

Count = Annotated[int, typer.Argument(min=0, metavar="N")]
Seconds = Annotated[float, typer.Argument(min=0, metavar="SECONDS")]


def _switch(text: str) -> tuple[str, object]:
    """Parses NAME=VALUE. A value that is no JSON is taken as text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise typer.BadParameter(f"{text!r} is not NAME=VALUE")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


def _count_or_all(text: str) -> int | bool:
    """Parses a count; returns True for `all`."""
    if text == "all":
        return True
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a count nor `all`")
    return int(text)


class Forgery(StrEnum):
    """The ways to forge a webhook."""

    UNSIGNED = "unsigned"
    WRONG_KEY = "wrong_key"
    ALTERED_BODY = "altered_body"
    STALE = "stale"


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    mock.add_typer(weight, name="weight")
    mock.add_typer(provider, name="provider")
    mock.add_typer(mail, name="mail")
    app.add_typer(mock, name="mock")


@mock.command("normal")
def all_normal() -> None:
    """Reset all mocks to normal behaviour."""
    for variable in (WEIGHT, PROVIDER, MAIL):
        _ask(variable, "DELETE", "/behaviour")
    print("normal")


@weight.command("show")
def weight_show() -> None:
    """Print the switches of the scales."""
    _print(_ask(WEIGHT, "GET", "/behaviour"))


@weight.command("normal")
def weight_normal() -> None:
    """Reset the scales: they measure the declared weights."""
    _print(_ask(WEIGHT, "DELETE", "/behaviour"))


@weight.command("down")
def weight_down() -> None:
    """Respond with UNAVAILABLE."""
    _turn(WEIGHT, mode="down")


@weight.command("hang")
def weight_hang() -> None:
    """Never respond."""
    _turn(WEIGHT, mode="hang")


@weight.command("slow")
def weight_slow(seconds: Seconds) -> None:
    """Respond after SECONDS."""
    _turn(WEIGHT, slow_seconds=seconds)


@weight.command("offset", context_settings={"ignore_unknown_options": True})
def weight_offset(grams: Annotated[int, typer.Argument(metavar="GRAMS")]) -> None:
    """Add GRAMS to the weight of each bag; a negative number subtracts."""
    _turn(WEIGHT, offset_grams=grams)


@provider.command("show")
def provider_show() -> None:
    """Print the switches of the provider."""
    _print(_ask(PROVIDER, "GET", "/behaviour"))


@provider.command("normal")
def provider_normal() -> None:
    """Reset the provider: it decides and sends webhooks at once."""
    _print(_ask(PROVIDER, "DELETE", "/behaviour"))


@provider.command("charges")
def provider_charges() -> None:
    """Print all charges and refunds that it made, as JSON lines."""
    made = _ask(PROVIDER, "GET", "/charges")
    for entry in [*made["charges"], *made["refunds"]]:
        print(json.dumps(entry))


@provider.command("set")
def provider_set(
    switches: Annotated[list[Any], typer.Argument(parser=_switch, metavar="NAME=VALUE…", show_default=False)],
) -> None:
    """Set switches that `show` prints, such as `set reorder=3 forge=stale`."""
    _turn(PROVIDER, **dict(switches))


@provider.command("down")
def provider_down() -> None:
    """Respond with 503 to every request."""
    _turn(PROVIDER, down=True)


@provider.command("failure-rate")
def provider_failure_rate(rate: Annotated[float, typer.Argument(min=0, max=1, metavar="RATE")]) -> None:
    """Decline this share, 0 to 1, of charges with other codes than 00000 and 99999."""
    _turn(PROVIDER, failure_rate=rate)


@provider.command("lose-answers")
def provider_lose_answers(count: Count) -> None:
    """Make the next N charges, but close the connection instead of responding."""
    _turn(PROVIDER, lose_answers=count)


@provider.command("answer-late")
def provider_answer_late(seconds: Seconds) -> None:
    """Make charges at once, but respond after SECONDS."""
    _turn(PROVIDER, answer_delay_seconds=seconds)


@provider.command("decide-late")
def provider_decide_late(seconds: Seconds) -> None:
    """Decide charges after SECONDS."""
    _turn(PROVIDER, decision_delay_seconds=seconds)


@provider.command("delay")
def provider_delay(seconds: Seconds) -> None:
    """Send webhooks after SECONDS."""
    _turn(PROVIDER, webhook_delay_seconds=seconds)


@provider.command("drop")
def provider_drop() -> None:
    """Send no webhooks."""
    _turn(PROVIDER, drop_webhooks=True)


@provider.command("duplicate")
def provider_duplicate(count: Count) -> None:
    """Send each webhook N additional times."""
    _turn(PROVIDER, duplicate=count)


@provider.command("reorder")
def provider_reorder(count: Count) -> None:
    """Collect N webhooks, then send them in reverse order."""
    _turn(PROVIDER, reorder=count)


@provider.command("forge")
def provider_forge(how: Forgery) -> None:
    """Send a forged webhook before each real one."""
    _turn(PROVIDER, forge=how.value)


@provider.command("wrong-amount")
def provider_wrong_amount() -> None:
    """Send webhooks with a wrong amount."""
    _turn(PROVIDER, wrong_amount=True)


@mail.command("list")
def mail_list(
    to: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Only mails to this address.")] = None,
) -> None:
    """Print the accepted mails, oldest first."""
    for letter in _ask(MAIL, "GET", "/mails" if to is None else f"/mails?to={quote(to)}"):
        print(f"{letter['id']:>5}  {letter['time']}  {', '.join(letter['to'])}  {letter['subject']}")


@mail.command("show")
def mail_show(number: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Print one mail."""
    letter = next((letter for letter in _ask(MAIL, "GET", "/mails") if letter["id"] == number), None)
    if letter is None:
        fail(f"there is no mail {number}")
    print(f"From: {letter['from']}\nTo: {', '.join(letter['to'])}\nSubject: {letter['subject']}\n")
    print(letter["text"].rstrip())


@mail.command("clear")
def mail_clear() -> None:
    """Delete all mails."""
    _ask(MAIL, "DELETE", "/mails")


@mail.command("refuse")
def mail_refuse(count: Annotated[Any, typer.Argument(parser=_count_or_all, metavar="N|all")]) -> None:
    """Refuse the next N mails, or all, with a temporary error."""
    _turn(MAIL, refuse=count)


@mail.command("normal")
def mail_normal() -> None:
    """Reset the mail server: it accepts every mail."""
    _print(_ask(MAIL, "DELETE", "/behaviour"))


def _turn(variable: str, **switches: object) -> None:
    _print(_ask(variable, "PUT", "/behaviour", switches))


def _print(behaviour: dict[str, Any]) -> None:
    print("  ".join(f"{name}={json.dumps(value)}" for name, value in behaviour.items()))


def _ask(variable: str, method: str, path: str, body: dict[str, object] | None = None) -> Any:
    url = address_of(variable).rstrip("/") + path
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, method=method, data=data)  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            fail(f"the mock refused the request: {_reason(error)}")
    except (OSError, HTTPException) as error:
        fail(f"the mock at {url} is unreachable: {error}")
    except ValueError as error:
        fail(f"{variable}: there is no mock at {url}: {error}")


def _reason(refusal: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(refusal)["error"])
    except (ValueError, TypeError, KeyError):
        return str(refusal)
