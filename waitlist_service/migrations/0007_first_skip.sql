-- `skip_time` is that of the last time that a seat went past an entry. That an entry was passed over for a reason before a
-- younger one got the seat is known from the first.
ALTER TABLE skips ADD COLUMN first_skip_time timestamptz;
UPDATE skips SET first_skip_time = skip_time;
ALTER TABLE skips ALTER COLUMN first_skip_time SET DEFAULT statement_timestamp(),
                  ALTER COLUMN first_skip_time SET NOT NULL;
