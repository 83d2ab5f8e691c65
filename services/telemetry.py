"""Logs, metrics, and the trace id that connects the calls of one request."""

from __future__ import annotations

import logging
import random
import re
import sys
from typing import Any, Final

import structlog
from prometheus_client import Counter, Gauge, Histogram, start_http_server
from structlog.tracebacks import ExceptionDictTransformer

CALLS: Final = Counter("skyhigh_calls_total", "Finished calls.", ["method", "code"])
CALL_SECONDS: Final = Histogram(
    "skyhigh_call_seconds",
    "Time from a call's arrival to its answer.",
    ["method"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
BATCH_SIZE: Final = Histogram(
    "skyhigh_batch_size", "Requests in one batch.", ["batch"], buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256)
)
OUTBOX_PUBLISHED: Final = Counter("skyhigh_outbox_published_total", "Events that the broker confirmed.")
OUTBOX_RETURNED: Final = Counter(
    "skyhigh_outbox_returned_total", "Events that the broker had no queue for; they are tried again."
)
OUTBOX_WAITING: Final = Gauge("skyhigh_outbox_waiting", "Events that the broker has not confirmed yet.")
OUTBOX_AGE_SECONDS: Final = Gauge("skyhigh_outbox_age_seconds", "Age of the oldest unconfirmed event.")
EVENTS_CONSUMED: Final = Counter("skyhigh_events_consumed_total", "Events handled.", ["queue", "outcome"])
PEER_FAULTS: Final = Counter(
    "skyhigh_peer_faults_total", "Answers of other services that no reason of a contract explains.", ["code", "reason"]
)
TIMERS_FAILED: Final = Counter(
    "skyhigh_timers_failed_total", "Tries of a timer that failed, outages left out.", ["name"]
)
RECONCILED: Final = Counter(
    "skyhigh_reconciled_total",
    "Rows compared with the service that owns their fact: agreed, repaired, waits or failed.",
    ["comparison", "outcome"],
)

# https://www.w3.org/TR/trace-context/: version, trace id, parent id, flags.
_TRACEPARENT: Final = re.compile(r"^[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}$")


def configure_logging(service: str, level: str) -> None:
    """Logs one JSON object per line to standard output.

    Each line includes the values that are bound to the running call.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.ExceptionRenderer(_traceback),
    ]
    structlog.configure(
        processors=[*shared, structlog.processors.JSONRenderer()],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(service=service)
    # Libraries log their own problems, such as a lost connection, through the standard module.
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    logging.basicConfig(level=logging.WARNING, handlers=[handler])


def _traceback(exc_info: structlog.typing.ExcInfo) -> list[dict[str, Any]]:
    # Local variables of a call contain tokens and names, which must not be logged.
    stacks = ExceptionDictTransformer(show_locals=False)(exc_info)
    return [{**stack, "exc_value": without_row(stack["exc_value"])} for stack in stacks]


def without_row(error: object) -> str:
    """Returns an error's text without Postgres' DETAIL.

    DETAIL repeats the refused row, which contains personal data.
    """
    return str(error).partition("\nDETAIL:")[0]


def log(name: str) -> structlog.typing.FilteringBoundLogger:
    """Returns a logger with the module's name."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger(module=name)
    return logger


def serve_metrics(port: int) -> None:
    """Serves /metrics on loopback, from a separate thread."""
    start_http_server(port, addr="127.0.0.1")


def traceparent_or_new(received: str | None) -> str:
    """Returns the caller's W3C traceparent.

    Returns a new one if the caller sent none or a malformed one.
    """
    if received is not None and _TRACEPARENT.match(received):
        return received
    # A trace id must be unique but need not be unpredictable.
    return f"00-{random.getrandbits(128):032x}-{random.getrandbits(64):016x}-01"


def trace_id(traceparent: str) -> str:
    """Returns the trace id: the 32 hex digits that all parts of one trace share."""
    return traceparent[3:35]
