\set flight random(1, :flights)
BEGIN;
WITH gone AS (
    DELETE FROM reservations
    WHERE reservation = (SELECT reservation FROM reservations WHERE flight = :flight LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING flight, customer, price
), refunded AS (
    UPDATE customers SET balance = balance + gone.price, changes = changes + 1 FROM gone WHERE customers.customer = gone.customer
), lost AS (
    UPDATE frequent_flyers SET miles = miles - 10 FROM gone WHERE frequent_flyers.customer = gone.customer AND airline = 1
)
UPDATE flights SET seats_left = seats_left + 1 FROM gone WHERE flights.flight = gone.flight;
COMMIT;
