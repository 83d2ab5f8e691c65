-- Seats, holds and their ledger. `flight_id` leads every key that a seat's change touches, so that the tables can be
-- distributed by flight; only holds and idempotency keys, which callers name without a flight, have keys of their own.

CREATE TYPE seat_state AS ENUM ('AVAILABLE', 'HELD', 'CONFIRMED', 'OFFERED', 'BLOCKED');
CREATE TYPE hold_state AS ENUM ('HELD', 'CONFIRMED', 'CANCELLED', 'EXPIRED');
CREATE TYPE hold_purpose AS ENUM ('CHECK_IN', 'BOOKING');

CREATE TABLE flights (
    flight_id     text PRIMARY KEY CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    layout_id     text NOT NULL,
    total_seats   smallint NOT NULL CHECK (total_seats > 0),
    -- While anybody waits, a freed seat is OFFERED instead of AVAILABLE.
    waitlist_open boolean NOT NULL DEFAULT false,
    -- How long only the waitlist may take a freed seat.
    offer_window  interval NOT NULL DEFAULT '10 seconds' CHECK (offer_window > interval '0'),
    create_time   timestamptz NOT NULL DEFAULT now()
);

-- No index but the primary key: a hold changes only unindexed columns, so that its update stays within the page (HOT).
CREATE TABLE seats (
    flight_id   text NOT NULL,
    seat_number text NOT NULL,
    -- Place in the layout, row by row: what a map's compact form is ordered by.
    ordinal     smallint NOT NULL,
    state       seat_state NOT NULL DEFAULT 'AVAILABLE',
    hold_id     uuid,
    -- 0 when provisioned, then one more with each transition; the ledger has a row for each.
    version     bigint NOT NULL DEFAULT 0 CHECK (version >= 0),
    update_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (flight_id, seat_number),
    CONSTRAINT seat_has_hold_while_taken CHECK ((state IN ('HELD', 'CONFIRMED')) = (hold_id IS NOT NULL))
) WITH (fillfactor = 60);

-- One principal's claim; its seats are in hold_seats. The end stands here and nowhere else.
CREATE TABLE holds (
    hold_id         uuid PRIMARY KEY,
    owner           text NOT NULL,
    purpose         hold_purpose NOT NULL,
    state           hold_state NOT NULL DEFAULT 'HELD',
    ttl             interval NOT NULL CHECK (ttl > interval '0'),
    extensions_left smallint NOT NULL CHECK (extensions_left >= 0),
    create_time     timestamptz NOT NULL,
    expire_time     timestamptz NOT NULL,
    confirm_time    timestamptz,
    end_time        timestamptz,
    CONSTRAINT hold_ends_after_it_began CHECK (expire_time > create_time),
    CONSTRAINT hold_confirmed_before_its_end CHECK (confirm_time IS NULL OR confirm_time < expire_time),
    CONSTRAINT hold_expired_not_before_its_end CHECK (state <> 'EXPIRED' OR end_time >= expire_time),
    CONSTRAINT hold_state_has_its_times CHECK (
        CASE state
            WHEN 'HELD' THEN confirm_time IS NULL AND end_time IS NULL
            WHEN 'CONFIRMED' THEN confirm_time IS NOT NULL AND end_time IS NULL
            WHEN 'CANCELLED' THEN end_time IS NOT NULL
            WHEN 'EXPIRED' THEN confirm_time IS NULL AND end_time IS NOT NULL
        END)
) WITH (fillfactor = 80);
-- The sweeper's queue.
CREATE INDEX holds_due ON holds (expire_time) WHERE state = 'HELD';
-- What a principal holds, and how often its holds lapsed lately.
CREATE INDEX holds_of_owner ON holds (owner, state, expire_time);

-- The seats of a hold, kept after its end. `state` follows the seat: HELD, CONFIRMED, or RELEASED.
CREATE TABLE hold_seats (
    hold_id      uuid NOT NULL,
    flight_id    text NOT NULL,
    seat_number  text NOT NULL,
    passenger_id text NOT NULL,
    state        text NOT NULL DEFAULT 'HELD' CHECK (state IN ('HELD', 'CONFIRMED', 'RELEASED')),
    PRIMARY KEY (hold_id, flight_id, seat_number)
) WITH (fillfactor = 80);
-- At most one held and one confirmed seat for a passenger on a flight.
CREATE UNIQUE INDEX one_held_seat_per_passenger ON hold_seats (flight_id, passenger_id) WHERE state = 'HELD';
CREATE UNIQUE INDEX one_confirmed_seat_per_passenger ON hold_seats (flight_id, passenger_id) WHERE state = 'CONFIRMED';

-- Seats promised to the waitlist, each with the end of its window; the sweeper's second queue.
CREATE TABLE offers (
    flight_id   text NOT NULL,
    seat_number text NOT NULL,
    expire_time timestamptz NOT NULL,
    PRIMARY KEY (flight_id, seat_number)
);
CREATE INDEX offers_due ON offers (expire_time);

-- The ledger: every transition of every seat, append-only.
CREATE TABLE seat_events (
    flight_id   text NOT NULL,
    seat_number text NOT NULL,
    version     bigint NOT NULL CHECK (version > 0),
    from_state  seat_state NOT NULL,
    to_state    seat_state NOT NULL,
    hold_id     uuid,
    actor       text NOT NULL,
    reason      text NOT NULL,
    request_id  uuid,
    -- The event that announced it; NULL where nobody needs to know.
    event_id    uuid,
    transaction xid8 NOT NULL DEFAULT pg_current_xact_id(),
    event_time  timestamptz NOT NULL,
    PRIMARY KEY (flight_id, seat_number, version),
    CONSTRAINT legal_transition CHECK ((from_state, to_state) IN (
        ('AVAILABLE', 'HELD'), ('HELD', 'CONFIRMED'), ('HELD', 'AVAILABLE'), ('CONFIRMED', 'AVAILABLE'),
        ('HELD', 'OFFERED'), ('CONFIRMED', 'OFFERED'), ('OFFERED', 'HELD'), ('OFFERED', 'AVAILABLE'),
        ('AVAILABLE', 'BLOCKED'), ('OFFERED', 'BLOCKED'), ('BLOCKED', 'AVAILABLE'), ('BLOCKED', 'OFFERED')))
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger is append-only';
END $$;
CREATE TRIGGER ledger_is_append_only BEFORE UPDATE OR DELETE ON seat_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What was last announced of a flight's counts; lower than the map's version where an announcement is due.
CREATE TABLE availability (
    flight_id text PRIMARY KEY,
    version   bigint NOT NULL
);

-- SEAT-16, judged where seats are taken: how long an owner has to wait for room among its held seats of a flight, and
-- for the end of its cool-down; NULL where nothing is in the way. `other_than` is a hold that is about to change.
CREATE FUNCTION hoarding(
    of_owner text, on_flight text, wanted_seats integer, other_than uuid, held_limit integer,
    lapses_allowed integer, lapses_window interval, first_cool_down interval,
    OUT no_room_seconds double precision, OUT cooling_seconds double precision
) LANGUAGE plpgsql STABLE AS $$
DECLARE
    held_seats integer;
    first_end  timestamptz;
    lapses     integer;
    last_lapse timestamptz;
BEGIN
    -- OFFSET 0 keeps the other conditions out of the look-up: on an empty table the planner would take the index of all
    -- holds that still run for as good as the owner's, and would keep to that plan when the table has grown.
    SELECT sum(seats_of.count), min(own.expire_time) INTO held_seats, first_end
    FROM (
        SELECT holds.hold_id, holds.state, holds.expire_time FROM holds WHERE holds.owner = of_owner OFFSET 0
    ) AS own
    CROSS JOIN LATERAL (
        SELECT count(*) FROM hold_seats
        WHERE hold_seats.hold_id = own.hold_id AND hold_seats.flight_id = on_flight
    ) AS seats_of
    WHERE own.state = 'HELD' AND own.expire_time > now() AND own.hold_id IS DISTINCT FROM other_than
      AND seats_of.count > 0;
    IF coalesce(held_seats, 0) + wanted_seats > held_limit THEN
        no_room_seconds := coalesce(extract(epoch FROM first_end - now()), 1);
    END IF;
    SELECT count(*), max(own.expire_time) INTO lapses, last_lapse
    FROM (SELECT holds.state, holds.expire_time FROM holds WHERE holds.owner = of_owner OFFSET 0) AS own
    WHERE own.state = 'EXPIRED' AND own.expire_time > now() - lapses_window;
    IF lapses >= lapses_allowed THEN
        -- Doubled sixteen times any cool-down is longer than the window; more often would leave the type's range.
        cooling_seconds := extract(epoch FROM
            last_lapse + least(first_cool_down * (2 ^ least(lapses - lapses_allowed, 16)), lapses_window) - now());
        IF cooling_seconds <= 0 THEN
            cooling_seconds := NULL;
        END IF;
    END IF;
END $$;
