\set flight random(1, :flights)
\set customer random(1, :customers)
\set seat random(1, 180)
BEGIN;
SELECT seats_left, price FROM flights WHERE flight = :flight;
SELECT balance FROM customers WHERE customer = :customer;
WITH made AS (
    INSERT INTO reservations (customer, flight, seat, price) VALUES (:customer, :flight, :seat, 10000)
    ON CONFLICT DO NOTHING RETURNING flight
)
UPDATE flights SET seats_left = seats_left - 1 FROM made WHERE flights.flight = made.flight;
UPDATE customers SET changes = changes + 1 WHERE customer = :customer;
UPDATE frequent_flyers SET miles = miles + 1000 WHERE customer = :customer AND airline = 1;
COMMIT;
