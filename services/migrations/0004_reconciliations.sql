-- How far each comparison with another service has come: the processes of a service share its rounds.
CREATE TABLE reconciliations (
    name      text PRIMARY KEY,
    -- Where the next look begins; empty for the beginning of a round.
    after     text NOT NULL DEFAULT '',
    look_time timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);
