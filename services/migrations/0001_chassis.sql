-- What every service has in its own schema: what it tells others, what it heard, and what it answered before.

-- Events written in the transaction of their change. The relay publishes and then marks; marked rows are kept for a
-- while, so that an operator can see what was told.
CREATE TABLE outbox (
    event_id     uuid PRIMARY KEY,
    routing_key  text NOT NULL,
    body         bytea NOT NULL,
    traceparent  text,
    create_time  timestamptz NOT NULL DEFAULT now(),
    publish_time timestamptz
);
CREATE INDEX outbox_unpublished ON outbox (create_time) WHERE publish_time IS NULL;
CREATE INDEX outbox_published ON outbox (publish_time) WHERE publish_time IS NOT NULL;

-- Events applied, each in the transaction of its effect.
CREATE TABLE inbox (
    consumer     text NOT NULL,
    event_id     uuid NOT NULL,
    receive_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (consumer, event_id)
);

-- Answers of successful mutations, for callers that repeat them. A key belongs to its principal.
CREATE TABLE idempotency (
    principal   text NOT NULL,
    key         uuid NOT NULL,
    -- Digest of the method and the parameters; another digest under the same key is refused.
    fingerprint bytea NOT NULL,
    response    bytea NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (principal, key)
);
CREATE INDEX idempotency_age ON idempotency USING brin (create_time);
