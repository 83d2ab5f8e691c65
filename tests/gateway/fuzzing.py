"""Runs Schemathesis over an OpenAPI document against its edge: `python -m tests.gateway.fuzzing`.

It is a process of its own, because Hypothesis takes over the random numbers of a whole process. It reads its settings
as JSON from the environment variable `FUZZING`, and prints its findings as JSON.
"""

from __future__ import annotations

import json
import os
import re
import sys
import traceback
from collections import Counter
from dataclasses import asdict, dataclass, field
from http import HTTPStatus
from itertools import cycle
from pathlib import Path
from typing import Any, TypeAlias
from uuid import uuid4

import protovalidate
import schemathesis
from google.protobuf import json_format
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from schemathesis.core.failures import AcceptedNegativeData, Failure, ServerError
from schemathesis.engine import events, from_schema
from schemathesis.openapi.checks import RejectedPositiveData, UnsupportedMethodResponse

from gateway.descriptors import DESCRIPTORS
from gateway.openapi.api import Api
from gateway.openapi.callers import ROLES
from gateway.upstreams import UPSTREAMS
from services.rpcs import Rpc

TIMEOUT_SECONDS = 20
BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
# The rules of protovalidate are named after the type of the field, such as string.pattern. The rule of a duration has a
# description only, and JSON Schema cannot express a pattern with a Unicode class.
OWN_RULE = re.compile(r"(string|int32|int64|enum|repeated)\.|required")
UNICODE_CLASS = r"\p{"
AnyCase: TypeAlias = "schemathesis.Case[Any]"


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """The settings of a run."""

    url: str
    """The edge's URL."""
    openapi: str
    """The path of the document."""
    examples: int
    """The number of random requests per operation, in addition to those at the limits of its fields."""
    seed: int
    """The same seed creates the same requests."""
    tokens: dict[str, str]
    """Tokens by role."""
    known: dict[str, str]
    """Ids of existing resources, by the path variable's name."""


@dataclass(slots=True)
class Findings:
    """The result of a run."""

    failures: list[str] = field(default_factory=list)
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    """The number of responses by operation and status."""


class Contract:
    """The rules of the protos that JSON Schema cannot express."""

    def __init__(self) -> None:
        api = Api(FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()))
        self._methods: dict[str, MethodDescriptor] = {}
        self._rpcs: dict[str, Rpc] = {}
        for upstream in UPSTREAMS:
            self._methods |= dict(api.service(upstream.name).methods_by_name.items())
            self._rpcs |= upstream.rpcs
        self._validator = protovalidate.Validator()

    def roles(self, operation: str) -> list[str]:
        """Returns the roles that may call an operation; none if it needs no token."""
        return [role for role in ROLES if role in self._rpcs[operation].roles]

    def holds_for(self, case: AnyCase) -> bool:
        """Returns whether a request is valid when read as Protocol Buffers read JSON.

        They read `null` and an empty string as a missing field, a number as an enum's value, and the like. The
        transcoder also skips `null` in a list, and flattens a list in a list.
        """
        message = GetMessageClass(self._methods[operation_of(case)].input_type)()
        parameters = {**(case.path_parameters or {}), **(case.query or {})}
        values = _flat(parameters | (case.body if isinstance(case.body, dict) else {}))
        try:
            json_format.ParseDict(values, message, ignore_unknown_fields=True)
        except json_format.ParseError:
            return False
        return not self._validator.collect_violations(message)


def operation_of(case: AnyCase) -> str:
    """Returns the name of the RPC."""
    return str(case.operation.definition.raw["operationId"])


def run(fuzzing: Fuzzing) -> Findings:
    """Tests all operations; returns what does not conform to the document."""
    contract = Contract()
    schema = schemathesis.openapi.from_dict(json.loads(Path(fuzzing.openapi).read_text()), config=_config(fuzzing))
    _with_tokens(schema, contract, fuzzing.tokens)
    _with_sense(schema, fuzzing.known)
    _with_judgement(schema, contract)
    findings, statuses = Findings(), Counter[tuple[str, str]]()
    for event in from_schema(schema).execute():
        match event:
            case events.ScenarioFinished():
                findings.failures += _failures(event)
                statuses.update(_statuses(event))
            case events.NonFatalError():
                findings.failures.append(f"{event.label}: {''.join(traceback.format_exception(event.value))}")
            case events.FatalError():
                findings.failures.append(f"{event.exception!r}")
            case _:
                pass
    for (operation, status), count in sorted(statuses.items()):
        findings.statuses.setdefault(operation, {})[status] = count
    return findings


def _config(fuzzing: Fuzzing) -> schemathesis.Config:
    return schemathesis.Config.from_dict(
        {
            "seed": fuzzing.seed,
            "base-url": fuzzing.url,
            # In threads, `ast.parse` of Python 3.11.7 and earlier may fail (python/cpython#106905).
            "workers": 1,
            "request-timeout": TIMEOUT_SECONDS,
            # A watch does not end.
            "max-stream-events": 1,
            "continue-on-failure": True,
            "generation": {"max-examples": fuzzing.examples, "database": "none", "no-shrink": True},
            "phases": {
                # Leaves out QUERY, for example: without a content type Envoy refuses it as a bad request, whatever the
                # path.
                "coverage": {"unexpected-methods": ["get", "post", "delete"]},
                "stateful": {"enabled": False},
            },
        }
    )


def _with_tokens(schema: Any, contract: Contract, tokens: dict[str, str]) -> None:
    """Calls each operation with its permitted roles in turn."""
    callers: dict[str, Any] = {}

    @schema.auth(refresh_interval=None)
    class _Token:
        def get(self, case: AnyCase, context: schemathesis.AuthContext) -> str | None:
            operation = operation_of(case)
            roles = callers.setdefault(operation, cycle(contract.roles(operation) or [None]))
            return tokens.get(next(roles))

        def set(self, case: AnyCase, data: str | None, context: schemathesis.AuthContext) -> None:
            if data:
                case.headers["Authorization"] = f"Bearer {data}"


def _with_sense(schema: Any, known: dict[str, str]) -> None:
    """Sends valid requests to existing resources."""

    def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
        # The transcoder ignores every unknown field, except one without a name.
        return not _has_nameless(body)

    def before_call(context: schemathesis.HookContext, case: AnyCase, kwargs: dict[str, Any]) -> None:
        if case.meta is None or case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE:
            return
        for name in known.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = known[name]
        # An idempotency key is good for one request. The body and the header would have to contain the same one.
        if isinstance(case.body, dict) and "requestId" in case.body:
            case.body["requestId"] = str(uuid4())
            case.headers.pop("Idempotency-Key", None)
        elif "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = str(uuid4())

    schema.hook(filter_body)
    schemathesis.hook(before_call)


def _with_judgement(schema: Any, contract: Contract) -> None:
    """Discards the findings that are no defects."""

    def filter_failure(
        context: schemathesis.HookContext, failure: Failure, case: AnyCase, response: schemathesis.Response
    ) -> bool:
        match failure:
            case AcceptedNegativeData():
                return not contract.holds_for(case)
            case RejectedPositiveData():
                return not _refused_by_more_than_a_schema(response)
            case ServerError() if response.status_code in BUSY:
                # On a busy machine a call may time out once. A defect fails again.
                return case.call().status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            case UnsupportedMethodResponse():
                return not _is_another_operation(schema, case)
        return True

    schema.hook(filter_failure)


def _flat(value: Any) -> Any:
    match value:
        case dict():
            return {name: _flat(inner) for name, inner in value.items()}
        case list():
            items = [_flat(inner) for inner in value if inner is not None]
            return [one for item in items for one in (item if isinstance(item, list) else [item])]
    return value


def _has_nameless(value: Any) -> bool:
    match value:
        case dict():
            return "" in value or any(map(_has_nameless, value.values()))
        case list():
            return any(map(_has_nameless, value))
    return False


def _refused_by_more_than_a_schema(response: schemathesis.Response) -> bool:
    """Returns whether a request was refused for another reason than a field's own rule.

    Such a reason is a state, or a rule between fields.
    """
    details = json.loads(response.content)["details"]
    violations = [violation for detail in details for violation in detail.get("fieldViolations", ())]
    # A refusal by the transcoder names no rule.
    return not any(
        OWN_RULE.match(violation.get("reason", "string.")) and UNICODE_CLASS not in violation["description"]
        for violation in violations
    )


def _is_another_operation(schema: Any, case: AnyCase) -> bool:
    """Returns whether the path matches another template too.

    For example, `/v1/payments/webhook` matches `/v1/payments/{intent_id}`.
    """
    path = case.formatted_path
    templates = [path for path, methods in schema.raw_schema["paths"].items() if case.method.lower() in methods]
    return any(re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", template), path) for template in templates)


def _failures(event: events.ScenarioFinished) -> list[str]:
    return [
        f"{event.recorder.label}: {check.name}: {check.failure_info.failure.title}\n"
        f"{check.failure_info.failure.message}\n{check.failure_info.code_sample}"
        for checks in event.recorder.checks.values()
        for check in checks
        if check.failure_info is not None
    ]


def _statuses(event: events.ScenarioFinished) -> list[tuple[str, str]]:
    return [
        (event.recorder.label, str(interaction.response.status_code))
        for interaction in event.recorder.interactions.values()
        if interaction.response is not None
    ]


if __name__ == "__main__":
    json.dump(asdict(run(Fuzzing(**json.loads(os.environ["FUZZING"])))), sys.stdout)
