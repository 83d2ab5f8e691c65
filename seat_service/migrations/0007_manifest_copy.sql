-- What the check-in service, which owns the manifest, says of the passengers of a flight: seats are given by it, and it can be
-- revoked (SEAT-17, docs/decisions/0031). Rows may come before the flight has seats here.
CREATE TABLE passengers (
    flight_id        text        NOT NULL CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    passenger_id     text        NOT NULL,
    -- The locator whose sessions may act for the passenger.
    pnr              text        NOT NULL CHECK (pnr ~ '^[A-Z0-9]{6}$'),
    cabin            text        NOT NULL
                     CHECK (cabin IN ('CABIN_UNSPECIFIED', 'FIRST', 'BUSINESS', 'PREMIUM_ECONOMY', 'ECONOMY')),
    type             text        NOT NULL CHECK (type IN ('ADULT', 'CHILD', 'INFANT')),
    special_services text[]      NOT NULL,
    -- True once the passenger may have no seat on the flight.
    ended            boolean     NOT NULL,
    -- Counts the manifest's changes of this passenger; an older message changes nothing.
    revision         bigint      NOT NULL CHECK (revision > 0),
    update_time      timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (flight_id, passenger_id)
) WITH (fillfactor = 90);
-- The party of a passenger session.
CREATE INDEX passengers_of_locator ON passengers (flight_id, pnr);

-- When flights leave, whether they have seats here or not. A table of its own, because times may come before the seats.
CREATE TABLE departures (
    flight_id      text        PRIMARY KEY CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    departure_time timestamptz NOT NULL,
    -- 0 is what the flight was provisioned with; each time of a manifest is newer.
    revision       bigint      NOT NULL CHECK (revision >= 0),
    -- When that was written here: what was given before is no fault, even if the flight leaves earlier than it was said.
    update_time    timestamptz NOT NULL DEFAULT statement_timestamp()
);
