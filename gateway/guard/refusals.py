"""The refusals of the gateway service.

Each has its reason in the contract and its metadata.
"""

from __future__ import annotations

from skyhigh.gateway.v1.error_reason_pb2 import ErrorReason

from services.errors import NotFound


def block_not_found() -> NotFound:
    """Returns the refusal for an unknown block id."""
    return NotFound(ErrorReason.Name(ErrorReason.BLOCK_NOT_FOUND), "block not found; list the blocks to find its id")


def limit_not_found(limit_id: str) -> NotFound:
    """Returns the refusal for an unknown limit id."""
    return NotFound(
        ErrorReason.Name(ErrorReason.LIMIT_NOT_FOUND),
        f"limit {limit_id} not found; list the limits to find its id",
        metadata={"limit_id": limit_id},
    )
