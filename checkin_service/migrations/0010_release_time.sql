-- The time at which the seat service released the seat of a check-in. A seat that was released before the departure
-- cancels the check-in, even if check-in hears of it after the departure.
ALTER TABLE check_ins ADD COLUMN seat_release_time timestamptz;

-- The time of the decision of another service that cancelled the check-in: a released seat, a cancelled booking.
ALTER TABLE check_ins ADD COLUMN cancel_cause_time timestamptz CHECK (cancel_cause_time IS NULL OR state = 'CANCELLED');
