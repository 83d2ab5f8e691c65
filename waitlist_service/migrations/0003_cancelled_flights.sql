-- A flight that will not leave, also one that nobody ever waited for: its waitlist is closed for good.
ALTER TABLE flights
    ADD COLUMN cancel_time timestamptz,
    ADD COLUMN cancel_reason text,
    ADD CONSTRAINT cancellation_has_its_reason CHECK ((cancel_time IS NULL) = (cancel_reason IS NULL)),
    ADD CONSTRAINT nobody_waits_for_a_cancelled_flight CHECK (cancel_time IS NULL OR NOT open);
