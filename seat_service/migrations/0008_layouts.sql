-- The layouts that flights have been given, with the digest of each one's content when it was first used (SEAT-1).
-- Layouts that are in use already get their digest from the first process that starts.
CREATE TABLE layouts (
    layout_id      text        PRIMARY KEY,
    digest         text        CHECK (digest ~ '^[0-9a-f]{64}$'),
    first_use_time timestamptz NOT NULL DEFAULT now()
);
INSERT INTO layouts (layout_id) SELECT DISTINCT layout_id FROM flights;
