"""The compiled load client; one in Python would use as much CPU as the server."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from google.protobuf.message import Message

SOURCE: Final = Path(__file__).with_name("load.c")
MAGIC: Final = b"SKYLOAD1"
# 128 calls in flight keep two server processes busy without long queues.
CONNECTIONS: Final = 32
STREAMS: Final = 4
GRPC_OK: Final = "0"
HTTP_OK: Final = "200"


class CallFile:
    """Calls in the file format of the load client. Each path and token is written once."""

    def __init__(self) -> None:
        self._paths: dict[str, int] = {}
        self._authorizations: dict[str, int] = {}
        self._calls: list[bytes] = []

    def __len__(self) -> int:
        return len(self._calls)

    def add_grpc(self, method: str, request: Message, *, token: str = "") -> None:
        """Appends a unary call of a method such as `/skyhigh.seat.v1.SeatService/HoldSeat`."""
        message = request.SerializeToString()
        self._add(method, token, b"\0" + struct.pack(">I", len(message)) + message)

    def add_get(self, path: str, *, token: str = "") -> None:
        """Appends a GET request."""
        self._add(path, token, b"")

    def write(self, file: Path) -> Path:
        """Writes the file and returns its path."""
        with file.open("wb") as out:
            out.write(MAGIC)
            for texts in (self._paths, self._authorizations):
                out.write(struct.pack("<I", len(texts)))
                for text in texts:
                    out.write(_counted(text.encode()))
            out.write(struct.pack("<I", len(self._calls)))
            out.writelines(self._calls)
        return file

    def _add(self, path: str, token: str, body: bytes) -> None:
        authorization = f"Bearer {token}" if token else ""
        path_index = self._paths.setdefault(path, len(self._paths))
        token_index = self._authorizations.setdefault(authorization, len(self._authorizations))
        self._calls.append(struct.pack("<II", path_index, token_index) + _counted(body))


def _counted(text: bytes) -> bytes:
    return struct.pack("<I", len(text)) + text


@dataclass(frozen=True, slots=True)
class LoadResult:
    """The result of a run of the load client.

    `ok` counts the responses with grpc-status 0, or with status 200 if the calls were GET requests.
    """

    calls: int
    ok: int
    lost: int
    seconds: float
    answer_bytes: int
    grpc: dict[str, int]
    http: dict[str, int]
    latency_ms: dict[str, float]
    """p50, p95, p99 and p99.9."""

    @property
    def per_second(self) -> float:
        """The successful calls per second."""
        return self.ok / self.seconds if self.seconds > 0 else 0.0

    def failures(self) -> str:
        """Describes the failed calls; returns an empty string if there are none."""
        if self.ok == self.calls and not self.lost:
            return ""
        return f"{self.ok} of {self.calls} succeeded, {self.lost} lost; grpc-status {self.grpc}, HTTP {self.http}"


class LoadClient:
    """The load client: compiled once, then run for each turn."""

    def __init__(self, folder: Path) -> None:
        self._program = folder / "load"
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("bench: a C compiler is needed (Debian: gcc libc6-dev libnghttp2-dev)")
        command = [compiler, "-O2", "-Wall", "-Wextra", "-o", str(self._program), str(SOURCE), "-lnghttp2"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            raise SystemExit(f"bench: load.c does not compile (Debian: libnghttp2-dev)\n{built.stderr}")

    async def run(
        self,
        calls: Path,
        *,
        port: int,
        seconds: float,
        cycle: bool = False,
        calls_per_second: float | None = None,
    ) -> LoadResult:
        """Sends the calls to a port of 127.0.0.1; load.c describes the options.

        Raises RuntimeError if the client itself fails.
        """
        options = [f"--port={port}", f"--calls={calls}", f"--seconds={seconds}"]
        options += [f"--connections={CONNECTIONS}", f"--streams={STREAMS}"]
        options += ["--cycle"] if cycle else []
        options += [f"--rate={calls_per_second}"] if calls_per_second else []
        process = await asyncio.create_subprocess_exec(
            str(self._program), *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            output, complaint = await asyncio.wait_for(process.communicate(), seconds + 30)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            raise
        if process.returncode:
            raise RuntimeError(complaint.decode().strip())
        return _result(json.loads(output))


def _result(seen: dict[str, Any]) -> LoadResult:
    grpc: dict[str, int] = seen["grpc"]
    http: dict[str, int] = seen["http"]
    # The response to a GET has no grpc-status; the client counts that as 17.
    is_grpc = set(grpc) != {"17"}
    return LoadResult(
        calls=seen["calls"],
        ok=grpc.get(GRPC_OK, 0) if is_grpc else http.get(HTTP_OK, 0),
        lost=seen["lost"],
        seconds=seen["seconds"],
        answer_bytes=seen["bytes"],
        grpc=grpc,
        http=http,
        latency_ms=seen["latency_ms"],
    )
