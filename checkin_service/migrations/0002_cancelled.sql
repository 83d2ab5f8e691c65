-- What will not happen, remembered whatever else is known of it: news may come in any order.

CREATE TABLE cancelled_flights (
    flight_id   text PRIMARY KEY,
    reason      text NOT NULL,
    cancel_time timestamptz NOT NULL
);

-- Whoever is told of their confirmation afterwards puts nobody on a manifest.
CREATE TABLE cancelled_bookings (
    booking_id  uuid PRIMARY KEY,
    reason      text NOT NULL,
    cancel_time timestamptz NOT NULL
);
