"""Wraps the I/O clients in the process that dies.

These are the clients of Postgres, RabbitMQ, Redis, gRPC, HTTP and SMTP. A process changes the world only through its
I/O. Therefore it is enough to end it before and after each I/O, to kill it at every moment that makes a difference
(SQLite's "the Nth I/O fails"). The clients are wrapped from outside: the services run their production code.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import ContextVar
from dataclasses import asdict, dataclass, field, replace
from functools import wraps
from pathlib import Path
from typing import Any, Final

import aio_pika.channel
import aio_pika.exchange
import aio_pika.message
import aio_pika.queue
import aiohttp
import aiosmtplib
import asyncpg
import grpc
import redis.asyncio

from services import app
from tests.system.kill_points.steps import KILLED, ORDERS_VARIABLE, Io, Nth, Orders, Point, Side, Step

ROOT: Final = Path(__file__).resolve().parents[3]
PRODUCT: Final = re.compile(rf"{re.escape(str(ROOT))}/((?:services|gateway|\w+_service)/[\w/]+)\.py")
# All I/O passes through these modules, so they do not identify a transaction or a task.
PASSED_OVER: Final = frozenset({"services/app", "services/db"})
FUNCTIONS: Final = 3
WORDS: Final = 90
CALLS: Final = "call"
CHANGES: Final = re.compile(r"\b(INSERT|UPDATE|DELETE|FOR NO KEY UPDATE|FOR UPDATE|FOR SHARE|FOR KEY SHARE)\b")
NOTHING: Final = re.compile(r"(INSERT 0|UPDATE|DELETE|SELECT) 0")
ENDS: Final = re.compile(r"\s*(COMMIT|ROLLBACK)\b")

_origin: ContextVar[str] = ContextVar("_origin", default=CALLS)
_loop_task: ContextVar[asyncio.Task[Any] | None] = ContextVar("_loop_task", default=None)


@dataclass
class Counting:
    """The I/Os of a process since it got its orders."""

    orders: Orders
    inode: int
    """The inode of the orders' file; new orders come in a new file."""
    seen: Counter[Step] = field(default_factory=Counter)
    working: dict[str, bool] = field(default_factory=dict)
    """Whether a background task has found work in its running transaction, by task."""

    def begins(self, step: Step, *, only_after: bool = False) -> Begun:
        """Records an I/O before it begins, so that the record is there when the process has ended."""
        self.seen[step] += 1
        begun = Begun(self.orders, replace(step, number=self.seen[step]), self.seen.total())
        with open(self.orders.record, "ab", buffering=0) as record:
            record.write(json.dumps(asdict(Io(begun.step, only_after))).encode() + b"\n")
        return begun


@dataclass(frozen=True, slots=True)
class Begun:
    """An I/O that counts."""

    orders: Orders
    step: Step
    number: int
    """Its number among all that count."""

    def end(self, side: Side) -> None:
        """Ends the process if this is its point: without a clean-up, as SIGKILL does."""
        if self.orders.point == Point(self.step, side) or self.orders.nth == Nth(self.number, side):
            os._exit(KILLED)


class _Given:
    """The orders of this process, if any."""

    def __init__(self) -> None:
        self._counting: Counting | None = None

    def counting(self) -> Counting | None:
        """Returns the counter for the I/O that is about to begin.

        Returns None without orders, and for other work.
        """
        path = Path(os.environ[ORDERS_VARIABLE])
        try:
            inode = path.stat().st_ino
            if self._counting is None or self._counting.inode != inode:
                self._counting = Counting(Orders.read(path), inode)
        except FileNotFoundError:
            self._counting = None
        if self._counting is None or _origin.get() not in self._counting.orders.origins:
            return None
        return self._counting


_given: Final = _Given()


def _functions() -> Iterator[str]:
    """Yields the services' functions that wait for this I/O, the innermost first."""
    frame = sys._getframe(1)
    while frame is not None:
        found = PRODUCT.fullmatch(frame.f_code.co_filename)
        if found is not None and found[1] not in PASSED_OVER:
            yield f"{found[1]}:{frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]


def _step(port: str, what: str) -> Step:
    functions = [function for _, function in zip(range(FUNCTIONS), _functions(), strict=False)]
    return Step(_origin.get(), port, " ".join(what.split())[:WORDS], " < ".join(functions), 0)


async def _io(port: str, what: str, ask: Callable[[], Awaitable[Any]], *, in_transaction: bool = False) -> Any:
    """Executes an I/O, and ends the process before or after it if its orders say so."""
    counting = _given.counting()
    if counting is None:
        return await ask()
    step = _step(port, what)
    is_poll = (
        # A poll by a background loop, such as a look whether a queue still exists, changes nothing and does not count.
        port in ("postgres", "amqp")
        and not counting.orders.polls
        and _loop_task.get() is asyncio.current_task()
        and not counting.working.get(step.origin)
    )
    if is_poll:
        answer = await ask()
        if CHANGES.search(what) and _found(answer):
            counting.working[step.origin] = in_transaction
            counting.begins(step, only_after=True).end(Side.AFTER)
        return answer
    begun = counting.begins(step)
    begun.end(Side.BEFORE)
    try:
        answer = await ask()
    except asyncio.CancelledError:
        # The call was cancelled, so no response has arrived.
        raise
    except BaseException:
        begun.end(Side.AFTER)
        raise
    begun.end(Side.AFTER)
    if ENDS.match(what):
        counting.working[step.origin] = False
    return answer


def _found(answer: Any) -> bool:
    return NOTHING.fullmatch(answer) is None if isinstance(answer, str) else bool(answer)


def _wrap(owner: Any, name: str, port: str, what: Callable[..., str]) -> None:
    original = getattr(owner, name)

    @wraps(original)
    async def wrapped(self: Any, *args: Any, **more: Any) -> Any:
        return await _io(port, what(*args, **more), lambda: original(self, *args, **more))

    setattr(owner, name, wrapped)


def _wrap_connection(name: str) -> None:
    original = getattr(asyncpg.Connection, name)

    @wraps(original)
    async def wrapped(self: Any, query: str, *args: Any, **more: Any) -> Any:
        return await _io(
            "postgres", query, lambda: original(self, query, *args, **more), in_transaction=self.is_in_transaction()
        )

    setattr(asyncpg.Connection, name, wrapped)


class _Calls(grpc.aio.UnaryUnaryClientInterceptor):
    """Counts calls to other services."""

    async def intercept_unary_unary(
        self, continuation: Callable[[Any, Any], Awaitable[Any]], client_call_details: Any, request: Any
    ) -> Any:
        """Returns the call after it has ended, successfully or not."""

        async def ask() -> Any:
            call = await continuation(client_call_details, request)
            await call.code()
            return call

        method = client_call_details.method
        return await _io("grpc", method.decode() if isinstance(method, bytes) else method, ask)


def _wrap_channel(name: str) -> None:
    original = getattr(grpc.aio, name)

    @wraps(original)
    def opened(*args: Any, interceptors: Any = (), **more: Any) -> Any:
        return original(*args, interceptors=[*interceptors, _Calls()], **more)

    setattr(grpc.aio, name, opened)


def _name_background_work() -> None:
    original = app._forever

    async def forever(name: str, work: Callable[[], Awaitable[None]]) -> None:
        # Tasks that it starts inherit both.
        _origin.set(name)
        _loop_task.set(asyncio.current_task())
        await original(name, work)

    app._forever = forever


def install() -> None:
    """Wraps all clients, before the service is built."""
    for name in ("execute", "executemany", "fetch", "fetchrow", "fetchval"):
        _wrap_connection(name)
    _wrap(aio_pika.exchange.Exchange, "publish", "amqp", lambda *_, routing_key, **__: f"publish {routing_key}")
    _wrap(aio_pika.message.IncomingMessage, "ack", "amqp", lambda *_, **__: "ack")
    for owner, names in (
        (aio_pika.channel.Channel, ("declare_exchange", "declare_queue")),
        (aio_pika.queue.Queue, ("bind", "consume")),
    ):
        for name in names:
            _wrap(owner, name, "amqp", lambda *_, name=name, **__: name)
    _wrap(redis.asyncio.Redis, "execute_command", "redis", lambda command, *_, **__: str(command))
    _wrap(aiohttp.ClientSession, "_request", "http", lambda method, *_, **__: str(method))
    smtp = aiosmtplib.send
    aiosmtplib.send = lambda *args, **more: _io("smtp", "send", lambda: smtp(*args, **more))
    _wrap_channel("insecure_channel")
    _name_background_work()
