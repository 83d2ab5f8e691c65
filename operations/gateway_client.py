"""A JSON client of the gateway, as a mobile app is one. The journeys use it."""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

from operations.connections import context_for

CALL_TIMEOUT_SECONDS: Final = 10


class GatewayUnavailable(Exception):
    """The gateway did not respond, or its response is unusable.

    A response is unusable if its body is not a JSON object, or if it is a download whose status is not 200.
    """


@dataclass(frozen=True, slots=True)
class Answer:
    """A response of the gateway."""

    status: int
    body: dict[str, Any]
    milliseconds: float

    @property
    def reason(self) -> str:
        """The `reason` of the error response; empty if the body has none."""
        reasons = (detail.get("reason") for detail in self.body.get("details", []) if isinstance(detail, dict))
        return next((str(reason) for reason in reasons if reason), "")

    def __str__(self) -> str:
        return f"HTTP {self.status} {self.reason or json.dumps(self.body)[:300]}"


@dataclass(frozen=True, slots=True)
class Gateway:
    """A client of the gateway with one token; without a token it is an anonymous caller."""

    url: str
    token: str = ""

    async def get(self, path: str) -> Answer:
        """Sends a GET request."""
        return await asyncio.to_thread(self._json, "GET", path, None)

    async def send(self, path: str, body: Mapping[str, Any], *, method: str = "POST", key: str | None = None) -> Answer:
        """Sends a mutation with a new `requestId`, or with `key` as `Idempotency-Key`."""
        if key is None:
            return await asyncio.to_thread(self._json, method, path, {**body, "requestId": str(uuid4())})
        return await asyncio.to_thread(self._json, method, path, body, {"idempotency-key": key})

    async def log_in(self, pnr: str, last_name: str) -> Answer:
        """Opens a passenger session; the response has its token."""
        return await asyncio.to_thread(self._json, "POST", "/v1/sessions", {"pnr": pnr, "lastName": last_name})

    async def download(self, path: str) -> bytes:
        """Returns the bytes at this path. Raises GatewayUnavailable for any status but 200."""
        status, content, _ = await asyncio.to_thread(self._call, "GET", path, None)
        if status != 200:
            raise GatewayUnavailable(f"GET {path}: HTTP {status} {content[:200]!r}")
        return content

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        status, content, milliseconds = self._call(method, path, body, headers)
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise GatewayUnavailable(
                f"{method} {path}: HTTP {status}, and the body is not a JSON object: {content[:200]!r}"
            )
        return Answer(status, answer, milliseconds)

    def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, bytes, float]:
        # The scheme is http or https: the callers that create a Gateway check its URL.
        request = urllib.request.Request(  # noqa: S310
            self.url + path,
            method=method,
            data=json.dumps(body).encode() if body is not None else None,
            headers={"content-type": "application/json", **(headers or {})}
            | ({"authorization": f"Bearer {self.token}"} if self.token else {}),
        )
        began = time.perf_counter()
        try:
            context = context_for(self.url)
            with urllib.request.urlopen(request, timeout=CALL_TIMEOUT_SECONDS, context=context) as response:  # noqa: S310
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read()
        except (OSError, TimeoutError) as error:
            raise GatewayUnavailable(f"{method} {path}: the gateway at {self.url} is unreachable: {error}") from error
        return status, content, (time.perf_counter() - began) * 1000
