-- SEAT-18: what SEAT-16 reads depends on what is held now and on what lapsed lately, never on all that an owner ever had.

-- Whose hold it is; NULL where the hold had ended before this column came.
ALTER TABLE hold_seats ADD COLUMN owner text;
UPDATE hold_seats SET owner = holds.owner FROM holds
WHERE hold_seats.state = 'HELD' AND holds.hold_id = hold_seats.hold_id;

-- The held seats of an owner on a flight. An expression, and not the column with WHERE state = 'HELD': a statement that
-- finds this index cannot be planned with the other indexes of what is held, and no other statement with this one.
CREATE INDEX held_seats_of_owner ON hold_seats ((CASE WHEN state = 'HELD' THEN owner END), flight_id)
    WHERE (CASE WHEN state = 'HELD' THEN owner END) IS NOT NULL;
-- What lapsed of an owner's, newest last.
CREATE INDEX holds_lapsed ON holds (owner, expire_time) WHERE state = 'EXPIRED';
DROP INDEX holds_of_owner;

-- As it was, but that it reads the owner's held seats of the flight by their index, and no more lapses than can change
-- the answer: doubled sixteen times any cool-down is longer than the window.
CREATE OR REPLACE FUNCTION hoarding(
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
    SELECT count(*), min(own.expire_time) INTO held_seats, first_end
    FROM hold_seats
    CROSS JOIN LATERAL (
        SELECT holds.expire_time FROM holds WHERE holds.hold_id = hold_seats.hold_id LIMIT 1
    ) AS own
    WHERE (CASE WHEN hold_seats.state = 'HELD' THEN hold_seats.owner END) = of_owner
      AND hold_seats.flight_id = on_flight
      AND hold_seats.hold_id IS DISTINCT FROM other_than AND own.expire_time > now();
    IF held_seats + wanted_seats > held_limit THEN
        no_room_seconds := coalesce(extract(epoch FROM first_end - now()), 1);
    END IF;
    SELECT count(*), max(lapsed.expire_time) INTO lapses, last_lapse
    FROM (
        SELECT holds.expire_time FROM holds
        WHERE holds.owner = of_owner AND holds.state = 'EXPIRED' AND holds.expire_time > now() - lapses_window
        ORDER BY holds.expire_time DESC LIMIT lapses_allowed + 16
    ) AS lapsed;
    IF lapses >= lapses_allowed THEN
        cooling_seconds := extract(epoch FROM
            last_lapse + least(first_cool_down * (2 ^ least(lapses - lapses_allowed, 16)), lapses_window) - now());
        IF cooling_seconds <= 0 THEN
            cooling_seconds := NULL;
        END IF;
    END IF;
END $$;
