-- A paid CANCELLED booking has a refund. 0002's comparison with a missing refund was NULL, which a CHECK accepts.
ALTER TABLE bookings
    DROP CONSTRAINT state_has_what_it_needs,
    ADD CONSTRAINT state_has_what_it_needs CHECK (
        CASE state
            WHEN 'CREATED' THEN hold_id IS NULL AND payment_intent_id IS NULL
            WHEN 'SEATS_RESERVED' THEN hold_id IS NOT NULL AND payment_intent_id IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PENDING' THEN hold_id IS NOT NULL AND pay_time IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PROCESSING' THEN
                hold_id IS NOT NULL AND payment_intent_id IS NOT NULL AND confirm_time IS NULL AND refund_reason IS NULL
            WHEN 'CONFIRMED' THEN pay_time IS NOT NULL AND confirm_time IS NOT NULL
                AND (refund_reason IS NULL OR refund_minor_units < total_minor_units)
            WHEN 'FAILED' THEN confirm_time IS NULL AND last_error <> ''
            WHEN 'EXPIRED' THEN hold_id IS NOT NULL AND confirm_time IS NULL
            WHEN 'CANCELLED' THEN pay_time IS NULL OR refund_minor_units IS NOT DISTINCT FROM total_minor_units
        END);
