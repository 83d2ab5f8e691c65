"""Invariants of the gateway: its incidents, blocks and limits."""

from __future__ import annotations

from typing import Final

from operations.invariants.invariant import Invariant

# The ids of the limits of gateway/limits.py. Importing that module here would make the start of every command slower.
LIMITS: Final = (
    *(
        f"{call_class}-per-{who}"
        for call_class in ("map", "hold", "read", "write", "watch")
        for who in ("principal", "agent", "operations", "service")
    ),
    *(
        f"{call_class}-per-{who}"
        for call_class in ("map", "hold", "read", "write", "watch")
        for who in ("address", "agent-address")
    ),
    *(f"{call_class}-per-address" for call_class in ("login", "search", "webhook", "any")),
)

GATEWAY_INVARIANTS: Final = (
    Invariant(
        13,
        "the block of an incident has the same source and the scope of its kind, and was active at the detection",
        """
        SELECT incident_id, incidents.kind, incidents.source, detect_time, block_id, blocks.source AS blocked,
               scope, create_time, expire_time
        FROM gateway.incidents JOIN gateway.blocks USING (block_id)
        WHERE (incidents.source = blocks.source AND detect_time >= create_time AND detect_time < expire_time
               -- A block for guessed logins covers only logins, because other clients may share the address.
               AND (scope = 'LOGIN') = (incidents.kind = 'LOGIN_GUESSING')) IS NOT TRUE
        """,
        schemas=("gateway",),
    ),
    Invariant(
        13,
        "every block has the incident that caused it",
        """
        SELECT block_id, source, kind, create_time FROM gateway.blocks
        WHERE NOT EXISTS (
            SELECT FROM gateway.incidents
            WHERE incidents.block_id = blocks.block_id AND incidents.kind = blocks.kind
              AND incidents.detect_time = blocks.create_time)
        """,
        schemas=("gateway",),
    ),
    Invariant(
        13,
        "an incident exceeds its threshold and has 1 to 10 pieces of evidence",
        """
        SELECT incident_id, kind, source, count, threshold, window_seconds, cardinality(evidence) AS evidence
        FROM gateway.incidents
        WHERE count <= threshold OR window_seconds <= 0 OR cardinality(evidence) NOT BETWEEN 1 AND 10
        """,
        schemas=("gateway",),
    ),
    Invariant(
        13,
        "a source has at most one active block of each scope at a time",
        """
        SELECT earlier.source, earlier.scope, earlier.block_id, later.block_id AS also,
               earlier.expire_time, later.create_time
        FROM gateway.blocks AS earlier
        JOIN gateway.blocks AS later
            ON later.source = earlier.source AND later.scope = earlier.scope
           AND (later.create_time, later.block_id) > (earlier.create_time, earlier.block_id)
        WHERE earlier.lift_time IS NULL AND later.lift_time IS NULL AND later.create_time < earlier.expire_time
        """,
        schemas=("gateway",),
    ),
    Invariant(
        13,
        "a block ends after it begins, and a lifted block names who lifted it and why, and was active then",
        """
        SELECT block_id, source, create_time, expire_time, lift_time, lifted_by
        FROM gateway.blocks
        WHERE expire_time <= create_time
           OR (lift_time IS NULL) <> (lifted_by IS NULL) OR (lift_time IS NULL) <> (lift_reason IS NULL)
           OR lift_time < create_time OR lift_time >= expire_time OR lifted_by !~ '^(agent|operations):.'
        """,
        schemas=("gateway",),
    ),
    Invariant(
        7,
        "every incident has its event",
        """
        SELECT incident_id, kind, source, detect_time FROM gateway.incidents
        -- Published events are kept for 72 hours.
        WHERE detect_time > now() - interval '72 hours'
          AND NOT EXISTS (
              SELECT FROM gateway.outbox
              -- One transaction writes both. A serialized incident begins with its id: field 1, of 36 bytes.
              WHERE outbox.routing_key = 'abuse.detected.v1' AND outbox.create_time = incidents.detect_time
                AND position('\\x0a24'::bytea || convert_to(incident_id::text, 'UTF8') IN body) > 0)
        """,
        schemas=("gateway",),
    ),
    Invariant(
        13,
        "every default limit exists and allows calls",
        f"""
        SELECT limit_id, requests_per_minute, burst
        FROM unnest('{{{",".join(LIMITS)}}}'::text[]) AS expected (limit_id) FULL JOIN gateway.limits USING (limit_id)
        WHERE (requests_per_minute > 0 AND burst > 0) IS NOT TRUE
        """,  # noqa: S608
        needs_service=True,
        schemas=("gateway",),
    ),
)
