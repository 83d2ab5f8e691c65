-- The time at which the seat service released the seat of a check-in. A seat that was released before the departure
-- cancels the check-in, even if check-in hears of it after the departure.
ALTER TABLE check_ins ADD COLUMN seat_release_time timestamptz;
