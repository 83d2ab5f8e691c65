-- Flights, their cabins, and how many seats are free. A flight's facts never change, but for its cancellation; what
-- changes with each seat has a table of its own. Money is in cents.

CREATE TYPE flight_status AS ENUM ('SCHEDULED', 'CANCELLED');
CREATE TYPE cabin AS ENUM ('FIRST', 'BUSINESS', 'PREMIUM_ECONOMY', 'ECONOMY');

CREATE TABLE flights (
    flight_id              text PRIMARY KEY CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    flight_number          text NOT NULL CHECK (flight_number ~ '^[A-Z0-9]{2}[0-9]{1,4}[A-Z]?$'),
    origin                 text NOT NULL CHECK (origin ~ '^[A-Z]{3}$'),
    destination            text NOT NULL CHECK (destination ~ '^[A-Z]{3}$'),
    departure_time         timestamptz NOT NULL,
    arrival_time           timestamptz NOT NULL,
    -- The day at the origin, by which passengers ask.
    departure_date         date NOT NULL,
    aircraft_type          text NOT NULL,
    layout_id              text NOT NULL,
    -- The window of check-in and the beginning of boarding, counted back from the departure.
    check_in_opens_before  interval NOT NULL,
    check_in_closes_before interval NOT NULL CHECK (check_in_closes_before >= interval '0'),
    boarding_before        interval NOT NULL CHECK (boarding_before > interval '0'),
    gate                   text NOT NULL,
    state                  flight_status NOT NULL DEFAULT 'SCHEDULED',
    create_time            timestamptz NOT NULL DEFAULT statement_timestamp(),
    cancel_time            timestamptz,
    cancel_reason          text,
    CONSTRAINT flight_goes_somewhere_else CHECK (origin <> destination),
    -- A search looks no further ahead than flights of this length connect.
    CONSTRAINT flight_lasts_a_day_at_most CHECK (
        arrival_time > departure_time AND arrival_time <= departure_time + interval '24 hours'),
    -- No place on earth is further from UTC.
    CONSTRAINT departure_date_is_a_local_one CHECK (
        departure_date BETWEEN (departure_time AT TIME ZONE 'UTC' - interval '12 hours')::date
                           AND (departure_time AT TIME ZONE 'UTC' + interval '14 hours')::date),
    CONSTRAINT check_in_opens_before_it_closes CHECK (check_in_opens_before > check_in_closes_before),
    CONSTRAINT cancelled_has_its_time_and_reason CHECK (
        (state = 'CANCELLED') = (cancel_time IS NOT NULL) AND (state = 'CANCELLED') = (cancel_reason IS NOT NULL))
);
CREATE INDEX flights_by_departure ON flights (departure_time, flight_id);
CREATE INDEX flights_by_date ON flights (departure_date, departure_time, flight_id);

-- The cabins of a flight: the fare for one adult, and all seats.
CREATE TABLE flight_cabins (
    flight_id   text NOT NULL REFERENCES flights,
    cabin       cabin NOT NULL,
    fare_cents  integer NOT NULL CHECK (fare_cents > 0),
    total_seats integer NOT NULL CHECK (total_seats > 0),
    PRIMARY KEY (flight_id, cabin)
);

-- How many seats are free, as the seat service announced them last, also of flights that are not here yet: neither
-- order nor single delivery is promised, and seats are there before their flight.
CREATE TABLE seat_counts (
    flight_id       text NOT NULL,
    cabin           cabin NOT NULL,
    available_seats integer NOT NULL CHECK (available_seats >= 0),
    -- The version of the flight's seat map that was counted.
    version         bigint NOT NULL CHECK (version > 0),
    PRIMARY KEY (flight_id, cabin)
) WITH (fillfactor = 50);

-- Moves with each change of the flights that depart on a day of UTC, in the transaction of the change: what was computed
-- from the schedule is good while the revisions of its days stand. It begins with the milliseconds of the clock, so that
-- what a cache remembers of another database, or of this one before it was restored, is never taken for this one's.
CREATE TABLE schedule_days (
    day      date PRIMARY KEY,
    revision bigint NOT NULL DEFAULT (extract(epoch FROM clock_timestamp()) * 1000)::bigint CHECK (revision > 0)
) WITH (fillfactor = 50);
