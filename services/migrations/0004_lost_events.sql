-- How far each comparison with another service has come: the processes of a service share its rounds.
CREATE TABLE reconciliations (
    name      text PRIMARY KEY,
    -- Where the next look begins; empty for the beginning of a round.
    after     text NOT NULL DEFAULT '',
    look_time timestamptz NOT NULL DEFAULT '-infinity'
) WITH (fillfactor = 50);

-- When an event may be published next: one that no queue took goes to the end of the line.
ALTER TABLE outbox ADD COLUMN try_time timestamptz NOT NULL DEFAULT now();
CREATE INDEX outbox_to_publish ON outbox (try_time) WHERE publish_time IS NULL;
DROP INDEX outbox_unpublished;
