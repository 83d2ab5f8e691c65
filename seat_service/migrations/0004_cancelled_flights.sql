-- Flights that will not leave, whether they have seats here or not; none comes back. A table of its own, because nearly
-- all of the look-ups that each hold and each confirmation makes find nothing in it.
CREATE TABLE cancelled_flights (
    flight_id   text PRIMARY KEY,
    reason      text NOT NULL,
    cancel_time timestamptz NOT NULL,
    -- When it was closed here: nothing is held or confirmed on it after that.
    close_time  timestamptz NOT NULL DEFAULT statement_timestamp()
);
