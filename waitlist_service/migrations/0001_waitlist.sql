-- Who waits, in order of joining, and who got what. `flight_id` leads every key but the entry's own, which callers name
-- without a flight, so that the tables can be distributed by flight.

CREATE TYPE entry_state AS ENUM ('WAITING', 'OFFERED', 'ASSIGNED', 'DECLINED', 'LEFT');
CREATE TYPE waitlist_mode AS ENUM ('AUTO_CONFIRM', 'OFFER');
CREATE TYPE seat_position AS ENUM ('WINDOW', 'MIDDLE', 'AISLE');
CREATE TYPE cabin AS ENUM ('FIRST', 'BUSINESS', 'PREMIUM_ECONOMY', 'ECONOMY');
CREATE TYPE passenger_type AS ENUM ('ADULT', 'CHILD', 'INFANT');

-- A flight that somebody ever waited for. Its row is the lock under which entries are numbered and matched.
CREATE TABLE flights (
    flight_id     text PRIMARY KEY CHECK (flight_id ~ '^[A-Za-z0-9-]{3,40}$'),
    -- How seats are given; NULL where nobody decided.
    mode          waitlist_mode,
    last_number   bigint NOT NULL DEFAULT 0 CHECK (last_number >= 0),
    -- Whether freed seats shall be the waitlist's alone, how often that changed, and which change the seat service knows.
    open          boolean NOT NULL DEFAULT false,
    revision      bigint NOT NULL DEFAULT 0 CHECK (revision >= 0),
    told_revision bigint NOT NULL DEFAULT 0 CHECK (told_revision <= revision)
) WITH (fillfactor = 50);

-- The seats of such a flight, which never change: what wishes are compared with.
CREATE TABLE seats (
    flight_id   text NOT NULL,
    seat_number text NOT NULL,
    ordinal     smallint NOT NULL,
    cabin       cabin NOT NULL,
    position    seat_position NOT NULL,
    PRIMARY KEY (flight_id, seat_number)
);

CREATE TABLE entries (
    entry_id          uuid PRIMARY KEY,
    flight_id         text NOT NULL,
    -- The order of joining, taken under the flight's lock: a sequence would commit out of order.
    number            bigint NOT NULL CHECK (number > 0),
    passenger_id      text NOT NULL,
    -- Whose it is: principal `passenger:<pnr>`.
    owner             text NOT NULL,
    type              passenger_type NOT NULL,
    cabin             cabin NOT NULL,
    special_services  text[] NOT NULL,
    -- Whom a mail reaches, as the manifest said when the passenger joined; NULL where it could not be asked then.
    contact_email     text,
    contact_name      text NOT NULL DEFAULT '',
    -- Wishes, the dearest first; an empty list wishes nothing.
    positions         seat_position[] NOT NULL,
    seat_numbers      text[] NOT NULL,
    state             entry_state NOT NULL DEFAULT 'WAITING',
    version           integer NOT NULL DEFAULT 1 CHECK (version > 0),
    -- The seat that the entry is matched with, and our request id for its claim: written before anything is claimed.
    claim_id          uuid,
    seat_number       text,
    match_time        timestamptz,
    hold_id           uuid,
    offer_expire_time timestamptz,
    -- While an accepted offer is being confirmed nobody may decline it.
    accept_time       timestamptz,
    create_time       timestamptz NOT NULL DEFAULT statement_timestamp(),
    update_time       timestamptz NOT NULL DEFAULT statement_timestamp(),
    end_time          timestamptz,
    UNIQUE (flight_id, number),
    CONSTRAINT match_is_whole CHECK (
        (claim_id IS NULL) = (seat_number IS NULL) AND (claim_id IS NULL) = (match_time IS NULL)),
    CONSTRAINT state_has_what_it_needs CHECK (
        CASE state
            WHEN 'WAITING' THEN hold_id IS NULL AND offer_expire_time IS NULL AND accept_time IS NULL AND end_time IS NULL
            WHEN 'OFFERED' THEN hold_id IS NOT NULL AND offer_expire_time IS NOT NULL AND end_time IS NULL
            WHEN 'ASSIGNED' THEN hold_id IS NOT NULL AND end_time IS NOT NULL
            WHEN 'DECLINED' THEN hold_id IS NOT NULL AND offer_expire_time IS NOT NULL AND end_time IS NOT NULL
            WHEN 'LEFT' THEN end_time IS NOT NULL
        END)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX one_live_entry_per_passenger ON entries (flight_id, passenger_id)
    WHERE state IN ('WAITING', 'OFFERED');
-- What matching reads: who waits and is matched with nothing, in order.
CREATE INDEX entries_unmatched ON entries (flight_id, number) WHERE state = 'WAITING' AND claim_id IS NULL;
-- A seat is matched with one entry at a time.
CREATE UNIQUE INDEX one_entry_per_matched_seat ON entries (flight_id, seat_number)
    WHERE state = 'WAITING' AND claim_id IS NOT NULL;

-- The history: every transition, append-only.
CREATE TABLE entry_events (
    entry_id    uuid NOT NULL,
    version     integer NOT NULL CHECK (version > 0),
    from_state  entry_state,
    to_state    entry_state NOT NULL,
    seat_number text,
    actor       text NOT NULL,
    reason      text NOT NULL,
    event_time  timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (entry_id, version),
    CONSTRAINT legal_transition CHECK (
        CASE to_state
            WHEN 'WAITING' THEN from_state IS NULL
            WHEN 'OFFERED' THEN coalesce(from_state = 'WAITING', false)
            WHEN 'ASSIGNED' THEN coalesce(from_state IN ('WAITING', 'OFFERED'), false)
            WHEN 'DECLINED' THEN coalesce(from_state = 'OFFERED', false)
            WHEN 'LEFT' THEN coalesce(from_state IN ('WAITING', 'OFFERED'), false)
        END)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history is append-only';
END $$;
CREATE TRIGGER history_is_append_only BEFORE UPDATE OR DELETE ON entry_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- Seats that an entry was matched with and could not get, and why: it kept its place, and the seat went to the next.
CREATE TABLE skips (
    entry_id    uuid NOT NULL,
    seat_number text NOT NULL,
    reason      text NOT NULL,
    -- Until when the seat is not tried again for this entry; infinity where the rules forbid it.
    end_time    timestamptz NOT NULL,
    skip_time   timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (entry_id, seat_number)
);
