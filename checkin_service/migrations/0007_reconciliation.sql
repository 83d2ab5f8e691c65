-- What waits for the payment service: fees that may still be paid, and fees that are on their way back.
CREATE INDEX check_ins_awaiting_payment ON check_ins (update_time, checkin_id)
    WHERE payment_intent_id IS NOT NULL AND fee_pay_time IS NULL AND fee_refund_time IS NULL;
CREATE INDEX check_ins_awaiting_refund ON check_ins (update_time, checkin_id)
    WHERE (state = 'CANCELLED' OR fee_returned) AND fee_pay_time IS NOT NULL AND fee_refund_time IS NULL;
