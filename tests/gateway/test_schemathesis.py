"""draft"""
from __future__ import annotations
import asyncio, json, os, time, collections
import pytest
import schemathesis
from schemathesis.engine import from_schema, events
from tests.gateway.airline import whole_airline, Airline
from gateway.openapi.callers import POLICIES
from gateway.exposure import SERVICES
from services.auth import Role


@pytest.fixture(scope="module")
async def airline(world, callers):
    async with whole_airline(world, callers) as a:
        yield a


ACCESS = {rpc: access for table in POLICIES.values() for rpc, access in table.items()}


def run(airline: Airline, callers, n):
    raw = json.loads((airline.folder / "openapi.json").read_text())
    config = schemathesis.Config.from_dict({
        "seed": 1,
        "base-url": airline.url,
        "workers": 2,
        "max-stream-events": 1,
        "request-timeout": 10,
        "continue-on-failure": True,
        "generation": {"max-examples": n},
        "phases": {"stateful": {"enabled": os.environ.get("ST") == "1"}},
    })
    schema = schemathesis.openapi.from_dict(raw, config=config)
    tokens = {role: getattr(callers, role)() for role in ("agent", "operations", "customer", "passenger", "service")}

    @schema.auth(refresh_interval=None)
    class Auth:
        def get(self, case, ctx):
            access = ACCESS[case.operation.definition.raw["operationId"]]
            for role in ("agent", "operations", "customer", "passenger", "service"):
                if Role(role) in access.roles: return tokens[role].token
        def set(self, case, data, ctx):
            if data: case.headers["Authorization"] = f"Bearer {data}"

    t = time.time()
    fails = collections.OrderedDict()
    statuses = collections.Counter()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            for case_id, inter in event.recorder.interactions.items():
                if inter.response is not None:
                    statuses[event.recorder.label, inter.response.status_code] += 1
                else: statuses[event.recorder.label, 'none'] += 1
            for case_id, checks in event.recorder.checks.items():
                for c in checks:
                    if c.failure_info is not None:
                        f = c.failure_info
                        key = (event.recorder.label, c.name, f.failure.title, event.phase.value)
                        fails.setdefault(key, []).append((f.failure.message, f.code_sample, event.recorder.interactions[case_id].response))
        elif isinstance(event, events.NonFatalError):
            print("NONFATAL", event.label, str(event.value)[:600], event.info if hasattr(event,'info') else '')
        elif isinstance(event, events.PhaseFinished):
            print("PHASE", event.phase.name, event.status, round(time.time() - t, 1), event.phase.skip_reason)
        elif isinstance(event, events.FatalError):
            print("FATAL", event.exception)
    print("time", time.time() - t, "requests", sum(statuses.values()))
    byst = collections.Counter()
    for (l, s), c in statuses.items(): byst[s] += c
    print(byst)
    with open("/tmp/oa/fails.txt", "w") as out:
        for k, v in fails.items():
            print("FAIL", len(v), k)
            for m, cs, r in v[:4]:
                print("FAIL", k, "\n  ", m[:1500], "\n  ", cs[:900], "\n  ", r and r.status_code, r and r.content[:500], file=out)
    with open("/tmp/oa/statuses.txt", "w") as out:
        for k, v in sorted(statuses.items(), key=str): print(k, v, file=out)
    return fails


@pytest.mark.timeout(600)
async def test_all(airline, callers):
    n = int(os.environ.get("SKYHIGH_TEST_EXAMPLES", "5"))
    fails = await asyncio.to_thread(run, airline, callers, n)
    assert not fails
