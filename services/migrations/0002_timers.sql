-- What has to happen at a time, whatever process is alive then: deadlines, and the steps of what spans services.

CREATE TABLE timers (
    -- What to do, and about which row of the service.
    name       text NOT NULL,
    subject    text NOT NULL,
    due_time   timestamptz NOT NULL,
    -- When it may be taken next: the due time at first, then the end of a lease or of a pause after a failure.
    try_time   timestamptz NOT NULL,
    tries      integer NOT NULL DEFAULT 0 CHECK (tries >= 0),
    last_error text,
    fire_time  timestamptz,
    PRIMARY KEY (name, subject),
    CONSTRAINT timer_fires_never_early CHECK (fire_time >= due_time)
) WITH (fillfactor = 70);
CREATE INDEX timers_due ON timers (try_time) WHERE fire_time IS NULL;
CREATE INDEX timers_fired ON timers (fire_time) WHERE fire_time IS NOT NULL;

-- Notes of applied events are forgotten after a while.
CREATE INDEX inbox_age ON inbox USING brin (receive_time);
