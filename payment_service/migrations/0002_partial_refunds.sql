-- A charge is given back whole, or in parts of which each has its own row and its own key at the provider.

ALTER TABLE intents
    -- What is to be given back, all refunds together, and what the provider has given back so far.
    ADD COLUMN refund_minor_units bigint NOT NULL DEFAULT 0,
    ADD COLUMN refunded_minor_units bigint NOT NULL DEFAULT 0;
UPDATE intents
SET refund_minor_units = minor_units, refunded_minor_units = CASE state WHEN 'REFUNDED' THEN minor_units ELSE 0 END
WHERE state IN ('REFUNDING', 'REFUNDED');
ALTER TABLE intents
    ADD CONSTRAINT refunds_within_amount CHECK (
        refunded_minor_units >= 0 AND refunded_minor_units <= refund_minor_units
        AND refund_minor_units <= minor_units),
    ADD CONSTRAINT intent_state_has_its_refunds CHECK (
        CASE state
            WHEN 'SUCCEEDED' THEN refund_minor_units < minor_units
            WHEN 'REFUNDING' THEN refund_minor_units = minor_units AND refunded_minor_units < minor_units
            WHEN 'REFUNDED' THEN refunded_minor_units = minor_units
            ELSE refund_minor_units = 0
        END);

ALTER TABLE refunds
    ADD COLUMN number smallint NOT NULL DEFAULT 1 CHECK (number > 0),
    ADD COLUMN minor_units bigint CHECK (minor_units > 0);
UPDATE refunds SET minor_units = intents.minor_units FROM intents WHERE intents.intent_id = refunds.intent_id;
ALTER TABLE refunds ALTER COLUMN minor_units SET NOT NULL;
ALTER TABLE refunds DROP CONSTRAINT refunds_pkey;
ALTER TABLE refunds ADD PRIMARY KEY (charge_key, number);
