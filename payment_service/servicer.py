"""The gRPC methods of the payment service.

Each method translates its request, calls the domain code and translates the result. The business rules are in the
modules that it calls.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from google.api import httpbody_pb2
from skyhigh.payment.v1 import payment_service_pb2 as pb
from skyhigh.payment.v1.payment_service_pb2_grpc import PaymentServiceServicer

from payment_service import card_numbers, intents, refunds, webhooks
from payment_service.intents import Cause, OnIntent
from payment_service.settings import Attempts
from payment_service.verdicts import CHARGE
from payment_service.webhooks import Delivery, Signatures
from services import db, money
from services.auth import Role
from services.db import Conn, Pool
from services.running_call import running
from services.timers import set_timer
from services.transitions import Transitions

Context = Any


class PaymentServicer(PaymentServiceServicer):
    """The servicer of PaymentService; its proto documents each RPC and its errors."""

    def __init__(self, *, pool: Pool, transitions: Transitions, signatures: Signatures, attempts: Attempts) -> None:
        self._pool = pool
        self._transitions = transitions
        self._signatures = signatures
        self._attempts = attempts

    async def CreatePaymentIntent(self, request: pb.CreatePaymentIntentRequest, context: Context) -> pb.PaymentIntent:
        card_numbers.refuse(request.reference, request.owner)
        amount = money.amount_of(request.amount)
        cause = Cause(running().principal.name, "CREATED")

        async def create(conn: Conn) -> pb.PaymentIntent:
            return await intents.create(
                conn,
                reference=request.reference,
                owner=request.owner,
                amount=amount,
                max_attempts=self._attempts.most,
                cause=cause,
            )

        return await self._transitions.run(running().request_key(request), pb.PaymentIntent, create)

    async def CancelPaymentIntent(self, request: pb.CancelPaymentIntentRequest, context: Context) -> pb.PaymentIntent:
        card_numbers.refuse(request.reason)
        on = _on_intent(request.intent_id, reason=request.reason or "CANCELLED")

        async def cancel(conn: Conn) -> pb.PaymentIntent:
            return await intents.cancel(conn, on)

        return await self._transitions.run(running().request_key(request), pb.PaymentIntent, cancel)

    async def RefundPayment(self, request: pb.RefundPaymentRequest, context: Context) -> pb.PaymentIntent:
        card_numbers.refuse(request.reason)
        on = _on_intent(request.intent_id, reason=request.reason or "REFUNDED")
        total = (
            money.amount_of(request.total_refund, field="total_refund") if request.HasField("total_refund") else None
        )
        by_agent = running().principal.role is Role.AGENT

        async def refund(conn: Conn) -> pb.PaymentIntent:
            intent, charge_key, units = await intents.begin_refund(conn, on, total=total, by_agent=by_agent)
            if charge_key is not None:
                await refunds.request(
                    conn, charge_key, intent_id=on.intent_id, reason=on.cause.reason, total_minor_units=units
                )
            return intent

        return await self._transitions.run(running().request_key(request), pb.PaymentIntent, refund)

    async def GetPaymentIntent(self, request: pb.GetPaymentIntentRequest, context: Context) -> pb.PaymentIntent:
        async with db.transaction(self._pool) as conn:
            return await intents.find(conn, UUID(request.intent_id), owner=_owner())

    async def SubmitPaymentCode(self, request: pb.SubmitPaymentCodeRequest, context: Context) -> pb.PaymentIntent:
        on = _on_intent(request.intent_id, reason="SUBMITTED")

        async def submit(conn: Conn) -> pb.PaymentIntent:
            intent = await intents.submit(conn, on, payment_code=request.payment_code, max_attempts=self._attempts.most)
            await set_timer(conn, CHARGE, request.intent_id)
            return intent

        return await self._transitions.run(running().request_key(request), pb.PaymentIntent, submit)

    async def ReceiveWebhook(self, request: httpbody_pb2.HttpBody, context: Context) -> pb.ReceiveWebhookResponse:
        call = running()
        event_id = self._signatures.check(
            Delivery(
                body=request.data,
                event_id=call.header("webhook-id"),
                timestamp=call.header("webhook-timestamp"),
                signature=call.header("webhook-signature"),
            )
        )
        event = webhooks.read(request.data)

        async def take(conn: Conn) -> pb.ReceiveWebhookResponse:
            await webhooks.take(conn, event_id, event, attempts=self._attempts)
            return pb.ReceiveWebhookResponse()

        return await self._transitions.run(None, pb.ReceiveWebhookResponse, take)


def _owner() -> str | None:
    principal = running().principal
    return None if principal.acts_for_others else principal.name


def _on_intent(intent_id: str, *, reason: str) -> OnIntent:
    return OnIntent(intent_id=UUID(intent_id), owner=_owner(), cause=Cause(running().principal.name, reason))
