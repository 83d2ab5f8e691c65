"""`python -m tests.gateway.fuzzing`: Schemathesis over an OpenAPI document, against the edge that serves it.

A process of its own, because Hypothesis wants the random numbers of a whole process for itself. Settings come from the
environment, as JSON in `FUZZING`; what was found goes to standard output, as JSON.
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

from gateway.exposure import SERVICES
from gateway.openapi.api import Api
from gateway.openapi.callers import ROLES, access_to
from gateway.render import DESCRIPTORS
from services.auth import Access

TIMEOUT_SECONDS = 20
BUSY = (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT)
# The rules of protovalidate are named for the type of field, such as string.pattern. Those of a duration are said in
# words, and a pattern with a class of Unicode's allows less than the document can say.
OWN_RULE = re.compile(r"(string|int32|int64|enum|repeated)\.|required")
UNICODE_CLASS = r"\p{"
AnyCase: TypeAlias = "schemathesis.Case[Any]"


@dataclass(frozen=True, slots=True)
class Fuzzing:
    """What is to be done."""

    url: str
    """Where the edge is."""
    openapi: str
    """The file."""
    examples: int
    """So many requests of each operation are made up, besides those that stand for its limits."""
    seed: int
    """The same one makes the same requests up."""
    tokens: dict[str, str]
    """By role."""
    known: dict[str, str]
    """Ids of what is there, by the path variable's name."""


@dataclass(slots=True)
class Findings:
    """What came of it."""

    failures: list[str] = field(default_factory=list)
    statuses: dict[str, dict[str, int]] = field(default_factory=dict)
    """How often each operation gave each status."""


class Contract:
    """What the protos say, for where JSON Schema can't say it."""

    def __init__(self) -> None:
        api = Api(FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()))
        self._methods: dict[str, MethodDescriptor] = {}
        self._access: dict[str, Access] = {}
        for service in SERVICES:
            methods = api.service(service.name).methods_by_name
            for rpc in service.calls:
                self._methods[rpc] = methods[rpc]
                self._access[rpc] = access_to(service, rpc)
        self._validator = protovalidate.Validator()

    def roles(self, operation: str) -> list[str]:
        """The roles that may call an operation; none where it needs no token."""
        return [role for role in ROLES if role in self._access[operation].roles]

    def holds_for(self, case: AnyCase) -> bool:
        """Whether a request is good when it is read as Protocol Buffers read JSON.

        They read `null` and an empty string as a missing field, a number as an enum's value, and more of the kind. The
        transcoder moreover passes over `null` in a list, and reads a list in a list as a part of it.
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
    """The RPC's name."""
    return str(case.operation.definition.raw["operationId"])


def run(fuzzing: Fuzzing) -> Findings:
    """Tries everything and returns what does not keep to the document."""
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
            # In threads, `ast.parse` of Python 3.11.7 and before takes one call for another (python/cpython#106905).
            "workers": 1,
            "request-timeout": TIMEOUT_SECONDS,
            # A watch does not end.
            "max-stream-events": 1,
            "continue-on-failure": True,
            "generation": {"max-examples": fuzzing.examples, "database": "none", "no-shrink": True},
            "phases": {
                # Among the others is QUERY, which Envoy calls a bad request, whatever the path, without a content type.
                "coverage": {"unexpected-methods": ["get", "post", "delete"]},
                "stateful": {"enabled": False},
            },
        }
    )


def _with_tokens(schema: Any, contract: Contract, tokens: dict[str, str]) -> None:
    """Has each operation called by one role after the other, of those that may."""
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
    """Has good requests be about what is there."""

    def filter_body(context: schemathesis.HookContext, body: Any) -> bool:
        # The transcoder ignores every field that it does not know, but not one without a name.
        return not _has_nameless(body)

    def before_call(context: schemathesis.HookContext, case: AnyCase, kwargs: dict[str, Any]) -> None:
        if case.meta is None or case.meta.generation.mode is not schemathesis.GenerationMode.POSITIVE:
            return
        for name in known.keys() & (case.path_parameters or {}).keys():
            case.path_parameters[name] = known[name]
        # A key is good for one request. In the body and the header it would have to be the same.
        if isinstance(case.body, dict) and "requestId" in case.body:
            case.body["requestId"] = str(uuid4())
            case.headers.pop("Idempotency-Key", None)
        elif "Idempotency-Key" in case.headers:
            case.headers["Idempotency-Key"] = str(uuid4())

    schema.hook(filter_body)
    schemathesis.hook(before_call)


def _with_judgement(schema: Any, contract: Contract) -> None:
    """Says which findings are none."""

    def filter_failure(
        context: schemathesis.HookContext, failure: Failure, case: AnyCase, response: schemathesis.Response
    ) -> bool:
        match failure:
            case AcceptedNegativeData():
                return not contract.holds_for(case)
            case RejectedPositiveData():
                return not _refused_by_more_than_a_schema(response)
            case ServerError() if response.status_code in BUSY:
                # On a busy machine a call may run out of time once. A defect does so again.
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
    """Whether a request was refused for a state, or by a rule between fields, and not by a field's own rule."""
    details = json.loads(response.content)["details"]
    violations = [violation for detail in details for violation in detail.get("fieldViolations", ())]
    # What the transcoder refuses has no rule.
    return not any(
        OWN_RULE.match(violation.get("reason", "string.")) and UNICODE_CLASS not in violation["description"]
        for violation in violations
    )


def _is_another_operation(schema: Any, case: AnyCase) -> bool:
    """Whether the path is one of another template too, as `/v1/payments/webhook` is of `/v1/payments/{intent_id}`."""
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
