-- WL-7: entries end with the entitlement of their passengers and when check-in closes (docs/decisions/0032).

ALTER TABLE flights
    -- When check-in closes, as the check-in service said last; NULL until it was asked.
    ADD COLUMN close_time timestamptz,
    -- When all live entries were last compared with the manifest.
    ADD COLUMN compare_time timestamptz NOT NULL DEFAULT '-infinity';
-- The flights with live entries, in the order in which the reconciler compares them.
CREATE INDEX flights_to_compare ON flights (flight_id) WHERE open;

ALTER TABLE entries
    -- The ClaimSeat request of the match, once it is decided. It is repeated as it is until its outcome is known, whatever
    -- changes meanwhile: the mode, a setting, the passenger's needs.
    ADD COLUMN claim_request bytea,
    -- What an offer shall become once the seat service has cancelled its hold, with the actor and the reason.
    ADD COLUMN withdrawal entry_state,
    ADD COLUMN withdraw_actor text,
    ADD COLUMN withdraw_reason text,
    -- When the passenger's cabin, type or needs last changed; NULL if never.
    ADD COLUMN fact_time timestamptz,
    ADD CONSTRAINT only_a_match_is_claimed CHECK (claim_request IS NULL OR claim_id IS NOT NULL),
    ADD CONSTRAINT withdrawal_is_whole CHECK (
        (withdrawal IS NULL) = (withdraw_actor IS NULL) AND (withdrawal IS NULL) = (withdraw_reason IS NULL)),
    ADD CONSTRAINT only_an_offer_is_withdrawn CHECK (
        withdrawal IS NULL OR withdrawal IN ('DECLINED', 'LEFT') AND offer_expire_time IS NOT NULL
                              AND accept_time IS NULL);
