-- SEAT-18: checking in reads the check-ins of one hold, and not all of a flight that were ever cancelled.
CREATE INDEX check_ins_of_hold ON check_ins (hold_id) WHERE hold_id IS NOT NULL;

-- Forgotten oldest first, a bounded batch at a time; a row whose tries were all given back is the oldest.
CREATE INDEX login_tries_by_age ON login_tries (coalesce(tries[cardinality(tries)], '-infinity'));
