-- Bookings, who travels where on which seat, and their history. Money is in integer minor units of its currency.

CREATE TYPE booking_state AS ENUM (
    'CREATED', 'SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING', 'CONFIRMED', 'FAILED', 'EXPIRED', 'CANCELLED');
CREATE TYPE passenger_type AS ENUM ('ADULT', 'CHILD', 'INFANT');
CREATE TYPE cabin AS ENUM ('FIRST', 'BUSINESS', 'PREMIUM_ECONOMY', 'ECONOMY');

CREATE TABLE bookings (
    booking_id         uuid PRIMARY KEY,
    -- Who made it, such as `customer:5d0c…`.
    owner              text NOT NULL,
    state              booking_state NOT NULL DEFAULT 'CREATED',
    -- One more with each change: what a watcher looks at.
    version            bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    cabin              cabin NOT NULL,
    contact_email      text NOT NULL,
    currency           text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    total_minor_units  bigint NOT NULL CHECK (total_minor_units > 0),
    -- Of the first flight: when its seats are sold no more, and when it leaves.
    sale_close_time    timestamptz NOT NULL,
    departure_time     timestamptz NOT NULL,
    -- Which seats are asked for is written down before they are asked for; each plan has its own request id.
    plan               integer NOT NULL DEFAULT 1 CHECK (plan > 0),
    hold_id            uuid,
    expire_time        timestamptz,
    -- Passed to the payment service and forgotten.
    payment_code       text CHECK (payment_code ~ '^[0-9]{5}$'),
    payment_intent_id  uuid,
    payment_attempts   smallint NOT NULL DEFAULT 0 CHECK (payment_attempts >= 0),
    max_payment_attempts smallint NOT NULL DEFAULT 0,
    last_error         text NOT NULL DEFAULT '',
    -- The money has come; from here on it becomes a confirmed booking, or is given back.
    pay_time           timestamptz,
    -- It was decided to give the money back, and it was given back.
    refund_reason      text,
    refund_time        timestamptz,
    pnr                text CHECK (pnr ~ '^[A-HJ-NP-Z][2-9A-HJ-NP-Z]{5}$'),
    create_time        timestamptz NOT NULL DEFAULT statement_timestamp(),
    update_time        timestamptz NOT NULL DEFAULT statement_timestamp(),
    confirm_time       timestamptz,
    cancel_time        timestamptz,
    cancel_reason      text,
    -- What a repeat of the request that made it is answered.
    first_answer       bytea,
    -- The idempotency key of that request, forgotten where the request comes to nothing.
    request_key        uuid,
    -- Why its seats could not be had: what the request that made it was answered.
    refusal            jsonb,
    CONSTRAINT sale_closes_before_departure CHECK (sale_close_time <= departure_time),
    CONSTRAINT hold_has_its_end CHECK ((hold_id IS NULL) = (expire_time IS NULL)),
    CONSTRAINT reserved_has_its_answer CHECK ((hold_id IS NULL) = (first_answer IS NULL)),
    CONSTRAINT code_only_while_it_is_needed CHECK ((payment_code IS NOT NULL) = (state = 'PAYMENT_PENDING')),
    CONSTRAINT money_belongs_to_an_intent CHECK (pay_time IS NULL OR payment_intent_id IS NOT NULL),
    CONSTRAINT only_money_that_came_is_given_back CHECK (
        (refund_reason IS NULL OR pay_time IS NOT NULL) AND (refund_time IS NULL OR refund_reason IS NOT NULL)),
    CONSTRAINT locator_comes_with_confirmation CHECK ((pnr IS NULL) = (confirm_time IS NULL)),
    CONSTRAINT cancellation_has_its_reason CHECK (
        (cancel_time IS NULL) = (cancel_reason IS NULL) AND (cancel_time IS NOT NULL) = (state = 'CANCELLED')),
    CONSTRAINT refusal_only_without_seats CHECK (refusal IS NULL OR (state = 'FAILED' AND hold_id IS NULL)),
    CONSTRAINT state_has_what_it_needs CHECK (
        CASE state
            WHEN 'CREATED' THEN hold_id IS NULL AND payment_intent_id IS NULL
            WHEN 'SEATS_RESERVED' THEN hold_id IS NOT NULL AND payment_intent_id IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PENDING' THEN hold_id IS NOT NULL AND pay_time IS NULL AND confirm_time IS NULL
            WHEN 'PAYMENT_PROCESSING' THEN
                hold_id IS NOT NULL AND payment_intent_id IS NOT NULL AND confirm_time IS NULL AND refund_reason IS NULL
            WHEN 'CONFIRMED' THEN pay_time IS NOT NULL AND confirm_time IS NOT NULL AND refund_reason IS NULL
            WHEN 'FAILED' THEN confirm_time IS NULL AND last_error <> ''
            WHEN 'EXPIRED' THEN hold_id IS NOT NULL AND confirm_time IS NULL
            WHEN 'CANCELLED' THEN pay_time IS NULL OR refund_reason IS NOT NULL
        END)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX one_booking_per_locator ON bookings (pnr) WHERE pnr IS NOT NULL;
CREATE INDEX bookings_of_intent ON bookings (payment_intent_id) WHERE payment_intent_id IS NOT NULL;

-- The journey: flights as they were when they were booked.
CREATE TABLE booking_flights (
    booking_id             uuid NOT NULL REFERENCES bookings,
    leg                    smallint NOT NULL CHECK (leg BETWEEN 1 AND 4),
    flight_id              text NOT NULL,
    flight_number          text NOT NULL,
    origin                 text NOT NULL,
    destination            text NOT NULL,
    departure_time         timestamptz NOT NULL,
    arrival_time           timestamptz NOT NULL,
    departure_date         text NOT NULL,
    check_in_opens_before  interval NOT NULL,
    check_in_closes_before interval NOT NULL,
    boarding_before        interval NOT NULL,
    gate                   text NOT NULL,
    -- For one adult.
    price_minor_units      bigint NOT NULL CHECK (price_minor_units > 0),
    PRIMARY KEY (booking_id, leg),
    UNIQUE (booking_id, flight_id)
);
CREATE INDEX bookings_of_flight ON booking_flights (flight_id);

CREATE TABLE booking_passengers (
    booking_id                uuid NOT NULL REFERENCES bookings,
    number                    smallint NOT NULL CHECK (number BETWEEN 1 AND 9),
    passenger_id              text NOT NULL UNIQUE,
    given_name                text NOT NULL,
    last_name                 text NOT NULL,
    type                      passenger_type NOT NULL,
    accompanying_passenger_id text,
    PRIMARY KEY (booking_id, number),
    CONSTRAINT infant_has_its_adult CHECK ((type = 'INFANT') = (accompanying_passenger_id IS NOT NULL))
);

-- Before a hold: the plan. With a hold: its seats.
CREATE TABLE booking_seats (
    booking_id   uuid NOT NULL REFERENCES bookings,
    flight_id    text NOT NULL,
    passenger_id text NOT NULL,
    seat_number  text NOT NULL,
    -- Whether the customer asked for this very seat.
    named        boolean NOT NULL,
    PRIMARY KEY (booking_id, flight_id, passenger_id),
    UNIQUE (booking_id, flight_id, seat_number)
);

-- The history: every transition, append-only.
CREATE TABLE booking_events (
    booking_id uuid NOT NULL REFERENCES bookings,
    version    bigint NOT NULL CHECK (version > 0),
    from_state booking_state,
    to_state   booking_state NOT NULL,
    actor      text NOT NULL,
    reason     text NOT NULL,
    event_time timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (booking_id, version),
    CONSTRAINT legal_transition CHECK (
        CASE to_state
            WHEN 'CREATED' THEN from_state IS NULL
            WHEN 'SEATS_RESERVED' THEN coalesce(from_state = 'CREATED', false)
            WHEN 'PAYMENT_PENDING' THEN coalesce(from_state = 'SEATS_RESERVED', false)
            WHEN 'PAYMENT_PROCESSING' THEN coalesce(from_state = 'PAYMENT_PENDING', false)
            -- From FAILED and EXPIRED by money that came late and found its seats free.
            WHEN 'CONFIRMED' THEN coalesce(from_state IN ('PAYMENT_PROCESSING', 'FAILED', 'EXPIRED'), false)
            WHEN 'FAILED' THEN coalesce(from_state IN ('CREATED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING'), false)
            WHEN 'EXPIRED' THEN
                coalesce(from_state IN ('SEATS_RESERVED', 'PAYMENT_PENDING', 'PAYMENT_PROCESSING'), false)
            WHEN 'CANCELLED' THEN
                coalesce(from_state IN ('SEATS_RESERVED', 'PAYMENT_PROCESSING', 'CONFIRMED'), false)
        END)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history is append-only';
END $$;
CREATE TRIGGER history_is_append_only BEFORE UPDATE OR DELETE ON booking_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Flights that will not leave, told by the flight service.
CREATE TABLE cancelled_flights (
    flight_id   text PRIMARY KEY,
    reason      text NOT NULL,
    cancel_time timestamptz NOT NULL,
    learn_time  timestamptz NOT NULL DEFAULT statement_timestamp()
);
