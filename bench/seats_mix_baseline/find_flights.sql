\set origin random(1, 96)
\set first random(1, 3)
SELECT flights.flight, flights.departure, flights.seats_left, flights.price, here.name, there.name
FROM flights JOIN airports AS here ON here.airport = flights.origin JOIN airports AS there ON there.airport = flights.destination
WHERE flights.origin = :origin AND flights.departure BETWEEN now() + :first * interval '1 day' AND now() + (:first + 1) * interval '1 day'
ORDER BY flights.departure LIMIT 50;
