"""Who may call which method of the payment service; a method without a row is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from services.auth import Access, Effect, Role, allow

P, C, A, S, ANYBODY = Role.PASSENGER, Role.CUSTOMER, Role.AGENT, Role.SERVICE, Role.ANYBODY

POLICY: Final[Mapping[str, Access]] = {
    "CreatePaymentIntent": allow(S, effect=Effect.WRITE),
    "CancelPaymentIntent": allow(S, effect=Effect.WRITE),
    "RefundPayment": allow(A, S, effect=Effect.WRITE),
    "GetPaymentIntent": allow(P, C, A, S, effect=Effect.READ, owned=True),
    # A service passes a customer's code on. An agent never types one.
    "SubmitPaymentCode": allow(P, C, S, effect=Effect.WRITE, owned=True),
    # The provider has no token of ours; its signature is looked at instead.
    "ReceiveWebhook": allow(ANYBODY, effect=Effect.WRITE),
}
