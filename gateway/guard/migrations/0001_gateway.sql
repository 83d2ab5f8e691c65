-- Limits that operations may change, what was found, and who is not let in.

CREATE TYPE limit_key AS ENUM ('PRINCIPAL', 'ADDRESS');
CREATE TYPE limit_mode AS ENUM ('ENFORCED', 'SHADOW');
CREATE TYPE incident_kind AS ENUM ('MAP_BURST', 'MAP_SCAN', 'HOLD_SPINNING', 'LOGIN_GUESSING');
CREATE TYPE block_scope AS ENUM ('EVERYTHING', 'LOGIN');

CREATE TABLE limits (
    limit_id            text PRIMARY KEY CHECK (limit_id ~ '^[a-z][a-z-]{2,39}$'),
    call_class          text NOT NULL,
    key                 limit_key NOT NULL,
    role                text NOT NULL DEFAULT '',
    requests_per_minute integer NOT NULL CHECK (requests_per_minute > 0),
    burst               integer NOT NULL CHECK (burst > 0),
    mode                limit_mode NOT NULL DEFAULT 'ENFORCED',
    update_time         timestamptz NOT NULL DEFAULT now(),
    updated_by          text NOT NULL DEFAULT 'default',
    UNIQUE (call_class, key, role)
);

CREATE TABLE blocks (
    block_id    uuid PRIMARY KEY,
    source      text NOT NULL,
    scope       block_scope NOT NULL,
    kind        incident_kind NOT NULL,
    create_time timestamptz NOT NULL DEFAULT now(),
    expire_time timestamptz NOT NULL,
    lift_time   timestamptz,
    lifted_by   text,
    lift_reason text,
    CONSTRAINT block_ends_after_it_began CHECK (expire_time > create_time),
    -- Later it has ended by itself, and there is nothing to lift.
    CONSTRAINT block_lifted_before_its_end CHECK (lift_time IS NULL OR lift_time < expire_time),
    CONSTRAINT lifted_block_says_by_whom CHECK (
        (lift_time IS NULL) = (lifted_by IS NULL) AND (lift_time IS NULL) = (lift_reason IS NULL))
);
CREATE INDEX blocks_standing ON blocks (expire_time) WHERE lift_time IS NULL;
CREATE INDEX blocks_latest ON blocks (create_time, block_id);
CREATE INDEX blocks_of_source ON blocks (source, expire_time);

-- Append-only.
CREATE TABLE incidents (
    incident_id    uuid PRIMARY KEY,
    kind           incident_kind NOT NULL,
    source         text NOT NULL,
    count          integer NOT NULL,
    threshold      integer NOT NULL,
    window_seconds integer NOT NULL,
    evidence       text[] NOT NULL,
    detect_time    timestamptz NOT NULL DEFAULT now(),
    block_id       uuid REFERENCES blocks,
    CONSTRAINT incident_is_over_its_threshold CHECK (count > threshold)
);
CREATE INDEX incidents_latest ON incidents (detect_time, incident_id);
CREATE INDEX incidents_of_source ON incidents (source, kind, detect_time);
