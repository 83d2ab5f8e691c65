-- Booked seats, one party for each locator, and fees at departure (CHK-1, CHK-7, CHK-9, docs/decisions/0037).

-- Whose a locator is. The primary key decides between a booking and an import that come at the same time.
CREATE TABLE locators (
    pnr     text PRIMARY KEY,
    -- The first 16 hexadecimal digits of the booking's id, with which its passenger ids begin; null: an imported party.
    booking text CHECK (booking ~ '^[0-9a-f]{16}$')
);

-- The booking whose confirmed seats the passenger has on this flight, as in `locators`; null without one.
ALTER TABLE passengers ADD COLUMN booking text CHECK (booking ~ '^[0-9a-f]{16}$');

-- Passengers of bookings that are known already: their ids are the booking's digits and a number.
UPDATE passengers SET booking = left(passenger_id, 16) WHERE passenger_id ~ '^[0-9a-f]{16}-[1-9]$';
INSERT INTO locators (pnr, booking) SELECT pnr, max(booking) FROM passengers GROUP BY pnr;

ALTER TABLE check_ins
    -- How long the deadline may wait for a payment that runs; null until it has to.
    ADD COLUMN payment_wait_end timestamptz,
    -- True once the fee is given back because the flight left without this check-in: nothing completes with it any more.
    ADD COLUMN fee_returned boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT completed_check_in_keeps_its_fee CHECK (state IN ('WAITING_FOR_PAYMENT', 'CANCELLED')
                                                           OR NOT fee_returned);

-- Sets the timer of a flight's departure. A trigger, and not the statements of the service: no writer can forget it.
CREATE FUNCTION set_departure_timer() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    INSERT INTO timers (name, subject, due_time, try_time)
    VALUES ('departure', NEW.flight_id, NEW.departure_time, NEW.departure_time)
    ON CONFLICT (name, subject) DO UPDATE
    SET due_time = excluded.due_time, try_time = excluded.try_time, tries = 0, last_error = NULL, fire_time = NULL;
    RETURN NULL;
END $$;
CREATE TRIGGER flights_get_a_departure_timer AFTER INSERT ON flights
    FOR EACH ROW EXECUTE FUNCTION set_departure_timer();
CREATE TRIGGER departure_timers_move AFTER UPDATE ON flights
    FOR EACH ROW WHEN (OLD.departure_time IS DISTINCT FROM NEW.departure_time)
    EXECUTE FUNCTION set_departure_timer();

INSERT INTO timers (name, subject, due_time, try_time)
SELECT 'departure', flight_id, departure_time, departure_time FROM flights
ON CONFLICT (name, subject) DO NOTHING;
