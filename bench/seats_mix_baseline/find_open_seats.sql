\set flight random(1, :flights)
SELECT flight, departure, seats_left, price FROM flights WHERE flight = :flight;
SELECT seat FROM generate_series(1, 180) AS seat
WHERE NOT EXISTS (SELECT FROM reservations WHERE reservations.flight = :flight AND reservations.seat = seat.seat);
