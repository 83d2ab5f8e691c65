-- The locator that the check-in service reserved for this booking: from before its payment, and for its confirmation.
ALTER TABLE bookings ADD COLUMN reserved_pnr text CHECK (reserved_pnr ~ '^[A-HJ-NP-Z][2-9A-HJ-NP-Z]{5}$');
