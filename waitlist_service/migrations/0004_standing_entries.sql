-- SEAT-18: who waits for a flight, or has an offer there, in order, however many entries it has had. An expression, and
-- not WHERE state IN (…): a statement that finds this index can't be planned with the index of all entries of a flight.
CREATE INDEX entries_standing ON entries ((CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END), number)
    WHERE (CASE WHEN state IN ('WAITING', 'OFFERED') THEN flight_id END) IS NOT NULL;
-- Matching reads who waits by that index, too.
DROP INDEX entries_to_match;
