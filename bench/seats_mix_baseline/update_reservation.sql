\set flight random(1, :flights)
\set seat random(1, 180)
SELECT move(:flight, :seat);
