-- Manifests, check-ins and their history. `flight_id` leads every key but the check-in's own, which callers name without
-- a flight, so that the tables can be distributed by flight.

CREATE TYPE passenger_type AS ENUM ('ADULT', 'CHILD', 'INFANT');
CREATE TYPE cabin AS ENUM ('FIRST', 'BUSINESS', 'PREMIUM_ECONOMY', 'ECONOMY');
CREATE TYPE check_in_state AS ENUM ('INITIATED', 'BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT', 'COMPLETED', 'CANCELLED');

-- A flight's facts, as its manifest brought them.
CREATE TABLE flights (
    flight_id       text PRIMARY KEY CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    flight_number   text NOT NULL,
    origin          text NOT NULL,
    destination     text NOT NULL,
    departure_time  timestamptz NOT NULL,
    arrival_time    timestamptz NOT NULL,
    -- The day at the origin, which a boarding pass shows.
    departure_date  date NOT NULL,
    -- The window of check-in and the beginning of boarding, counted back from the departure.
    opens_before    interval NOT NULL,
    closes_before   interval NOT NULL CHECK (closes_before >= interval '0'),
    boarding_before interval NOT NULL CHECK (boarding_before > interval '0'),
    gate            text NOT NULL,
    cancel_time     timestamptz,
    CONSTRAINT flight_arrives_after_it_departed CHECK (arrival_time > departure_time),
    CONSTRAINT check_in_opens_before_it_closes CHECK (opens_before > closes_before)
);

CREATE TABLE passengers (
    flight_id                 text NOT NULL,
    passenger_id              text NOT NULL,
    pnr                       text NOT NULL,
    -- Digest of the locator and the folded last name: what a login is looked up by.
    login_key                 bytea NOT NULL,
    given_name                text NOT NULL,
    last_name                 text NOT NULL,
    type                      passenger_type NOT NULL,
    cabin                     cabin NOT NULL,
    fare                      text NOT NULL,
    special_services          text[] NOT NULL,
    accompanying_passenger_id text,
    contact_email             text NOT NULL,
    PRIMARY KEY (flight_id, passenger_id),
    CONSTRAINT infant_has_its_adult CHECK ((type = 'INFANT') = (accompanying_passenger_id IS NOT NULL)),
    CONSTRAINT nobody_accompanies_himself CHECK (accompanying_passenger_id <> passenger_id),
    -- Judged at the commit, so that one import can let two infants change laps.
    CONSTRAINT one_infant_per_adult UNIQUE (flight_id, accompanying_passenger_id) DEFERRABLE INITIALLY DEFERRED
);
CREATE INDEX passengers_by_login ON passengers (login_key);
CREATE INDEX passengers_of_trip ON passengers (pnr);

CREATE TABLE check_ins (
    checkin_id        uuid PRIMARY KEY,
    flight_id         text NOT NULL,
    passenger_id      text NOT NULL,
    -- Whose it is: principal `passenger:<pnr>`.
    pnr               text NOT NULL,
    state             check_in_state NOT NULL DEFAULT 'INITIATED',
    -- One more with each change: what a declaration is compared with, and what a watcher looks at.
    version           bigint NOT NULL DEFAULT 1 CHECK (version > 0),
    -- The confirmed seat as the seat service said last; `INF` on somebody's lap.
    seat_number       text,
    hold_id           uuid,
    allowance_grams   integer NOT NULL CHECK (allowance_grams >= 0),
    bags_grams        integer[] NOT NULL DEFAULT '{}' CHECK (cardinality(bags_grams) <= 6),
    excess_grams      integer NOT NULL DEFAULT 0 CHECK (excess_grams >= 0),
    fee_cents         integer NOT NULL DEFAULT 0 CHECK (fee_cents >= 0),
    fee_currency      text NOT NULL DEFAULT '',
    payment_intent_id uuid,
    payment_deadline  timestamptz,
    payment_error     text NOT NULL DEFAULT '',
    fee_pay_time      timestamptz,
    fee_refund_time   timestamptz,
    sequence_number   integer CHECK (sequence_number > 0),
    create_time       timestamptz NOT NULL DEFAULT statement_timestamp(),
    update_time       timestamptz NOT NULL DEFAULT statement_timestamp(),
    complete_time     timestamptz,
    cancel_time       timestamptz,
    cancel_reason     text,
    CONSTRAINT seat_belongs_to_a_hold CHECK ((hold_id IS NULL) = (seat_number IS NULL OR seat_number = 'INF')),
    CONSTRAINT fee_has_its_intent CHECK (
        (fee_cents > 0) = (payment_intent_id IS NOT NULL) AND (fee_cents > 0) = (payment_deadline IS NOT NULL)
        AND (fee_cents > 0) = (fee_currency <> '') AND (fee_cents > 0 OR fee_pay_time IS NULL)
        AND (fee_cents > 0 OR fee_refund_time IS NULL)),
    CONSTRAINT sequence_number_comes_with_completion CHECK ((sequence_number IS NULL) = (complete_time IS NULL)),
    CONSTRAINT cancellation_has_its_reason CHECK ((cancel_time IS NULL) = (cancel_reason IS NULL)),
    CONSTRAINT state_has_what_it_needs CHECK (
        CASE state
            WHEN 'INITIATED' THEN
                fee_cents = 0 AND bags_grams = '{}' AND complete_time IS NULL AND cancel_time IS NULL
            WHEN 'BAGGAGE_VALIDATED' THEN
                fee_cents = 0 AND complete_time IS NULL AND cancel_time IS NULL
            WHEN 'WAITING_FOR_PAYMENT' THEN
                fee_cents > 0 AND complete_time IS NULL AND cancel_time IS NULL
            WHEN 'COMPLETED' THEN
                seat_number IS NOT NULL AND (fee_cents = 0 OR fee_pay_time IS NOT NULL)
                AND complete_time IS NOT NULL AND cancel_time IS NULL
            WHEN 'CANCELLED' THEN cancel_time IS NOT NULL
        END)
) WITH (fillfactor = 70);
-- After a cancelled one another may begin.
CREATE UNIQUE INDEX one_live_check_in_per_passenger ON check_ins (flight_id, passenger_id) WHERE state <> 'CANCELLED';
CREATE UNIQUE INDEX sequence_number_is_unique ON check_ins (flight_id, sequence_number)
    WHERE sequence_number IS NOT NULL;
CREATE INDEX check_ins_of_flight ON check_ins (flight_id, create_time, checkin_id);
CREATE INDEX check_ins_of_intent ON check_ins (payment_intent_id) WHERE payment_intent_id IS NOT NULL;

-- The last sequence number given on a flight: its row makes completions of a flight wait for each other, and nobody else.
CREATE TABLE sequence_numbers (
    flight_id   text PRIMARY KEY,
    last_number integer NOT NULL CHECK (last_number > 0)
) WITH (fillfactor = 50);

-- The history: every transition, append-only.
CREATE TABLE check_in_events (
    checkin_id uuid NOT NULL,
    version    bigint NOT NULL CHECK (version > 0),
    from_state check_in_state,
    to_state   check_in_state NOT NULL,
    actor      text NOT NULL,
    reason     text NOT NULL,
    event_time timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (checkin_id, version),
    CONSTRAINT legal_transition CHECK (
        CASE to_state
            WHEN 'INITIATED' THEN from_state IS NULL
            WHEN 'BAGGAGE_VALIDATED' THEN coalesce(from_state IN ('INITIATED', 'WAITING_FOR_PAYMENT'), false)
            -- Declared again.
            WHEN 'WAITING_FOR_PAYMENT' THEN coalesce(from_state IN ('INITIATED', 'WAITING_FOR_PAYMENT'), false)
            WHEN 'COMPLETED' THEN coalesce(from_state IN ('BAGGAGE_VALIDATED', 'WAITING_FOR_PAYMENT'), false)
            WHEN 'CANCELLED' THEN coalesce(from_state <> 'CANCELLED', false)
        END)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history is append-only';
END $$;
CREATE TRIGGER history_is_append_only BEFORE UPDATE OR DELETE ON check_in_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Tries to log in, by locator (`pnr:XK4T7Q`) and by address (`address:192.0.2.7`).
CREATE TABLE login_tries (
    key   text PRIMARY KEY,
    -- Tries that are allowed within a window.
    most  smallint NOT NULL CHECK (most > 0),
    -- The latest tries, oldest first, at most as many.
    tries timestamptz[] NOT NULL CHECK (cardinality(tries) <= most)
) WITH (fillfactor = 50);

-- What a passenger needs, as others have to know it: an adult with an infant is INFT, whether its manifest says so or not.
CREATE FUNCTION needs_of(passenger passengers) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT CASE
        WHEN 'INFT' <> ALL (passenger.special_services) AND EXISTS (
            SELECT FROM passengers AS infant
            WHERE infant.flight_id = passenger.flight_id AND infant.accompanying_passenger_id = passenger.passenger_id
        ) THEN array_append(passenger.special_services, 'INFT')
        ELSE passenger.special_services
    END
$$;
