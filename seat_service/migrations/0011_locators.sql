-- One rule for a locator: the contract's. Each row came by SyncPassengers from a manifest, which has no other locators.
ALTER TABLE passengers
    DROP CONSTRAINT passengers_pnr_check,
    ADD CONSTRAINT passengers_pnr_check CHECK (pnr ~ '^[A-HJ-NP-Z][2-9A-HJ-NP-Z]{5}$');
