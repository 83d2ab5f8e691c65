"""`skyhigh dlq`: the dead-lettered messages of a service, in `<service>.dead`."""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from operations.event_bodies import readable
from operations.local_stack import address_of
from operations.terminal import fail, print_json_line

if TYPE_CHECKING:
    from aio_pika.abc import AbstractChannel, AbstractIncomingMessage, AbstractQueue

CONNECT_TIMEOUT_SECONDS: Final = 5
CONFIRM_TIMEOUT_SECONDS: Final = 10
POLL_SECONDS: Final = 0.05
# Headers about past failures, ours and the broker's. A replay leaves them out, so that the message has all its tries
# again.
TRACES: Final = ("x-failures", "x-reason", "x-queue", "x-delivery-count", "x-death", "x-first-death", "x-last-death")
# The broker's reason for a message that it delivered too often, because each consumer ended without acknowledging it.
DELIVERY_LIMIT: Final = "delivery_limit"

dlq = typer.Typer(help="Messages that a service could not apply.", no_args_is_help=True)

Service = Annotated[str, typer.Argument(metavar="SERVICE", help="Name of the service, such as seat.")]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead-lettered message: its event, the queue that it came from, and the reason."""

    message: AbstractIncomingMessage
    event_id: str
    queue: str | None
    """None if no header names it; then the message cannot be replayed."""
    routing_key: str
    reason: str
    failures: int

    @classmethod
    def of(cls, message: AbstractIncomingMessage) -> DeadLetter:
        """Reads the headers that the service added, or else those of the broker."""
        headers = message.headers
        deaths = headers.get("x-death")
        # The broker puts the newest entry first.
        death: dict[str, Any] = deaths[0] if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict) else {}
        keys = death.get("routing-keys")
        queue = headers.get("x-queue") or death.get("queue")
        routing_key = headers.get("x-routing-key") or (keys[0] if isinstance(keys, list) and keys else "")
        return cls(
            message=message,
            event_id=message.message_id or "",
            queue=str(queue) if queue else None,
            routing_key=str(routing_key or message.routing_key or ""),
            # `x-reason` may be an earlier error of a handler. If the message then reached the delivery limit, that is
            # the reason.
            reason=str(death["reason"] if death.get("reason") == DELIVERY_LIMIT else headers.get("x-reason", "")),
            failures=int(str(headers.get("x-failures", 0))),
        )

    @property
    def identity(self) -> tuple[str, str | None]:
        """The event and its queue, because one event may be dead-lettered in several queues.

        A message without an id is identified by its routing key and body.
        """
        event = self.event_id or f"{self.routing_key} {hashlib.sha256(self.message.body).hexdigest()}"
        return event, self.queue

    def print(self) -> None:
        """Prints it as one JSON line."""
        print_json_line(
            id=self.event_id,
            queue=self.queue,
            key=self.routing_key,
            failures=self.failures,
            reason=self.reason,
            body=readable(self.routing_key, self.message.body),
        )


def register(app: typer.Typer) -> None:
    """Adds this group of commands."""
    app.add_typer(dlq, name="dlq")


@dlq.command("list")
def list_() -> None:
    """Print the number of dead-lettered messages of each service."""
    asyncio.run(_list(address_of("SKYHIGH_AMQP_URL")))


@dlq.command()
def show(
    service: Service,
    count: Annotated[int, typer.Option("--count", "-n", min=1, metavar="N", help="Maximum number of messages.")] = 20,
) -> None:
    """Print a service's dead-lettered messages as JSON lines, oldest first. They stay in the queue."""
    asyncio.run(_show(address_of("SKYHIGH_AMQP_URL"), _known(service), count))


@dlq.command()
def replay(
    service: Service,
    event_id: Annotated[str | None, typer.Option("--id", metavar="EVENT_ID", help="Replay only this event.")] = None,
    all_: Annotated[bool, typer.Option("--all", help="Replay all messages.")] = False,
) -> None:
    """Send dead-lettered messages back to their original queues, with all tries again.

    A service applies an event once, even if it is replayed several times.
    """
    if (event_id is None) is not all_:
        raise typer.BadParameter("give exactly one of them", param_hint="--id / --all")
    asyncio.run(_replay(address_of("SKYHIGH_AMQP_URL"), _known(service), event_id))


def _known(service: str) -> str:
    names = _services()
    return (
        service if service in names else fail(f"there is no service {service!r}; the services are {', '.join(names)}")
    )


def _services() -> list[str]:
    from deploy.local.services import SERVICES

    return [service.name for service in SERVICES]


async def _list(amqp_url: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("SERVICE")
    table.add_column("DEAD", justify="right")
    for service in _services():
        async with _dead_queue(amqp_url, service) as (_, queue):
            dead = (queue.declaration_result.message_count or 0) if queue is not None else 0
        table.add_row(service, f"[red]{dead}[/]" if dead else "0")
    Console().print(table)


async def _show(amqp_url: str, service: str, count: int) -> None:
    # A consumer has to take messages to read them, and the broker puts returned messages behind those that were not
    # taken. So all messages are taken. Each is returned by itself, because a quorum queue does not keep the order of
    # messages that are returned together.
    taken: list[AbstractIncomingMessage] = []
    async with _dead_queue(amqp_url, service) as (channel, queue):
        try:
            while (message := await _next(queue)) is not None:
                taken.append(message)
                if len(taken) <= count:
                    DeadLetter.of(message).print()
        finally:
            await _put_back(taken)
            if queue is not None:
                await _returned(channel, queue.name, len(taken))


async def _replay(amqp_url: str, service: str, event_id: str | None) -> None:
    sent: set[tuple[str, str | None]] = set()
    kept: list[AbstractIncomingMessage] = []
    async with _dead_queue(amqp_url, service) as (channel, queue):
        try:
            while (message := await _next(queue)) is not None:
                letter = DeadLetter.of(message)
                # A message that fails again during the replay comes back. It is not sent twice: that would never end.
                chosen = event_id in (None, letter.event_id) and letter.identity not in sent
                if chosen and await _send_back(channel, letter):
                    sent.add(letter.identity)
                else:
                    kept.append(message)
        finally:
            await _put_back(kept)
    if event_id is not None and not sent:
        fail(f"no dead-lettered message of {service} with the id {event_id} was replayed")
    if event_id is None and kept:
        fail(f"{len(kept)} messages of {service} could not be replayed")
    print(f"{len(sent)} replayed")


async def _send_back(channel: AbstractChannel, letter: DeadLetter) -> bool:
    """Publishes a copy to the message's queue, then acknowledges the message.

    The acknowledgement waits for the broker's confirm, so that the event is never lost. Returns False, and prints why,
    if the queue is unknown or no longer exists.
    """
    import aio_pika
    from aio_pika.exceptions import DeliveryError

    from services import amqp

    if letter.queue is None:
        print(f"{letter.event_id}: its headers do not name its queue", file=sys.stderr)
        return False
    headers = {name: value for name, value in letter.message.headers.items() if not name.startswith(TRACES)}
    copy = aio_pika.Message(
        letter.message.body,
        message_id=letter.message.message_id,
        content_type=letter.message.content_type,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        headers={**headers, "x-routing-key": letter.routing_key},
    )
    dead = await channel.get_exchange(amqp.DEAD, ensure=False)
    try:
        await dead.publish(copy, routing_key=letter.queue, mandatory=True, timeout=CONFIRM_TIMEOUT_SECONDS)
    except DeliveryError:
        print(f"{letter.event_id}: the queue {letter.queue} no longer exists", file=sys.stderr)
        return False
    await letter.message.ack()
    print(f"{letter.event_id} {letter.routing_key} → {letter.queue}")
    return True


@asynccontextmanager
async def _dead_queue(amqp_url: str, service: str) -> AsyncIterator[tuple[AbstractChannel, AbstractQueue | None]]:
    """Yields a channel and the service's dead-letter queue.

    The queue is None if the service has not declared it. Ends the command if the broker is unavailable.
    """
    import aio_pika
    from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity

    from services.inbox import dead_queue

    try:
        connection = await aio_pika.connect(
            amqp_url, timeout=CONNECT_TIMEOUT_SECONDS, client_properties={"connection_name": "skyhigh dlq"}
        )
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            try:
                queue = await channel.declare_queue(dead_queue(service), passive=True)
            except ChannelNotFoundEntity:
                queue = None
            yield channel, queue
    except (AMQPError, OSError, TimeoutError) as error:
        fail(f"the broker is unreachable: {error or repr(error)}")


async def _next(queue: AbstractQueue | None) -> AbstractIncomingMessage | None:
    return await queue.get(fail=False, timeout=CONFIRM_TIMEOUT_SECONDS) if queue is not None else None


async def _returned(channel: AbstractChannel, name: str, count: int) -> None:
    """Waits until the broker has returned so many messages.

    It returns those that it has not processed when the connection closes, in any order.
    """
    async with asyncio.timeout(CONFIRM_TIMEOUT_SECONDS):
        while True:
            queue = await channel.declare_queue(name, passive=True)
            if (queue.declaration_result.message_count or 0) >= count:
                return
            await asyncio.sleep(POLL_SECONDS)


async def _put_back(messages: list[AbstractIncomingMessage]) -> None:
    for message in messages:
        await message.nack(requeue=True)
