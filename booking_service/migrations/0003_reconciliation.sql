-- What waits for the payment service: money that may still come, and money that is on its way back.
CREATE INDEX bookings_awaiting_payment ON bookings (update_time, booking_id)
    WHERE payment_intent_id IS NOT NULL AND pay_time IS NULL;
CREATE INDEX bookings_awaiting_refund ON bookings (update_time, booking_id)
    WHERE refund_reason IS NOT NULL AND refund_time IS NULL;
