-- The airport that a flight leaves from, as the check-in service said last: mails tell times in its zone (docs/decisions/0036).
ALTER TABLE flights ADD COLUMN origin text NOT NULL DEFAULT '';
