"""The parts of Envoy's configuration that change while it runs.

They are rate limits and blocks, as JSON of Envoy's messages.

`render.py` writes them into the file that Envoy starts with; the gateway service sends newer versions
(`guard/envoy_api.py`), and Envoy replaces a filter without a restart. Until the first message from the service,
and while the service is down, Envoy uses the version that it has.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from gateway.limits import ADDRESS_ROLES, ANY_CLASS, TOKEN_ROLES, Key, Limit, Mode, address_limit, of_call
from gateway.upstreams import UPSTREAMS
from services.addresses import IPV6_PREFIX_BITS
from services.rpcs import CallClass

BLOCKS_LUA: Final = Path(__file__).with_name("blocks.lua")
# Names of the filters, and of the resources to which Envoy subscribes.
ADDRESS_SHIELD: Final = "address-shield"
BLOCKS: Final = "blocks"
SHIELD: Final = "shield"

LOCAL_RATE_LIMIT: Final = "type.googleapis.com/envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"
LUA: Final = "type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua"

# The filter that verifies the token sets these headers from it. Envoy removes such headers from clients' requests.
ROLE_HEADER: Final = "x-skyhigh-role"
SUBJECT_HEADER: Final = "x-skyhigh-subject"
# Each limit counts so many sources at once; then Envoy evicts the least recently used one.
COUNTED_SOURCES: Final = 10_000
SHORTEST_FILL_SECONDS: Final = 0.05
PLAIN: Final = re.compile(r"[A-Za-z0-9:._/-]*")
# The default bucket, which Envoy requires: it takes the calls that no descriptor counts.
UNLIMITED: Final = {"max_tokens": 4_000_000_000, "tokens_per_fill": 4_000_000_000, "fill_interval": "1s"}
ALWAYS: Final = {"default_value": {"numerator": 100}}
NEVER: Final = {"default_value": {"numerator": 0}}

# Name of the route metadata from which the descriptors read the class.
METADATA: Final = "skyhigh"
CLASS_ACTION: Final = {
    "metadata": {
        "descriptor_key": "class",
        "metadata_key": {"key": METADATA, "path": [{"key": "class"}]},
        "source": "ROUTE_ENTRY",
    }
}
ADDRESS_ACTION: Final = {"masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": IPV6_PREFIX_BITS}}
ROLE_ACTION: Final = {"request_headers": {"header_name": ROLE_HEADER, "descriptor_key": "role"}}
SUBJECT_ACTION: Final = {"request_headers": {"header_name": SUBJECT_HEADER, "descriptor_key": "subject"}}
# The keys of a call's counters. A call with a token is counted by class and principal, and by class, role and address;
# a call without a token by class and address. Envoy skips a descriptor if the call does not have its header.
DESCRIPTORS: Final = (
    {"actions": [CLASS_ACTION, ROLE_ACTION, SUBJECT_ACTION]},
    {"actions": [CLASS_ACTION, ROLE_ACTION, ADDRESS_ACTION]},
    {"actions": [CLASS_ACTION, ADDRESS_ACTION]},
)

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Blocked:
    """A source whose calls are refused until `until`."""

    source: str
    """A principal such as `customer:4711`, or `address:` and the address or IPv6 /64 network."""
    until: datetime
    login_only: bool


@dataclass(frozen=True, slots=True)
class Filter:
    """The configuration of one filter."""

    type_url: str
    value: Json


def filters(limits: Sequence[Limit], blocks: Sequence[Blocked], *, enforced: bool) -> dict[str, Filter]:
    """Returns each filter by its name.

    The filters count, but refuse nothing unless `enforced`.
    """
    return {
        ADDRESS_SHIELD: Filter(LOCAL_RATE_LIMIT, _address_shield(limits, enforced=enforced)),
        BLOCKS: Filter(LUA, _blocks(blocks if enforced else ())),
        SHIELD: Filter(LOCAL_RATE_LIMIT, _shield(limits, enforced=enforced)),
    }


def _address_shield(limits: Sequence[Limit], *, enforced: bool) -> Json:
    """Returns the limit of all calls from one address.

    It is the first filter, and keeps one address from using up the capacity of the machine.
    """
    limit = of_call(tuple(limits), ANY_CLASS, Key.ADDRESS, "")
    counted = [_descriptor(limit, [{"key": "masked_remote_address"}])] if limit else []
    return _local_rate_limit("address_shield", [{"actions": [ADDRESS_ACTION]}], counted, enforced=enforced)


def _shield(limits: Sequence[Limit], *, enforced: bool) -> Json:
    """Returns the filter that counts each class by principal and by address.

    It counts the calls of this Envoy only.

    A call passes if none of its limits is reached. Envoy checks the limit with the slowest refill first, so a call that
    its principal's limit refuses is not counted for its address.
    """
    return _local_rate_limit("shield", list(DESCRIPTORS), list(_counted(tuple(limits))), enforced=enforced) | {
        "enable_x_ratelimit_headers": "DRAFT_VERSION_03"
    }


def _counted(limits: tuple[Limit, ...]) -> Iterator[Json]:
    """Yields a bucket for each class and role.

    If two descriptors matched a call, we could not control which one Envoy uses.
    """
    for call_class in CallClass:
        for role in TOKEN_ROLES:
            if limit := of_call(limits, call_class, Key.PRINCIPAL, role):
                yield _descriptor(
                    limit,
                    [{"key": "class", "value": call_class}, {"key": "role", "value": role}, {"key": "subject"}],
                )
        if limit := address_limit(limits, call_class, ""):
            yield _descriptor(limit, [{"key": "class", "value": call_class}, {"key": "masked_remote_address"}])
        for role in ADDRESS_ROLES:
            if limit := address_limit(limits, call_class, role):
                yield _descriptor(
                    limit,
                    [
                        {"key": "class", "value": call_class},
                        {"key": "role", "value": role},
                        {"key": "masked_remote_address"},
                    ],
                )


def _descriptor(limit: Limit, entries: list[dict[str, str]]) -> Json:
    # Envoy requires that each fill adds whole tokens, and that fills are at least 50 ms apart.
    tokens = math.ceil(limit.requests_per_minute * SHORTEST_FILL_SECONDS / 60)
    return {
        "entries": entries,
        "token_bucket": {
            "max_tokens": limit.burst,
            "tokens_per_fill": tokens,
            "fill_interval": f"{60 * tokens / limit.requests_per_minute:.9f}s",
        },
        "shadow_mode": limit.mode is Mode.SHADOW,
    }


def _local_rate_limit(name: str, rate_limits: list[Json], descriptors: list[Json], *, enforced: bool) -> Json:
    return {
        "stat_prefix": name,
        "token_bucket": UNLIMITED,
        "filter_enabled": ALWAYS,
        "filter_enforced": ALWAYS if enforced else NEVER,
        "always_consume_default_token_bucket": False,
        "rate_limited_as_resource_exhausted": True,
        "max_dynamic_descriptors": COUNTED_SOURCES,
        "rate_limits": rate_limits,
        "descriptors": descriptors,
    }


def _blocks(blocks: Sequence[Blocked]) -> Json:
    """Returns the Lua filter that refuses blocked sources.

    It has the blocks in memory; without blocks it does nothing.
    """
    if not blocks:
        return {"default_source_code": {"inline_string": "-- Nobody is blocked."}}
    tables: Json = {
        "BLOCKED": {
            block.source: {
                "until_time": int(block.until.astimezone(UTC).timestamp()) + 1,
                "login_only": block.login_only,
            }
            for block in blocks
        },
        "LOGINS": {path: True for path in _login_paths()},
    }
    lines = [f"local {name} = {_lua(table)}" for name, table in tables.items()]
    return {"default_source_code": {"inline_string": "\n".join((*lines, BLOCKS_LUA.read_text()))}}


def _login_paths() -> Iterator[str]:
    for upstream in UPSTREAMS:
        for name, rpc in upstream.rpcs.items():
            if rpc.call_class is CallClass.LOGIN:
                yield f"/{upstream.name}/{name}"


def _lua(value: Mapping[str, Any] | str | int | bool) -> str:
    """Returns a Lua literal.

    Strings with unusual characters are written byte by byte, so that no character can end them.
    """
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case str() if PLAIN.fullmatch(value):
            return f'"{value}"'
        case str():
            return '"' + "".join(f"\\{byte:03d}" for byte in value.encode()) + '"'
        case _:
            return "{" + ",".join(f"[{_lua(key)}]={_lua(item)}" for key, item in value.items()) + "}"
