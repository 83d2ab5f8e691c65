\set flight random(1, :flights)
SELECT flight, departure, seats_left, price FROM flights WHERE flight = :flight;
SELECT seat FROM reservations WHERE flight = :flight;
