-- The seat service must know whose confirmed booking includes a seat: it refuses to free that (CHK-9). A seat service of
-- before would acknowledge the mark without storing it, so that one is upgraded first.
DROP TRIGGER passengers_change ON passengers;
CREATE TRIGGER passengers_change AFTER UPDATE ON passengers
    FOR EACH ROW WHEN ((OLD.pnr, OLD.type, OLD.cabin, OLD.special_services, OLD.accompanying_passenger_id,
                        OLD.booking IS NULL)
                       IS DISTINCT FROM
                       (NEW.pnr, NEW.type, NEW.cabin, NEW.special_services, NEW.accompanying_passenger_id,
                        NEW.booking IS NULL))
    EXECUTE FUNCTION count_passenger_change();

-- What a running system knows already. A flight that left more than a day ago gives no seat back.
WITH marked AS (
    UPDATE entitlements SET revision = revision + 1, change_time = statement_timestamp()
    FROM passengers JOIN flights USING (flight_id)
    WHERE entitlements.flight_id = passengers.flight_id AND entitlements.passenger_id = passengers.passenger_id
      AND passengers.booking IS NOT NULL AND passengers.type <> 'INFANT'
      AND flights.departure_time > statement_timestamp() - interval '1 day'
    RETURNING entitlements.flight_id
)
SELECT send_entitlements(flight_id) FROM (SELECT DISTINCT flight_id FROM marked) AS changed;
