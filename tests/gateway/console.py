"""Runs the commands of a page and compares their output with the page.

Curl is emulated. In the output that the page shows, `…` stands for an omission, and numbers and ids stand for any
others.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import httpx

# Only ends a command that hangs, such as a loop whose condition never holds.
COMMAND_SECONDS: Final = 180
ROOT: Final = Path(__file__).resolve().parents[2]
LEFT_OUT: Final = "…"
# What differs at each run: ids, numbers (except a status alone in its line), and omissions.
VARYING: Final = re.compile(
    r"(…|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\b[0-9a-f]{32}\b|(?<!\d)(?!^\d{3}$)\d+)", re.M
)
FORM: Final = {"content-type": "application/x-www-form-urlencoded"}


@dataclass(frozen=True, slots=True)
class Example:
    """A command of a page, and the output that the page shows."""

    command: str
    printed: str


def examples(page: str) -> Iterator[Example]:
    """Yields all examples of a page in their order."""
    for block in re.findall(r"^```console\n(.*?)^```$", page, re.M | re.S):
        for example in re.split(r"^\$ ", block, flags=re.M)[1:]:
            command = re.match(r"(?:[^\n]*\\\n)*[^\n]*\n", example)
            assert command is not None
            yield Example(command[0], example[command.end() :])


@dataclass
class Shell:
    """Runs commands like a reader who runs them from top to bottom."""

    http: httpx.AsyncClient
    variables: dict[str, str]
    remembered: dict[str, str]
    """The response fields that later commands need, and the page's variable for each."""

    async def run(self, command: str) -> tuple[int, str]:
        """Returns the last status, and the output that curl would print."""
        status, printed = await self.send(curl_options(self._words(command)))
        for name, variable in self.remembered.items():
            if found := re.search(rf'"{name}":"([^"]+)"', printed):
                self.variables[variable] = found[1]
        return status, printed

    async def send(self, options: argparse.Namespace) -> tuple[int, str]:
        """Returns the last status, and the output that curl would print."""
        status, printed = 0, ""
        for url in urls(options.url):
            status, head, body = await self._send(options, url)
            printed += (head if options.include else "") + ("" if options.output else body)
            printed += options.write_out.replace("%{http_code}", str(status)).replace(r"\n", "\n")
        return status, printed

    async def _send(self, options: argparse.Namespace, url: str) -> tuple[int, str, str]:
        headers = FORM if options.data is not None else {}
        headers = headers | dict(header.split(": ", 1) for header in options.header)
        method = options.request or ("GET" if options.data is None else "POST")
        async with self.http.stream(method, url, headers=headers, content=options.data) as answer:
            body = b""
            with suppress(TimeoutError):
                async with asyncio.timeout(options.max_time):
                    async for chunk in answer.aiter_raw():
                        body += chunk
        lines = [f"HTTP/1.1 {answer.status_code} {answer.reason_phrase}"]
        lines += [f"{name}: {value}" for name, value in answer.headers.items()]
        return answer.status_code, "\n".join([*lines, "", ""]), body.decode()

    def _words(self, command: str) -> list[str]:
        """Lets the shell expand quotes and variables; returns curl's arguments."""
        script = 'curl() { printf "%s\\0" "$@"; }\n' + command
        environment = {**os.environ, **self.variables}
        told = subprocess.run(["/bin/sh", "-eu", "-c", script], env=environment, capture_output=True, check=True)
        return told.stdout.decode().split("\0")[:-1]


class Terminal:
    """Runs the commands of a page in one bash, so that later ones see the variables of earlier ones."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        """The working folder of the commands. Its `.venv` is that of this process."""
        self._bash: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        (self.folder / ".venv").symlink_to(sys.prefix)
        programs = self.folder / "programs"
        programs.mkdir()
        path = os.environ["PATH"]
        if shutil.which("curl") is None:
            (programs / "curl").write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m {__name__} "$@"\n')
            (programs / "curl").chmod(0o755)
            path = f"{programs}:{path}"
        self._bash = await asyncio.create_subprocess_exec(
            "bash",
            cwd=self.folder,
            # A terminal of 300 columns: tables are neither cut nor wrapped.
            env={**os.environ, "PATH": path, "COLUMNS": "300"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=16 * 2**20,
            start_new_session=True,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._bash is not None
        with suppress(ProcessLookupError):
            os.killpg(self._bash.pid, signal.SIGKILL)
        await self._bash.wait()

    async def run(self, command: str) -> tuple[int, str]:
        """Returns the exit code and the whole output."""
        assert self._bash is not None
        assert self._bash.stdin is not None
        assert self._bash.stdout is not None
        end = f"end-{secrets.token_hex(8)}"
        # The command comes from a here-document, because a program could read from bash's own input.
        script = f'eval "$(cat <<\'{end}\'\n{command.rstrip()}\n{end}\n)" </dev/null\necho "$?{end}"\n'
        self._bash.stdin.write(script.encode())
        try:
            async with asyncio.timeout(COMMAND_SECONDS):
                printed = (await self._bash.stdout.readuntil(f"{end}\n".encode())).decode().removesuffix(f"{end}\n")
        except TimeoutError:
            raise AssertionError(f"it did not end within {COMMAND_SECONDS} s: {command}") from None
        code = re.search(r"\d+$", printed)
        assert code is not None
        return int(code[0]), printed[: code.start()]


def curl_options(words: list[str]) -> argparse.Namespace:
    """Parses the options of curl that the pages use."""
    parser = argparse.ArgumentParser(prog="curl", add_help=False, allow_abbrev=False)
    for flag in ("-s", "-N", "-f"):
        parser.add_argument(flag, action="store_true")
    parser.add_argument("-i", dest="include", action="store_true")
    parser.add_argument("-X", dest="request")
    parser.add_argument("-H", dest="header", action="append", default=[])
    parser.add_argument("-d", dest="data")
    parser.add_argument("-o", dest="output", choices=["/dev/null"])
    parser.add_argument("-w", dest="write_out", default="")
    parser.add_argument("-m", dest="max_time", type=float)
    parser.add_argument("url")
    return parser.parse_args(words)


def urls(url: str) -> list[str]:
    """Expands `…#[1-3]` to three times the same URL, because a fragment is not sent."""
    numbered = re.fullmatch(r"(.*)#\[(\d+)-(\d+)\]", url)
    return [url] if numbered is None else [numbered[1]] * (int(numbered[3]) - int(numbered[2]) + 1)


def difference(shown: str, status: int, printed: str) -> str | None:
    """Returns how the output differs from the page; None if it does not.

    Without a head in `shown` the status must be 200.
    """
    (shown_head, shown_body), (head, body) = _parts(shown), _parts(printed)
    if shown_head:
        if shown_head[0] != head[0]:
            return f"{head[0]} instead of {shown_head[0]}"
        for header in shown_head[1:]:
            if header != LEFT_OUT and not any(re.fullmatch(like(header), each) for each in head):
                return f"no {header!r} in {head}"
    elif status != 200 and str(status) not in shown_body:
        return f"status {status}"
    if shown_body.startswith("{"):
        return _json_difference(json.loads(readable(shown_body)), json.loads(body), "")
    return None if re.fullmatch(like(shown_body.rstrip("\n")), body.rstrip("\n"), re.S) else repr(body)


def _parts(printed: str) -> tuple[list[str], str]:
    if not printed.startswith("HTTP/"):
        return [], printed
    head, _, body = printed.partition("\n\n")
    return head.splitlines(), body


def _json_difference(shown: Any, real: Any, path: str) -> str | None:
    """Compares strings; of numbers only that both are numbers."""
    unlike, pairs = False, list[tuple[Any, Any, str]]()
    match shown, real:
        case dict(), dict():
            unlike = shown.keys() != real.keys() and LEFT_OUT not in shown
            pairs = [(shown[key], real.get(key), f"{path}.{key}") for key in shown if key != LEFT_OUT]
        case list(), list():
            items = [item for item in shown if item != LEFT_OUT]
            unlike = len(real) <= len(items) if len(items) < len(shown) else len(real) != len(items)
            pairs = [(*pair, f"{path}[{index}]") for index, pair in enumerate(zip(items, real, strict=False))]
        case str(), str():
            unlike = not re.fullmatch(like(shown), real)
        case _:
            unlike = type(shown) is not type(real)
    if unlike:
        return f"{path or 'the body'} is {real!r}"
    return next(filter(None, (_json_difference(*pair) for pair in pairs)), None)


def like(shown: str) -> str:
    """Returns a pattern for the text in which the varying parts match any value."""

    def pattern(part: str) -> str:
        if part == LEFT_OUT:
            return ".*"
        return r"\d+" if part.isdigit() else f"[0-9a-f-]{{{len(part)}}}"

    # The parts at odd indexes vary, the others do not.
    parts = VARYING.split(shown)
    parts[::2], parts[1::2] = map(re.escape, parts[::2]), map(pattern, parts[1::2])
    return "".join(parts)


def readable(shown: str) -> str:
    """Makes valid JSON of a page's JSON, in which a lone `…` stands for more fields or items."""
    within, parts = list[str](), list[str]()
    for token in re.findall(r'"(?:\\.|[^"\\])*"|[\[\]{}]|…|[^"\[\]{}…]+', shown):
        if token in "[{":
            within.append(token)
        elif token in "]}":
            within.pop()
        parts.append({"[": f'"{LEFT_OUT}"', "{": f'"{LEFT_OUT}": 0'}[within[-1]] if token == LEFT_OUT else token)
    return "".join(parts)


async def curl(arguments: list[str]) -> int:
    """Prints what curl would print, for machines without curl; returns the exit code."""
    async with httpx.AsyncClient(timeout=20, headers={"accept": "*/*", "accept-encoding": "identity"}) as http:
        options = curl_options(arguments)
        status, printed = await Shell(http, {}, {}).send(options)
    if options.f and status >= 400:
        return 22
    with suppress(BrokenPipeError):
        sys.stdout.write(printed)
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(curl(sys.argv[1:])))
