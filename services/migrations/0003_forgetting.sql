-- Old rows are deleted oldest first, a bounded batch at a time. For that their age needs an order: a BRIN index has none,
-- and returns all that came since the last vacuum.
CREATE INDEX idempotency_by_age ON idempotency (create_time);
DROP INDEX idempotency_age;
CREATE INDEX inbox_by_age ON inbox (receive_time);
DROP INDEX inbox_age;
