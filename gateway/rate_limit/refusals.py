"""The gateway service's refusals, each with its reason of the contract and the metadata that it carries."""

from __future__ import annotations

from skyhigh.gateway.v1.error_reason_pb2 import ErrorReason

from services.errors import NotFound


def block_not_found() -> NotFound:
    """There is no such block."""
    return NotFound(ErrorReason.Name(ErrorReason.BLOCK_NOT_FOUND), "block not found")


def limit_not_found(limit_id: str) -> NotFound:
    """There is no such limit."""
    return NotFound(ErrorReason.Name(ErrorReason.LIMIT_NOT_FOUND), "limit not found", metadata={"limit_id": limit_id})
