-- What the seat service must know of the manifests, and one pass for a seat (SEAT-17, CHK-8, docs/decisions/0038).

-- One row for each passenger of each flight that was ever on a manifest. A row stays when its passenger leaves: the seat
-- service must learn that the right to a seat has ended.
CREATE TABLE entitlements (
    flight_id      text NOT NULL,
    passenger_id   text NOT NULL,
    -- The locator, the last one if the passenger has left.
    pnr            text NOT NULL,
    -- Counts the changes of what a seat depends on.
    revision       bigint NOT NULL DEFAULT 1 CHECK (revision > 0),
    -- The newest revision that the seat service has acknowledged.
    known_revision bigint NOT NULL DEFAULT 0,
    change_time    timestamptz NOT NULL DEFAULT statement_timestamp(),
    PRIMARY KEY (flight_id, passenger_id),
    CONSTRAINT known_revision_exists CHECK (known_revision BETWEEN 0 AND revision)
) WITH (fillfactor = 70);
CREATE INDEX entitlements_to_send ON entitlements (flight_id, passenger_id) WHERE known_revision < revision;

ALTER TABLE flights
    ADD COLUMN times_revision bigint NOT NULL DEFAULT 1 CHECK (times_revision > 0),
    ADD COLUMN known_times_revision bigint NOT NULL DEFAULT 0,
    ADD CONSTRAINT known_times_revision_exists CHECK (known_times_revision BETWEEN 0 AND times_revision);

-- Sets the timer that sends a flight's changes. It waits already after the first change of a transaction; the row is
-- locked all the same, so that no process takes the timer before this transaction commits.
CREATE FUNCTION send_entitlements(changed_flight text) RETURNS void LANGUAGE sql SET search_path FROM CURRENT AS $$
    INSERT INTO timers (name, subject, due_time, try_time)
    VALUES ('send-entitlements', changed_flight, statement_timestamp(), statement_timestamp())
    ON CONFLICT (name, subject) DO UPDATE
    SET due_time = excluded.due_time, try_time = excluded.try_time, tries = 0, last_error = NULL, fire_time = NULL
    WHERE timers.fire_time IS NOT NULL OR timers.try_time > statement_timestamp()
$$;

-- Triggers, and not the statements of the service: no writer of a manifest can forget it.
CREATE FUNCTION count_passenger_change() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed passengers := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    adults  text[] := '{}';
BEGIN
    INSERT INTO entitlements (flight_id, passenger_id, pnr)
    VALUES (changed.flight_id, changed.passenger_id, changed.pnr)
    ON CONFLICT (flight_id, passenger_id) DO UPDATE
    SET pnr = excluded.pnr, revision = entitlements.revision + 1, change_time = statement_timestamp();
    -- An adult with an infant needs INFT (`needs_of`).
    IF TG_OP <> 'INSERT' THEN
        adults := adults || OLD.accompanying_passenger_id;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        adults := adults || NEW.accompanying_passenger_id;
    END IF;
    UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
    WHERE flight_id = changed.flight_id AND passenger_id = ANY(adults);
    PERFORM send_entitlements(changed.flight_id);
    RETURN NULL;
END $$;
CREATE TRIGGER passengers_come_and_leave AFTER INSERT OR DELETE ON passengers
    FOR EACH ROW EXECUTE FUNCTION count_passenger_change();
CREATE TRIGGER passengers_change AFTER UPDATE ON passengers
    FOR EACH ROW WHEN ((OLD.pnr, OLD.type, OLD.cabin, OLD.special_services, OLD.accompanying_passenger_id)
                       IS DISTINCT FROM
                       (NEW.pnr, NEW.type, NEW.cabin, NEW.special_services, NEW.accompanying_passenger_id))
    EXECUTE FUNCTION count_passenger_change();

CREATE FUNCTION count_times_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.times_revision := OLD.times_revision + 1;
    RETURN NEW;
END $$;
CREATE TRIGGER flight_times_are_counted BEFORE UPDATE ON flights
    FOR EACH ROW WHEN (OLD.departure_time IS DISTINCT FROM NEW.departure_time)
    EXECUTE FUNCTION count_times_change();

CREATE FUNCTION send_flight_change() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.cancel_time IS DISTINCT FROM NEW.cancel_time THEN
        UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
        WHERE flight_id = NEW.flight_id;
    END IF;
    PERFORM send_entitlements(NEW.flight_id);
    RETURN NULL;
END $$;
CREATE TRIGGER flights_come AFTER INSERT ON flights
    FOR EACH ROW EXECUTE FUNCTION send_flight_change();
CREATE TRIGGER flights_change AFTER UPDATE ON flights
    FOR EACH ROW WHEN ((OLD.departure_time, OLD.cancel_time) IS DISTINCT FROM (NEW.departure_time, NEW.cancel_time))
    EXECUTE FUNCTION send_flight_change();

-- What a running system knows already: all of it is sent.
INSERT INTO entitlements (flight_id, passenger_id, pnr) SELECT flight_id, passenger_id, pnr FROM passengers;
INSERT INTO timers (name, subject, due_time, try_time)
SELECT 'send-entitlements', flight_id, statement_timestamp(), statement_timestamp() FROM flights
ON CONFLICT (name, subject) DO NOTHING;

-- True while another passenger has the seat by the seat service's newest answer, until this one's seat is asked for.
ALTER TABLE check_ins
    ADD COLUMN seat_disputed boolean NOT NULL DEFAULT false,
    ADD CONSTRAINT only_a_completed_seat_is_disputed CHECK (state IN ('COMPLETED', 'CANCELLED') OR NOT seat_disputed);
WITH doubles AS (
    SELECT checkin_id, row_number() OVER (PARTITION BY flight_id, seat_number ORDER BY complete_time DESC) AS number
    FROM check_ins WHERE state = 'COMPLETED' AND seat_number <> 'INF'
), disputed AS (
    UPDATE check_ins SET seat_disputed = true FROM doubles
    WHERE doubles.checkin_id = check_ins.checkin_id AND doubles.number > 1
    RETURNING check_ins.checkin_id
)
INSERT INTO timers (name, subject, due_time, try_time)
SELECT 'look-at-seat', checkin_id::text, statement_timestamp(), statement_timestamp() FROM disputed
ON CONFLICT (name, subject) DO UPDATE
SET due_time = excluded.due_time, try_time = excluded.try_time, tries = 0, last_error = NULL, fire_time = NULL;
CREATE UNIQUE INDEX one_completed_check_in_per_seat ON check_ins (flight_id, seat_number)
    WHERE state = 'COMPLETED' AND seat_number <> 'INF' AND NOT seat_disputed;
