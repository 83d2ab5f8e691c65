-- Which days of the schedule are in the table of flights, by the edition of the schedule: a new edition adds to days that
-- the one before has filled. Any number of processes fill days side by side, each day one of them at a time.
CREATE TABLE schedule_rolls (
    -- As the airports of departure count it.
    day           date NOT NULL,
    edition       text NOT NULL CHECK (edition ~ '^[0-9a-f]{16}$'),
    -- Until then nobody else begins with the day; who works on it moves it on, and who dies lets it lapse.
    lease_end     timestamptz NOT NULL DEFAULT statement_timestamp(),
    complete_time timestamptz,
    PRIMARY KEY (edition, day)
) WITH (fillfactor = 70);
