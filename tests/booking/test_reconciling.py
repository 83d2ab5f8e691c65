"""The reconciler applies the payment service's state if an event was lost."""

from __future__ import annotations

from datetime import timedelta

from skyhigh.booking.v1 import booking_service_pb2 as pb
from skyhigh.payment.v1 import payment_service_pb2 as payment

from booking_service.peers import Peers
from booking_service.reconciling import Payments
from booking_service.settings import BookingSettings
from services.reconciler import Comparison, Reconciler
from tests.booking.agency import Agency, Customer, state_of
from tests.conftest import World
from tests.waiting import eventually


class Answering:
    """A payment service with one given intent."""

    def __init__(self, intent: payment.PaymentIntent) -> None:
        self.intent = intent

    async def payment(self, intent_id: object) -> payment.PaymentIntent:
        """Returns the given intent."""
        assert str(intent_id) == self.intent.intent_id
        return self.intent


async def look(agency: Agency, comparison: Comparison) -> None:
    await Reconciler(agency.pool, [comparison], interval=timedelta(), tell=lambda: None).look(comparison)


async def seen_by(comparison: Comparison, booking: pb.Booking) -> bool:
    """Returns whether a full round of the comparison reads the booking."""
    after = ""
    while True:
        batch = await comparison.find(after, 10)
        if booking.booking_id in batch.subjects:
            return True
        if not (after := batch.after):
            return False


async def test_a_late_payment_with_lost_event_confirms(agency: Agency, customer: Customer) -> None:
    booking = await customer.brought_to("FAILED")
    intent = payment.PaymentIntent(
        intent_id=booking.payment_intent_id,
        reference=f"booking/{booking.booking_id}",
        state=payment.PaymentIntent.SUCCEEDED,
        amount=booking.total,
        attempts=1,
    )
    payments = Payments(agency.pool, Answering(intent))  # type: ignore[arg-type]
    waits, _ = payments.comparisons()
    assert await seen_by(waits, booking)
    assert await payments.compare(booking.booking_id)
    assert await payments.compare(booking.booking_id) is False, "once is enough"
    assert state_of(await customer.becomes(booking, "CONFIRMED")) == "CONFIRMED"
    assert not await seen_by(waits, booking)


async def test_a_refund_with_lost_event_is_recorded(world: World, agency: Agency, customer: Customer) -> None:
    booking = await customer.brought_to("CONFIRMED")
    await customer.cancel(booking, reason="CHANGED_MIND")

    async def refunded() -> bool:
        return (await agency.row(booking))["refund_time"] is not None

    await eventually(refunded)
    # As if the event had been lost.
    await agency.database.execute("UPDATE bookings SET refund_time = NULL WHERE booking_id = $1", booking.booking_id)
    peers = Peers(world.settings_of(BookingSettings, **agency.variables))
    try:
        _, refunds = Payments(agency.pool, peers).comparisons()
        assert await seen_by(refunds, booking)
        await look(agency, refunds)
    finally:
        await peers.close()
    assert await refunded()
    assert not await seen_by(refunds, booking)


async def test_a_booking_that_ended_long_ago_is_skipped(agency: Agency, customer: Customer) -> None:
    booking = await customer.brought_to("FAILED")
    waits, _ = Payments(agency.pool, Answering(payment.PaymentIntent())).comparisons()  # type: ignore[arg-type]
    assert await seen_by(waits, booking)
    await agency.set_back(booking, update_time=timedelta(days=1, minutes=1))
    assert not await seen_by(waits, booking)
