-- The baseline of the SEATS mix: an airline on bare tables, as one would write it for a benchmark. No holds, no ledger, no
-- repeats, no events; a seat is somebody's by a unique index. Names and statements are ours, the six transactions and
-- their weights are those of the SEATS benchmark.
CREATE TABLE airports (airport integer PRIMARY KEY, name text NOT NULL, latitude real NOT NULL, longitude real NOT NULL);
CREATE TABLE flights (
    flight integer PRIMARY KEY, origin integer NOT NULL, destination integer NOT NULL, departure timestamptz NOT NULL,
    seats_left integer NOT NULL CHECK (seats_left >= 0), price integer NOT NULL
) WITH (fillfactor = 60);
CREATE INDEX flights_of_route ON flights (origin, destination, departure);
CREATE TABLE customers (
    customer integer PRIMARY KEY, balance integer NOT NULL, changes integer NOT NULL, email text NOT NULL
) WITH (fillfactor = 70);
CREATE TABLE frequent_flyers (
    customer integer NOT NULL, airline integer NOT NULL, miles integer NOT NULL, PRIMARY KEY (customer, airline)
) WITH (fillfactor = 70);
CREATE TABLE reservations (
    reservation bigserial PRIMARY KEY, customer integer NOT NULL, flight integer NOT NULL, seat integer NOT NULL,
    price integer NOT NULL, UNIQUE (flight, seat), UNIQUE (customer, flight)
);
INSERT INTO airports SELECT n, 'airport ' || n, random() * 180 - 90, random() * 360 - 180 FROM generate_series(1, 96) AS n;
INSERT INTO flights
SELECT n, n % 96 + 1, (n / 96 + n) % 96 + 1, now() + n * interval '5 min', 180, 10000 + n
FROM generate_series(1, :flights) AS n;
INSERT INTO customers SELECT n, 0, 0, 'c' || n || '@passengers.example' FROM generate_series(1, :customers) AS n;
INSERT INTO frequent_flyers SELECT n, 1, 0 FROM generate_series(1, :customers) AS n;
INSERT INTO reservations (customer, flight, seat, price)
SELECT n, (n - 1) % :flights + 1, (n - 1) / :flights + 1, 10000 FROM generate_series(1, :reservations) AS n;
UPDATE flights SET seats_left = seats_left - (SELECT count(*) FROM reservations WHERE reservations.flight = flights.flight);

-- A seat that another transaction takes at the same moment is no error of the benchmark's.
CREATE FUNCTION move(of_flight integer, to_seat integer) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    UPDATE reservations SET seat = to_seat
    WHERE reservation = (SELECT reservation FROM reservations WHERE flight = of_flight ORDER BY random() LIMIT 1);
    RETURN FOUND;
EXCEPTION WHEN unique_violation THEN
    RETURN false;
END $$;
VACUUM ANALYZE;
