-- SEAT-16 counts the held seats of guests for each address, too: a guest's session costs nothing, so a limit for each
-- guest alone is no limit.

-- The address that a guest's hold came from (of IPv6 its /64 network); NULL for all other holds.
ALTER TABLE holds ADD COLUMN address text;
ALTER TABLE hold_seats ADD COLUMN address text;

-- As held_seats_of_owner and holds_lapsed: what is held now and what lapsed, never all that an address ever held.
CREATE INDEX held_seats_of_address ON hold_seats ((CASE WHEN state = 'HELD' THEN address END), flight_id)
    WHERE (CASE WHEN state = 'HELD' THEN address END) IS NOT NULL;
CREATE INDEX holds_lapsed_of_address ON holds (address, expire_time) WHERE state = 'EXPIRED' AND address IS NOT NULL;

-- As the function hoarding, with the address in the place of the owner.
CREATE FUNCTION hoarding_of_address(
    of_address text, on_flight text, wanted_seats integer, other_than uuid, held_limit integer,
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
    WHERE (CASE WHEN hold_seats.state = 'HELD' THEN hold_seats.address END) = of_address
      AND hold_seats.flight_id = on_flight
      AND hold_seats.hold_id IS DISTINCT FROM other_than AND own.expire_time > now();
    IF held_seats + wanted_seats > held_limit THEN
        no_room_seconds := coalesce(extract(epoch FROM first_end - now()), 1);
    END IF;
    SELECT count(*), max(lapsed.expire_time) INTO lapses, last_lapse
    FROM (
        SELECT holds.expire_time FROM holds
        WHERE holds.address = of_address AND holds.state = 'EXPIRED' AND holds.expire_time > now() - lapses_window
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
