-- One hold of one free seat, in one statement and one transaction: the rows that HoldSeat writes, by the tables that
-- the migrations make. Client and turn choose the seat, so that no two transactions ever want the same one, and
-- consecutive holds are on different flights. (pgbench takes a colon in a text for a variable; hence 'agent bench'.)
\set n :n + 1
\set place :n * :clients + :client_id
\set flight :place % :flights
\set seat (:place / :flights) % 180
\set row :seat / 6 + 1
\set letter :seat % 6 + 1
WITH taken AS (
    UPDATE seats
    SET state = 'HELD', hold_id = gen_random_uuid(), version = version + 1, update_time = now()
    WHERE flight_id = 'P' || :flight::text AND seat_number = :row::text || substr('ABCDEF', :letter::int, 1)
      AND state = 'AVAILABLE'
    RETURNING flight_id, seat_number, version, hold_id
), held AS (
    INSERT INTO holds (hold_id, owner, purpose, ttl, extensions_left, create_time, expire_time)
    SELECT hold_id, 'passenger P' || :place::text, 'BOOKING', interval '15 min', 9, now(), now() + interval '15 min' FROM taken
), seated AS (
    INSERT INTO hold_seats (hold_id, flight_id, seat_number, passenger_id, owner)
    SELECT hold_id, flight_id, seat_number, 'P' || :place::text, 'passenger P' || :place::text FROM taken
), ledger AS (
    INSERT INTO seat_events
        (flight_id, seat_number, version, from_state, to_state, hold_id, actor, reason, request_id, event_time)
    SELECT flight_id, seat_number, version, 'AVAILABLE', 'HELD', hold_id, 'agent bench', 'HELD', gen_random_uuid(), now()
    FROM taken
)
INSERT INTO idempotency (principal, key, fingerprint, response)
SELECT 'agent bench', gen_random_uuid(), '\x00112233445566778899aabbccddeeff', convert_to(repeat('x', 110), 'UTF8')
FROM taken;
