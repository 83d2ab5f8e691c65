-- What others compare with the flights that they know to be cancelled.
CREATE INDEX flights_cancelled ON flights (departure_time, flight_id) WHERE state = 'CANCELLED';
