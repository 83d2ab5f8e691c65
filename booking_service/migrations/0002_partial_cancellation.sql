-- A leg is cancelled for itself: one that has departed keeps its share of the fare (BKG-8).

ALTER TABLE booking_flights
    ADD COLUMN cancel_time timestamptz,
    ADD COLUMN cancel_reason text,
    -- Whether the leg can still be cancelled or flown: it is not cancelled, and its booking has not ended.
    ADD COLUMN live boolean NOT NULL DEFAULT true,
    ADD CONSTRAINT leg_cancellation_has_its_reason CHECK ((cancel_time IS NULL) = (cancel_reason IS NULL));
ALTER TABLE bookings
    -- How much of what was paid is given back, all cancellations together.
    ADD COLUMN refund_minor_units bigint;

UPDATE booking_flights SET cancel_time = bookings.cancel_time, cancel_reason = bookings.cancel_reason
FROM bookings WHERE bookings.booking_id = booking_flights.booking_id AND bookings.cancel_time IS NOT NULL;
UPDATE booking_flights SET live = false
FROM bookings WHERE bookings.booking_id = booking_flights.booking_id
  AND state IN ('FAILED', 'EXPIRED', 'CANCELLED');
UPDATE bookings SET refund_minor_units = total_minor_units WHERE refund_reason IS NOT NULL;

ALTER TABLE bookings
    ADD CONSTRAINT refund_has_its_amount CHECK (
        (refund_reason IS NULL) = (refund_minor_units IS NULL)
        AND (refund_minor_units IS NULL OR refund_minor_units BETWEEN 1 AND total_minor_units)),
    DROP CONSTRAINT state_has_what_it_needs,
    ADD CONSTRAINT state_has_what_it_needs CHECK (
        CASE state
            WHEN 'CREATED' THEN hold_id IS NULL AND payment_intent_id IS NULL
            WHEN 'SEATS_RESERVED' THEN hold_id IS NOT NULL AND payment_intent_id IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PENDING' THEN hold_id IS NOT NULL AND pay_time IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PROCESSING' THEN
                hold_id IS NOT NULL AND payment_intent_id IS NOT NULL AND confirm_time IS NULL AND refund_reason IS NULL
            -- Legs that were cancelled after another had departed were given back; the others' fares were not.
            WHEN 'CONFIRMED' THEN pay_time IS NOT NULL AND confirm_time IS NOT NULL
                AND (refund_reason IS NULL OR refund_minor_units < total_minor_units)
            WHEN 'FAILED' THEN confirm_time IS NULL AND last_error <> ''
            WHEN 'EXPIRED' THEN hold_id IS NOT NULL AND confirm_time IS NULL
            WHEN 'CANCELLED' THEN pay_time IS NULL OR refund_minor_units = total_minor_units
        END);

-- The history has a line for the cancellation of some legs: the booking stays CONFIRMED.
ALTER TABLE booking_events
    DROP CONSTRAINT legal_transition,
    ADD CONSTRAINT legal_transition CHECK (
        CASE to_state
            WHEN 'CREATED' THEN from_state IS NULL
            WHEN 'SEATS_RESERVED' THEN coalesce(from_state = 'CREATED', false)
            WHEN 'PAYMENT_PENDING' THEN coalesce(from_state = 'SEATS_RESERVED', false)
            WHEN 'PAYMENT_PROCESSING' THEN coalesce(from_state = 'PAYMENT_PENDING', false)
            WHEN 'CONFIRMED' THEN
                coalesce(from_state IN ('PAYMENT_PROCESSING', 'FAILED', 'EXPIRED', 'CONFIRMED'), false)
            WHEN 'FAILED' THEN coalesce(from_state IN ('CREATED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING'), false)
            WHEN 'EXPIRED' THEN
                coalesce(from_state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING'), false)
            WHEN 'CANCELLED' THEN
                coalesce(from_state IN ('SEATS_RESERVED', 'PAYMENT_PROCESSING', 'CONFIRMED'), false)
        END);

-- The cancellation of a flight reads its live bookings, never those that ended.
CREATE INDEX live_bookings_of_flight ON booking_flights (flight_id, booking_id) WHERE live;

CREATE FUNCTION legs_follow_booking() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    UPDATE booking_flights
    SET live = cancel_time IS NULL AND NEW.state NOT IN ('FAILED', 'EXPIRED', 'CANCELLED')
    WHERE booking_id = NEW.booking_id;
    RETURN NULL;
END $$;
CREATE TRIGGER legs_follow_booking AFTER UPDATE OF state ON bookings
    FOR EACH ROW
    WHEN ((OLD.state IN ('FAILED', 'EXPIRED', 'CANCELLED')) <> (NEW.state IN ('FAILED', 'EXPIRED', 'CANCELLED')))
    EXECUTE FUNCTION legs_follow_booking();
