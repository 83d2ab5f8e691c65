-- Intents, the charges that were tried for them, what was given back, and what the provider told. Money is in integer
-- minor units of its currency.

CREATE TYPE intent_state AS ENUM (
    'REQUIRES_PAYMENT', 'PROCESSING', 'SUCCEEDED', 'FAILED', 'CANCELLED', 'REFUNDED', 'REFUNDING');
CREATE TYPE charge_state AS ENUM ('PENDING', 'FAILED', 'VOIDED', 'SUCCEEDED');
CREATE TYPE refund_state AS ENUM ('REQUESTED', 'SUCCEEDED');
CREATE TYPE webhook_outcome AS ENUM ('APPLIED', 'IGNORED', 'QUARANTINED');

-- Something that is to be paid once.
CREATE TABLE intents (
    intent_id    uuid PRIMARY KEY,
    reference    text NOT NULL,
    owner        text NOT NULL,
    currency     text NOT NULL CHECK (currency ~ '^[A-Z]{3}$'),
    minor_units  bigint NOT NULL CHECK (minor_units > 0),
    state        intent_state NOT NULL DEFAULT 'REQUIRES_PAYMENT',
    -- 1 when created, then one more with each transition; the history has a row for each.
    version      integer NOT NULL DEFAULT 1 CHECK (version > 0),
    -- Of the present or last payment.
    attempts     smallint NOT NULL DEFAULT 0,
    max_attempts smallint NOT NULL CHECK (max_attempts > 0),
    -- When the running attempt counts as failed; NULL while none runs.
    attempt_end  timestamptz,
    last_error   text,
    -- Passed to the provider and forgotten when the payment ends.
    payment_code text CHECK (payment_code ~ '^[0-9]{5}$'),
    -- The one charge that counts; every other that succeeds is given back.
    paid_charge  uuid,
    create_time  timestamptz NOT NULL DEFAULT now(),
    update_time  timestamptz NOT NULL DEFAULT now(),
    succeed_time timestamptz,
    refund_time  timestamptz,
    cancel_time  timestamptz,
    CONSTRAINT attempts_within_limit CHECK (attempts BETWEEN 0 AND max_attempts),
    CONSTRAINT paid_has_its_charge CHECK ((paid_charge IS NULL) = (succeed_time IS NULL)),
    CONSTRAINT code_only_while_processing CHECK ((state = 'PROCESSING') = (payment_code IS NOT NULL)),
    CONSTRAINT attempt_only_while_processing CHECK (attempt_end IS NULL OR (state = 'PROCESSING' AND attempts > 0)),
    CONSTRAINT intent_state_has_its_times CHECK (
        CASE state
            WHEN 'REQUIRES_PAYMENT' THEN attempts = 0 AND last_error IS NULL
                AND succeed_time IS NULL AND refund_time IS NULL AND cancel_time IS NULL
            WHEN 'PROCESSING' THEN succeed_time IS NULL AND refund_time IS NULL AND cancel_time IS NULL
            WHEN 'FAILED' THEN attempts > 0 AND last_error IS NOT NULL
                AND succeed_time IS NULL AND refund_time IS NULL AND cancel_time IS NULL
            WHEN 'SUCCEEDED' THEN succeed_time IS NOT NULL AND refund_time IS NULL AND cancel_time IS NULL
            WHEN 'REFUNDING' THEN succeed_time IS NOT NULL AND refund_time IS NULL AND cancel_time IS NULL
            WHEN 'REFUNDED' THEN succeed_time IS NOT NULL AND refund_time >= succeed_time AND cancel_time IS NULL
            WHEN 'CANCELLED' THEN succeed_time IS NULL AND refund_time IS NULL AND cancel_time IS NOT NULL
        END)
) WITH (fillfactor = 70);
-- One intent for a reference, unless it was cancelled.
CREATE UNIQUE INDEX one_intent_per_reference ON intents (reference) WHERE state <> 'CANCELLED';

-- Every transition of every intent, append-only.
CREATE TABLE intent_events (
    intent_id  uuid NOT NULL REFERENCES intents,
    version    integer NOT NULL CHECK (version > 0),
    from_state intent_state,
    to_state   intent_state NOT NULL,
    actor      text NOT NULL,
    reason     text NOT NULL,
    event_time timestamptz NOT NULL,
    PRIMARY KEY (intent_id, version),
    CONSTRAINT begins_with_its_creation CHECK ((version = 1) = (from_state IS NULL)),
    CONSTRAINT legal_transition CHECK (
        CASE WHEN from_state IS NULL THEN to_state = 'REQUIRES_PAYMENT' ELSE (from_state, to_state) IN (
            ('REQUIRES_PAYMENT', 'PROCESSING'), ('FAILED', 'PROCESSING'),
            ('REQUIRES_PAYMENT', 'CANCELLED'), ('FAILED', 'CANCELLED'),
            ('PROCESSING', 'SUCCEEDED'), ('PROCESSING', 'FAILED'), ('FAILED', 'SUCCEEDED'),
            ('SUCCEEDED', 'REFUNDING'), ('REFUNDING', 'REFUNDED')) END)
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the history is append-only';
END $$;
CREATE TRIGGER history_is_append_only BEFORE UPDATE OR DELETE ON intent_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

-- What the provider was asked to take. The key is ours: the provider answers a repeat with the same charge. The next
-- charge of an intent has another key, and begins only after this one was declined or voided.
CREATE TABLE charges (
    key                uuid PRIMARY KEY,
    intent_id          uuid NOT NULL REFERENCES intents,
    number             integer NOT NULL CHECK (number > 0),
    state              charge_state NOT NULL DEFAULT 'PENDING',
    -- Attempts that used this key.
    tries              integer NOT NULL DEFAULT 1 CHECK (tries > 0),
    provider_charge_id text,
    error              text,
    create_time        timestamptz NOT NULL DEFAULT now(),
    decide_time        timestamptz,
    UNIQUE (intent_id, number),
    CONSTRAINT charge_state_has_its_time CHECK ((state = 'PENDING') = (decide_time IS NULL)),
    CONSTRAINT only_a_refusal_has_an_error CHECK ((state IN ('FAILED', 'VOIDED')) = (error IS NOT NULL)),
    CONSTRAINT taken_money_has_its_place CHECK (state <> 'SUCCEEDED' OR provider_charge_id IS NOT NULL)
) WITH (fillfactor = 70);
CREATE UNIQUE INDEX one_open_charge_per_intent ON charges (intent_id) WHERE state = 'PENDING';

-- What is given back: a whole charge, once.
CREATE TABLE refunds (
    charge_key         uuid PRIMARY KEY REFERENCES charges,
    intent_id          uuid NOT NULL REFERENCES intents,
    -- Our idempotency key to the provider.
    refund_key         uuid NOT NULL UNIQUE,
    state              refund_state NOT NULL DEFAULT 'REQUESTED',
    reason             text NOT NULL,
    provider_refund_id text,
    create_time        timestamptz NOT NULL DEFAULT now(),
    finish_time        timestamptz,
    CONSTRAINT refund_state_has_its_time CHECK (
        (state = 'SUCCEEDED') = (finish_time IS NOT NULL) AND (state = 'SUCCEEDED') = (provider_refund_id IS NOT NULL))
);
CREATE INDEX refunds_open ON refunds (create_time) WHERE state = 'REQUESTED';
CREATE INDEX refunds_of_intent ON refunds (intent_id);

-- Signed events of the provider, each once; what was unsigned, forged or stale never comes here.
CREATE TABLE webhook_events (
    provider     text NOT NULL,
    event_id     text NOT NULL,
    type         text NOT NULL,
    charge_key   uuid NOT NULL,
    currency     text NOT NULL,
    minor_units  bigint NOT NULL,
    outcome      webhook_outcome NOT NULL,
    -- Why it is in quarantine.
    reason       text,
    receive_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (provider, event_id),
    CONSTRAINT quarantine_has_its_reason CHECK ((outcome = 'QUARANTINED') = (reason IS NOT NULL))
);
CREATE INDEX webhook_events_quarantined ON webhook_events (receive_time) WHERE outcome = 'QUARANTINED';
CREATE INDEX webhook_events_age ON webhook_events (receive_time) WHERE outcome <> 'QUARANTINED';
