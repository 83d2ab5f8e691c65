-- Whether cached maps may be read, and under which epoch their keys are (docs/decisions/0029). One row.
CREATE TABLE map_cache (
    one             boolean     PRIMARY KEY DEFAULT true CHECK (one),
    epoch           bigint      NOT NULL DEFAULT 0 CHECK (epoch >= 0),
    suspended_until timestamptz NOT NULL DEFAULT '-infinity'
);
INSERT INTO map_cache DEFAULT VALUES;
