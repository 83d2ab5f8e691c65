"""Money is conserved, as the clients and the payment provider saw it.

`skyhigh verify` adds up our own records. This check compares them with the provider's charges and refunds, with the
payment codes of the clients, and with the prices and refunds in their responses.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.system.checks.calls import BOOKING_CALLS, CHECK_IN_CALLS, INTENT_CALLS, minor_units, shown
from tests.system.checks.violation import Violation
from tests.system.history import History, Operation
from tests.system.truth import Provider, Truth

CHECK: Final = "money"
ALWAYS_FAILS: Final = "99999"
_PAID: Final = ("SUCCEEDED", "REFUNDING", "REFUNDED")


def check(history: History, truth: Truth) -> list[Violation]:
    """Returns charges and refunds that differ from what the clients saw."""
    found = [*_codes(history, truth), *_shown(history, truth)]
    if truth.provider is not None:
        found += _provider(truth, truth.provider)
    return found


def _codes(history: History, truth: Truth) -> Iterator[Violation]:
    """Only a code that a client entered causes a charge, and the code that always fails causes none."""
    typed: dict[str, list[Operation]] = defaultdict(list)
    for operation in history.of_calls("PayBooking"):
        booking = truth.booking.get(str(operation.request.get("booking_id", "")))
        if booking is not None and booking.payment_intent_id:
            typed[booking.payment_intent_id].append(operation)
    for operation in history.of_calls("SubmitPaymentCode"):
        typed[str(operation.request.get("intent_id", ""))].append(operation)
    players = {operation.principal for operation in history}
    for intent in truth.intents:
        if intent.owner not in players:
            continue
        taken = [row for row in truth.charges_of_intent.get(intent.intent_id, ()) if row.state == "SUCCEEDED"]
        if not taken and intent.state not in _PAID:
            continue
        codes = typed.get(intent.intent_id, [])
        if not codes:
            yield Violation(CHECK, f"{intent.reference} was paid without a SubmitPaymentCode or PayBooking call")
        elif all(each.request.get("payment_code") == ALWAYS_FAILS for each in codes):
            yield Violation(CHECK, f"{intent.reference} was paid with the code that always fails", codes[:2])


def _shown(history: History, truth: Truth) -> Iterator[Violation]:
    """Prices and fees in responses were charged; refunds in responses were refunded."""
    for operation in history:
        texts = [
            *(text for _, booking in shown(operation, BOOKING_CALLS) for text in _of_booking(booking, truth)),
            *(text for _, check_in in shown(operation, CHECK_IN_CALLS) for text in _of_check_in(check_in, truth)),
            *(text for _, intent in shown(operation, INTENT_CALLS) for text in _of_intent(intent, truth)),
        ]
        for text in dict.fromkeys(texts):
            yield Violation(CHECK, text, [operation])


def _of_booking(booking: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    row = truth.booking.get(str(booking.get("booking_id", "")))
    if row is None:
        # `acknowledged.py` reports a lost booking.
        return
    intent = truth.intent.get(str(booking.get("payment_intent_id", "")))
    total, refund = minor_units(booking.get("total")), minor_units(booking.get("refund"))
    if total != row.total_minor_units or (intent is not None and intent.minor_units != total):
        yield f"the price was shown as {total} cents, and {row.total_minor_units} were asked"
    fares = [minor_units(leg["fare"]) for leg in booking.get("flights", ()) if "fare" in leg]
    if fares and sum(fares) != total:
        yield f"the price is {total} cents, and the fares of its flights are {sum(fares)}"
    if booking.get("state") == "CONFIRMED" and (intent is None or intent.state not in _PAID):
        yield "a confirmed booking was never paid"
    if refund > (row.refund_minor_units or 0):
        yield f"{refund} cents were to be given back, {row.refund_minor_units or 0} are"
    if booking.get("refund_time") and (intent is None or (intent.refunded_minor_units or 0) < refund):
        yield f"{refund} cents were shown as given back, and were not"


def _of_check_in(check_in: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    fee = minor_units(check_in.get("fee"))
    if not fee:
        return
    intent = truth.intent.get(str(check_in.get("payment_intent_id", "")))
    if intent is None or intent.minor_units != fee:
        yield f"a fee of {fee} cents has no intent of that amount"
    elif check_in.get("state") == "COMPLETED" and intent.state not in _PAID:
        yield "a check-in was completed, and its fee was never paid"


def _of_intent(shown_intent: Mapping[str, Any], truth: Truth) -> Iterator[str]:
    intent = truth.intent.get(str(shown_intent.get("intent_id", "")))
    if intent is None:
        yield "a payment intent is not there"
    elif minor_units(shown_intent.get("amount")) != intent.minor_units or (
        minor_units(shown_intent.get("refunded")) > (intent.refunded_minor_units or 0)
    ):
        yield f"the amounts of {intent.reference} were shown otherwise"


def _provider(truth: Truth, provider: Provider) -> Iterator[Violation]:
    """The provider's charges and refunds are those in our records."""
    for text in (*_taken(truth, provider), *_given_back(truth, provider)):
        yield Violation(CHECK, text)


def _taken(truth: Truth, provider: Provider) -> Iterator[str]:
    known = {row.key: row for row in truth.charges}
    for key, (status, amount) in provider.charges.items():
        row = known.get(key)
        if row is None:
            if status == "succeeded":
                yield f"the provider took {amount} cents for {key}, which we do not know"
            continue
        if (status == "succeeded") != (row.state == "SUCCEEDED"):
            yield f"charge {key} is {status} at the provider, and {row.state} here"
        if status == "succeeded" and amount != truth.intent[row.intent_id].minor_units:
            yield f"the provider took {amount} cents for {truth.intent[row.intent_id].reference}"
    for row in truth.charges:
        if row.state == "SUCCEEDED" and row.key not in provider.charges:
            yield f"charge {row.key} succeeded, and the provider does not know it"


def _given_back(truth: Truth, provider: Provider) -> Iterator[str]:
    ours = {row.refund_key: row for row in truth.refunds}
    key_of = {charge_id: key for key, charge_id in provider.charge_ids.items()}
    given: dict[str, int] = defaultdict(int)
    for key, (charge_id, amount) in provider.refunds.items():
        given[key_of.get(charge_id, charge_id)] += amount
        refund = ours.get(key)
        if refund is None or (refund.minor_units is not None and refund.minor_units != amount):
            yield f"the provider gave {amount} cents back for {key}, and we asked for another refund"
    for key, amount in given.items():
        if key in provider.charges and amount > provider.charges[key][1]:
            yield f"the provider gave {amount} cents back of {provider.charges[key][1]} for {key}"
    for refund in truth.refunds:
        if refund.state == "SUCCEEDED" and refund.refund_key not in provider.refunds:
            yield f"refund {refund.refund_key} is done, and the provider does not know it"
