-- CHK-9: a seat that the passenger's confirmed booking includes stays the passenger's; only a service frees it.
ALTER TABLE passengers ADD COLUMN seat_included boolean NOT NULL DEFAULT false;
