-- Whom the rules for people keep off a seat. Seats that were known before are taken for plain ones: what is missing
-- here the seat service's refusal makes up for.
ALTER TABLE seats
    ADD COLUMN exit_row boolean NOT NULL DEFAULT false,
    ADD COLUMN infant_allowed boolean NOT NULL DEFAULT true,
    -- When it was last matched, given, or found gone: what is told of the time before is old.
    ADD COLUMN touch_time timestamptz,
    -- Freed, and wanted by an entry whose uncertain claim is still being judged: given to nobody younger before.
    ADD COLUMN kept boolean NOT NULL DEFAULT false,
    -- When a kept seat was told to be offered to the waitlist alone; NULL where anybody may take it.
    ADD COLUMN offer_time timestamptz;
CREATE INDEX seats_kept ON seats (flight_id) WHERE kept;

-- Whether the matched seat may be gone already: a look at the map, or a late event, told of it.
ALTER TABLE entries
    ADD COLUMN uncertain boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT only_a_match_is_uncertain CHECK (NOT uncertain OR claim_id IS NOT NULL);
-- What matching reads: who waits and is matched with nothing, or with what may be gone; in order.
CREATE INDEX entries_to_match ON entries (flight_id, number) WHERE state = 'WAITING' AND (claim_id IS NULL OR uncertain);
DROP INDEX entries_unmatched;
