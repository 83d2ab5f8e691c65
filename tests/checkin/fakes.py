"""Fakes of the payment service and the scales, for any order of events.

They keep the contract of their protos and do what a test tells them.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika
import grpc
from google.protobuf.message import Message
from google.type import money_pb2
from skyhigh.payment.v1 import events_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceServicer, add_PaymentServiceServicer_to_server
from skyhigh.weight.v1 import weight_service_pb2
from skyhigh.weight.v1.weight_service_pb2_grpc import WeightServiceServicer, add_WeightServiceServicer_to_server

from services import amqp
from services.errors import FailedPrecondition, NotFound, Refusal, Unavailable
from tests.waiting import eventually

State: Final = pb.PaymentIntent


class Fake:
    """A service that can be unavailable."""

    def __init__(self) -> None:
        self.away = False
        self.calls: list[str] = []

    async def _arrive(self, name: str, context: Any) -> None:
        self.calls.append(name)
        if self.away:
            await refuse(context, Unavailable())


async def refuse(context: Any, refusal: Refusal) -> None:
    """Ends a call with a refusal, as our services do."""
    details = refusal.status().SerializeToString()
    await context.abort(refusal.code, refusal.message, trailing_metadata=(("grpc-status-details-bin", details),))


@dataclass
class Intent:
    """A payment intent."""

    intent_id: UUID
    reference: str
    amount: money_pb2.Money
    owner: str
    state: int = State.REQUIRES_PAYMENT
    last_error: str = ""

    def message(self) -> pb.PaymentIntent:
        """Returns the intent as a message."""
        return pb.PaymentIntent(
            intent_id=str(self.intent_id),
            reference=self.reference,
            state=pb.PaymentIntent.State.ValueType(self.state),
            amount=self.amount,
            last_error=self.last_error,
            refunded=self.amount if self.state == State.REFUNDED else None,
        )


class Payments(Fake, PaymentServiceServicer):
    """The payment service. `succeed` and `fail` are the provider's verdicts."""

    def __init__(self) -> None:
        super().__init__()
        self.intents: dict[UUID, Intent] = {}

    def of(self, checkin_id: str) -> list[Intent]:
        """Returns the intents of a check-in, oldest first."""
        return [each for each in self.intents.values() if each.reference.startswith(f"checkin/{checkin_id}/")]

    def money_kept(self, checkin_id: str) -> int:
        """Counts the intents of a check-in that are paid and not refunded."""
        return sum(each.state == State.SUCCEEDED for each in self.of(checkin_id))

    def begin(self, intent_id: str) -> bool:
        """REQUIRES_PAYMENT or FAILED → PROCESSING; returns False in other states."""
        intent = self.intents[UUID(intent_id)]
        if intent.state not in (State.REQUIRES_PAYMENT, State.FAILED):
            return False
        intent.state = State.PROCESSING
        return True

    def succeed(self, intent_id: str) -> events_pb2.PaymentSucceeded | None:
        """PROCESSING or FAILED → SUCCEEDED; returns the event, or None in other states."""
        intent = self.intents[UUID(intent_id)]
        if intent.state not in (State.PROCESSING, State.FAILED):
            return None
        intent.state = State.SUCCEEDED
        return events_pb2.PaymentSucceeded(intent_id=intent_id, reference=intent.reference, amount=intent.amount)

    def fail(self, intent_id: str) -> events_pb2.PaymentFailed | None:
        """PROCESSING → FAILED; returns the event, or None in other states."""
        intent = self.intents[UUID(intent_id)]
        if intent.state != State.PROCESSING:
            return None
        intent.state, intent.last_error = State.FAILED, "DECLINED"
        return events_pb2.PaymentFailed(intent_id=intent_id, reference=intent.reference, error="DECLINED", attempts=3)

    async def CreatePaymentIntent(self, request: pb.CreatePaymentIntentRequest, context: Any) -> pb.PaymentIntent:
        await self._arrive("CreatePaymentIntent", context)
        intent = Intent(uuid4(), request.reference, request.amount, request.owner)
        self.intents[intent.intent_id] = intent
        return intent.message()

    async def GetPaymentIntent(self, request: pb.GetPaymentIntentRequest, context: Any) -> pb.PaymentIntent:
        await self._arrive("GetPaymentIntent", context)
        return (await self._found(request.intent_id, context)).message()

    async def CancelPaymentIntent(self, request: pb.CancelPaymentIntentRequest, context: Any) -> pb.PaymentIntent:
        await self._arrive("CancelPaymentIntent", context)
        intent = await self._found(request.intent_id, context)
        metadata = {"state": pb.PaymentIntent.State.Name(pb.PaymentIntent.State.ValueType(intent.state))}
        if intent.state == State.PROCESSING:
            await refuse(context, FailedPrecondition("PAYMENT_IN_PROGRESS", "an attempt runs", metadata=metadata))
        if intent.state in (State.SUCCEEDED, State.REFUNDING, State.REFUNDED):
            await refuse(context, FailedPrecondition("INTENT_PAID", "paid", metadata=metadata))
        intent.state = State.CANCELLED
        return intent.message()

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Any) -> pb.PaymentIntent:
        await self._arrive("RefundPayment", context)
        intent = await self._found(request.intent_id, context)
        if intent.state not in (State.SUCCEEDED, State.REFUNDING, State.REFUNDED):
            await refuse(context, FailedPrecondition("INTENT_NOT_PAID", "nothing to give back"))
        intent.state = State.REFUNDED
        return intent.message()

    async def _found(self, intent_id: str, context: Any) -> Intent:
        if UUID(intent_id) not in self.intents:
            await refuse(context, NotFound("INTENT_NOT_FOUND", "intent not found"))
        return self.intents[UUID(intent_id)]


class Scales(Fake, WeightServiceServicer):
    """The scales. They return the declared weights, unless a test sets others."""

    def __init__(self) -> None:
        super().__init__()
        self.measured: dict[int, int] = {}

    async def WeighBags(
        self, request: weight_service_pb2.WeighBagsRequest, context: Any
    ) -> weight_service_pb2.WeighBagsResponse:
        await self._arrive("WeighBags", context)
        return weight_service_pb2.WeighBagsResponse(
            measured_grams=[self.measured.get(grams, grams) for grams in request.declared_grams]
        )


@asynccontextmanager
async def serving(payments: Payments, scales: Scales) -> AsyncIterator[str]:
    """Serves both at one address within the block; yields the address."""
    server = grpc.aio.server()
    add_PaymentServiceServicer_to_server(payments, server)
    add_WeightServiceServicer_to_server(scales, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    await server.stop(None)


class Broker:
    """Publishes events as another service does.

    It opens a closed channel again: a test that blocks the event loop for longer than a heartbeat, such as one that
    runs a command, loses the connections of all fixtures that outlive it.
    """

    def __init__(self, amqp_url: str) -> None:
        self._amqp_url = amqp_url
        self._connections = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._exchange: aio_pika.abc.AbstractExchange | None = None
        self._channel: aio_pika.abc.AbstractChannel | None = None

    @classmethod
    @asynccontextmanager
    async def opened(cls, amqp_url: str) -> AsyncIterator[Broker]:
        """Connects for the duration of the block."""
        broker = cls(amqp_url)
        async with broker._connections:
            await broker._events()
            yield broker

    async def publish(self, routing_key: str, message: Message, *, event_id: UUID | None = None) -> UUID:
        """Publishes an event; returns its id."""
        event_id = event_id or uuid4()
        exchange = await self._events()
        await exchange.publish(
            aio_pika.Message(message.SerializeToString(), message_id=str(event_id)), routing_key=routing_key
        )
        return event_id

    async def _events(self) -> aio_pika.abc.AbstractExchange:
        async with self._opening:
            if self._exchange is None or self._channel is None or self._channel.is_closed:
                await self._connections.aclose()
                connection = await amqp.connect(self._amqp_url, name=f"tests {secrets.token_hex(4)}")
                await self._connections.enter_async_context(connection)
                self._channel = await connection.channel()
                self._exchange = await self._channel.get_exchange(amqp.EVENTS, ensure=False)
            return self._exchange

    async def tell(
        self,
        routing_key: str,
        message: Message,
        noted: Callable[[UUID], Awaitable[bool]],
    ) -> None:
        """Publishes an event each second until `noted` is true.

        The queue of a service that has just started may not exist yet.
        """
        event_id, again = uuid4(), 0.0

        async def heard() -> bool:
            nonlocal again
            if time.monotonic() >= again:
                await self.publish(routing_key, message, event_id=event_id)
                again = time.monotonic() + 1
            return await noted(event_id)

        await eventually(heard)


@dataclass(frozen=True)
class Others:
    """What check-in works with, apart from the seat service."""

    payments: Payments
    scales: Scales
    broker: Broker
    address: str
