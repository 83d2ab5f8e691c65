-- An adult whose party has a child on the flight cares for it, and sits in no exit row (SEAT-11, 14 CFR 121.585 (b)(7)).
-- Others read it as CHLD, as they read INFT of an adult with an infant.
CREATE OR REPLACE FUNCTION needs_of(passenger passengers) RETURNS text[] LANGUAGE sql STABLE AS $$
    SELECT passenger.special_services
        || CASE WHEN 'INFT' <> ALL (passenger.special_services) AND EXISTS (
               SELECT FROM passengers AS infant
               WHERE infant.flight_id = passenger.flight_id AND infant.accompanying_passenger_id = passenger.passenger_id
           ) THEN ARRAY['INFT'] ELSE '{}' END
        || CASE WHEN passenger.type = 'ADULT' AND 'CHLD' <> ALL (passenger.special_services) AND EXISTS (
               SELECT FROM passengers AS child
               -- By the index of locators: a flight has hundreds of passengers, a party few.
               WHERE child.pnr = passenger.pnr AND child.flight_id || '' = passenger.flight_id
                 AND child.type = 'CHILD'
           ) THEN ARRAY['CHLD'] ELSE '{}' END
$$;

CREATE OR REPLACE FUNCTION count_passenger_change() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
DECLARE
    changed passengers := CASE WHEN TG_OP = 'DELETE' THEN OLD ELSE NEW END;
    adults  text[] := '{}';
    parties text[] := '{}';
BEGIN
    INSERT INTO entitlements (flight_id, passenger_id, pnr)
    VALUES (changed.flight_id, changed.passenger_id, changed.pnr)
    ON CONFLICT (flight_id, passenger_id) DO UPDATE
    SET pnr = excluded.pnr, revision = entitlements.revision + 1, change_time = statement_timestamp();
    -- An adult with an infant needs INFT, an adult of a party with a child CHLD (`needs_of`).
    IF TG_OP <> 'INSERT' THEN
        adults := adults || OLD.accompanying_passenger_id;
        parties := parties || CASE WHEN OLD.type = 'CHILD' THEN OLD.pnr END;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        adults := adults || NEW.accompanying_passenger_id;
        parties := parties || CASE WHEN NEW.type = 'CHILD' THEN NEW.pnr END;
    END IF;
    UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
    WHERE flight_id = changed.flight_id AND passenger_id = ANY(adults);
    -- Only the first child of a party that comes, and the last one that leaves, changes what its adults need.
    UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
    FROM passengers AS adult
    WHERE adult.pnr = ANY(parties) AND adult.flight_id || '' = changed.flight_id AND adult.type = 'ADULT'
      AND adult.passenger_id <> changed.passenger_id
      AND entitlements.flight_id = adult.flight_id AND entitlements.passenger_id = adult.passenger_id
      AND NOT EXISTS (
          SELECT FROM passengers AS child
          WHERE child.pnr = adult.pnr AND child.flight_id || '' = changed.flight_id AND child.type = 'CHILD'
            AND child.passenger_id <> changed.passenger_id);
    PERFORM send_entitlements(changed.flight_id);
    RETURN NULL;
END $$;

-- The adults of the parties that there are: the seat service learns what they need.
UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
FROM passengers AS adult JOIN flights USING (flight_id)
WHERE entitlements.flight_id = adult.flight_id AND entitlements.passenger_id = adult.passenger_id
  AND adult.type = 'ADULT' AND flights.departure_time > statement_timestamp()
  AND EXISTS (SELECT FROM passengers AS child
              WHERE child.pnr = adult.pnr AND child.flight_id = adult.flight_id AND child.type = 'CHILD');
INSERT INTO timers (name, subject, due_time, try_time)
SELECT DISTINCT 'send-entitlements', flight_id, statement_timestamp(), statement_timestamp()
FROM entitlements WHERE known_revision < revision
ON CONFLICT (name, subject) DO UPDATE
SET due_time = excluded.due_time, try_time = excluded.try_time, tries = 0, last_error = NULL, fire_time = NULL;
