-- The newest of the waitlist's changes of mind that is known here, so that one that was overtaken changes nothing.
ALTER TABLE flights ADD COLUMN waitlist_revision bigint NOT NULL DEFAULT 0;
