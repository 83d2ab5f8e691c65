"""The roles that can call each method of the payment service.

A method without a row is refused.
"""

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
    # A service submits the code of its customer. An agent never submits a code.
    "SubmitPaymentCode": allow(P, C, S, effect=Effect.WRITE, owned=True),
    # The provider has no token of ours; its signature authenticates it.
    "ReceiveWebhook": allow(ANYBODY, effect=Effect.WRITE),
}
