"""The OpenAPI document is valid, complete and consistent with the protos.

The edge serves it together with a page that loads nothing from other hosts.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from buf.validate import validate_pb2
from google.protobuf import json_format
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.message_factory import GetMessageClass
from openapi_spec_validator import OpenAPIV31SpecValidator

from gateway.descriptors import DESCRIPTORS, json_bindings, read_descriptors
from gateway.openapi import document, page
from gateway.openapi.api import Api
from gateway.openapi.examples import EXAMPLES
from gateway.openapi.rules import UnknownRuleError
from gateway.upstreams import UPSTREAMS
from services.validation import validate
from tests.gateway.conftest import Gateway


@pytest.fixture(scope="module")
def api() -> FileDescriptorSet:
    return FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())


@pytest.fixture(scope="module")
def openapi(api: FileDescriptorSet) -> dict[str, Any]:
    return document.build(api)


@pytest.fixture(scope="module")
def schemas(openapi: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = openapi["components"]["schemas"]
    return found


def operation(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for verbs in openapi["paths"].values() for each in verbs.values() if each["operationId"] == name]
    assert isinstance(found, dict)
    return found


def parameters(openapi: dict[str, Any], name: str) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in operation(openapi, name).get("parameters", ()) if "name" in each}


def test_the_document_is_valid(openapi: dict[str, Any]) -> None:
    assert openapi["openapi"] == "3.1.0"
    OpenAPIV31SpecValidator(openapi).validate()
    assert json.loads(json.dumps(openapi)) == openapi


def test_exactly_the_exposed_rpcs_have_a_path(openapi: dict[str, Any]) -> None:
    expected: dict[tuple[str, str], str] = {}
    for file in read_descriptors().file:
        for service in file.service:
            exposed = {one.name: one.exposed for one in UPSTREAMS}.get(f"{file.package}.{service.name}", {})
            for method in service.method:
                if method.name in exposed:
                    expected |= {binding: method.name for binding in json_bindings(method)}
    found = {
        (verb.upper(), path): each["operationId"]
        for path, verbs in openapi["paths"].items()
        for verb, each in verbs.items()
    }
    assert found == expected


def test_only_public_operations_need_no_token(openapi: dict[str, Any]) -> None:
    for upstream in UPSTREAMS:
        for name, rpc in upstream.exposed.items():
            if name != "GetSeatMap":
                found = operation(openapi, name)
                assert found["security"] == ([] if rpc.public else [{"bearer": []}]), name
                assert ("401" in found["responses"]) == (not rpc.public or name == "ReceiveWebhook"), name


def test_every_reference_resolves_and_every_component_is_used(openapi: dict[str, Any]) -> None:
    references = set(re.findall(r'"\$ref": "#/components/([^"]+)"', json.dumps(openapi)))
    components = {
        f"{kind}/{name}" for kind, named in openapi["components"].items() if kind != "securitySchemes" for name in named
    }
    assert references == components


def test_every_operation_and_field_is_described(openapi: dict[str, Any], schemas: dict[str, Any]) -> None:
    for verbs in openapi["paths"].values():
        for each in verbs.values():
            assert each["summary"], each["operationId"]
            assert not each["summary"].endswith("."), each["summary"]
            assert re.search(r"^(Callers: |Needs no token\.)", each["description"], re.MULTILINE), each["operationId"]
    for name, schema in schemas.items():
        if name.startswith(("seat.", "booking.", "checkin.", "flight.", "payment.", "waitlist.", "gateway.")):
            bare = [field for field, each in schema.get("properties", {}).items() if not each.get("description")]
            assert not bare, (name, bare)


def test_the_document_has_the_rules_of_the_protos(openapi: dict[str, Any], schemas: dict[str, Any]) -> None:
    suggest = parameters(openapi, "SuggestSeats")
    assert suggest["flight_id"]["schema"]["pattern"] == "^[A-Za-z0-9-]{3,40}$"
    assert suggest["flight_id"]["required"] is True
    assert suggest["partySize"]["required"] is True
    assert suggest["partySize"]["schema"] | {"minimum": 1, "maximum": 9} == suggest["partySize"]["schema"]
    assert "required" not in suggest["children"]
    assert suggest["positions"]["schema"]["maxItems"] == 3
    assert suggest["positions"]["schema"]["items"]["enum"][1:] == ["WINDOW", "MIDDLE", "AISLE"]
    assert "children: must be at most partySize" in operation(openapi, "SuggestSeats")["description"]
    known_version = parameters(openapi, "WatchSeatMap")["knownVersion"]["schema"]
    assert (known_version["type"], known_version["pattern"]) == ("string", "^[0-9]{1,18}$")
    hold = schemas["seat.HoldSeatsRequest"]["properties"]
    assert (hold["seats"]["minItems"], hold["seats"]["maxItems"]) == (1, 36)
    assert '"must have each seat only once"' in hold["seats"]["description"]
    assert schemas["seat.HoldSeatsRequest"]["required"] == ["seats"]
    assert hold["requestId"]["format"] == "uuid"
    booking = schemas["booking.CreateBookingRequest"]
    assert (
        booking["properties"]["contactEmail"] | {"format": "email", "maxLength": 254}
        == (booking["properties"]["contactEmail"])
    )
    assert "flightId: must be given if itineraryId is left out" in booking["description"]
    flight = schemas["checkin.FlightFacts"]
    assert {"departureTime", "arrivalTime", "flightNumber"} <= set(flight["required"])
    assert flight["properties"]["departureTime"]["format"] == "date-time"
    assert flight["properties"]["departureDate"]["format"] == "date"
    assert "At most 86400 s." in flight["properties"]["boardingBefore"]["description"]
    assert "WAITLIST_MODE_UNSPECIFIED" not in schemas["waitlist.SetWaitlistModeRequest"]["properties"]["mode"]["enum"]


def test_path_and_query_values_are_ascii(openapi: dict[str, Any]) -> None:
    for verbs in openapi["paths"].values():
        for each in verbs.values():
            for name, parameter in parameters(openapi, each["operationId"]).items():
                schema = parameter["schema"].get("items", parameter["schema"])
                if parameter["in"] in {"path", "query"} and schema["type"] == "string" and "enum" not in schema:
                    patterns = [schema, *schema.get("allOf", ())]
                    fits = all(re.search(one.get("pattern", ""), "Zoë") for one in patterns)
                    assert not fits or schema.get("format") == "uuid", (each["operationId"], name)


def test_required_response_fields_are_marked(schemas: dict[str, Any]) -> None:
    hold = schemas["seat.Hold"]
    assert {"holdId", "state", "seats", "managed"} == set(hold["required"]) & {"holdId", "state", "seats", "managed"}
    assert "expireTime" not in hold["required"], "a message may be missing"
    assert "profile" not in schemas["seat.SeatAssignment"]["properties"], "only requests have it"
    assert schemas["seat.Hold.State"]["enum"][1:] == ["HELD", "CONFIRMED", "CANCELLED", "EXPIRED"]
    assert schemas["google.type.Money"]["properties"]["units"]["type"] == "string"
    assert set(schemas["checkin.CheckIn.BagInput"]["properties"]) == set(schemas["checkin.CheckIn.Bag"]["properties"])
    assert "maximum" not in schemas["checkin.CheckIn.Bag"]["properties"]["weightGrams"], "a rule is for requests"


@pytest.mark.parametrize(
    ("rpc", "content_type"),
    [
        ("GetSeatMapJson", "application/json"),
        ("WatchSeatMap", "text/event-stream"),
        ("GetBoardingPassSvg", "image/svg+xml"),
        ("GetBoardingPassPng", "image/png"),
        ("GetTrip", "application/json"),
    ],
)
def test_responses_have_their_content_types(openapi: dict[str, Any], rpc: str, content_type: str) -> None:
    content = operation(openapi, rpc)["responses"]["200"]["content"]
    assert list(content) == [content_type]
    if rpc == "GetSeatMapJson":
        assert content[content_type]["schema"] == {"$ref": "#/components/schemas/seat.SeatMap"}
    if rpc == "WatchSeatMap":
        data = content[content_type]["schema"]["properties"]["data"]
        assert data["contentSchema"] == {"$ref": "#/components/schemas/seat.SeatMapUpdate"}


def test_a_refusal_lists_its_reasons(openapi: dict[str, Any]) -> None:
    refusals = operation(openapi, "HoldSeat")["responses"]
    assert set(refusals) == {"200", "400", "401", "403", "404", "409", "413", "429", "500", "503", "504"}
    assert "`SEAT_TAKEN`" in refusals["409"]["description"]
    assert "`IDEMPOTENCY_KEY_REUSED`" in refusals["409"]["description"]
    assert {"TOO_MANY_HELD_SEATS", "COOLING_DOWN", "RATE_LIMITED", "BLOCKED"} == set(
        refusals["429"]["content"]["application/json"]["examples"]
    )
    assert "Retry-After" in refusals["429"]["headers"]
    example = openapi["components"]["examples"]["seat.SEAT_TAKEN"]["value"]
    assert example["code"] == 10
    assert example["details"][0]["metadata"] == {
        "flight_id": EXAMPLES["flight_id"],
        "seat_number": "12A",
        "state": "HELD",
    }
    # The proto says: "Refusals: as HoldSeat and ExtendHold".
    changed = operation(openapi, "ChangeHoldSeats")["responses"]
    assert "`CABIN_NOT_ALLOWED`" in changed["400"]["description"]
    assert "`HOLD_EXPIRED`" in changed["409"]["description"]
    assert "404" not in operation(openapi, "ListFlights")["responses"]
    assert "403" not in operation(openapi, "GetHold")["responses"], "every role may call it"


def test_request_examples_are_valid(api: FileDescriptorSet, openapi: dict[str, Any]) -> None:
    protos = Api(api)
    methods = {name: one for each in UPSTREAMS for name, one in protos.service(each.name).methods_by_name.items()}
    seen = 0
    for path, verbs in openapi["paths"].items():
        for each in verbs.values():
            body = each.get("requestBody", {}).get("content", {}).get("application/json", {})
            if "example" in body:
                variables = {name: EXAMPLES.get(name, str(uuid4())) for name in re.findall(r"\{(\w+)\}", path)}
                message = GetMessageClass(methods[each["operationId"]].input_type)()
                validate(json_format.ParseDict(body["example"] | variables, message))
                seen += 1
    assert seen == len(re.findall(r'"requestBody"', json.dumps(openapi))) - 1, "all but the webhook's"


def test_an_unknown_rule_stops_the_document() -> None:
    api = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    (file,) = [file for file in api.file if file.name == "skyhigh/seat/v1/seat_service.proto"]
    (message,) = [message for message in file.message_type if message.name == "HoldSeatRequest"]
    (name,) = [one for one in message.field if one.name == "passenger_id"]
    name.options.Extensions[validate_pb2.field].string.prefix = "P"
    with pytest.raises(UnknownRuleError, match=r"string\.prefix"):
        document.build(api)


def test_the_command_writes_the_document(
    openapi: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "openapi.json"
    monkeypatch.setattr(sys, "argv", ["gateway.openapi", "--output", str(output)])
    runpy.run_module("gateway.openapi", run_name="__main__", alter_sys=True)
    assert json.loads(output.read_text()) == openapi


async def test_the_edge_serves_the_document(gateway: Gateway, openapi: dict[str, Any]) -> None:
    answer = await gateway.http.get("/openapi.json")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.json() == openapi


async def test_the_page_loads_all_its_files_from_the_edge(gateway: Gateway) -> None:
    answer = await gateway.http.get("/docs")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    files = set(re.findall(r'(?:src|href)="([^"]+)"', answer.text))
    assert all(path.startswith("/") for path in files)
    types = {".js": "application/javascript", ".css": "text/css", ".png": "image/png", "json": "application/json"}
    for path in files:
        loaded = await gateway.http.get(path)
        (content_type,) = [each for ending, each in types.items() if path.endswith(ending)]
        assert loaded.status_code == 200, path
        assert loaded.headers["content-type"].startswith(content_type), path
        assert loaded.headers["x-content-type-options"] == "nosniff"
    assert (await gateway.http.get("/docs/swagger-ui.js")).content == (
        page.SWAGGER_UI / "swagger-ui-bundle.js"
    ).read_bytes()


async def test_the_edges_files_are_read_only(gateway: Gateway) -> None:
    head = await gateway.http.head("/docs")
    assert (head.status_code, head.content) == (200, b"")
    written = await gateway.http.post("/openapi.json", json={})
    assert (written.status_code, written.headers["allow"]) == (405, "GET, HEAD")
    missing = await gateway.http.get("/docs/package.json")
    assert missing.json()["details"][0]["reason"] == "UNKNOWN_PATH"


def test_only_the_document_is_served_without_swagger_ui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "SWAGGER_UI", tmp_path)
    assert [served.path for served in page.served_files(tmp_path / "openapi.json")] == ["/openapi.json"]


def test_npm_packages_are_pinned_without_a_registry() -> None:
    lock = json.loads((page.OWN_FILES / "package-lock.json").read_text())
    wanted = json.loads((page.OWN_FILES / "package.json").read_text())["dependencies"]
    for name, package in lock["packages"].items():
        assert "resolved" not in package
        if name:
            assert package["integrity"].startswith("sha512-"), name
    for name, version in wanted.items():
        assert lock["packages"][f"node_modules/{name}"]["version"] == version


def test_paths_are_listed_service_by_service(openapi: dict[str, Any]) -> None:
    tags = [each["tags"][0] for verbs in openapi["paths"].values() for each in verbs.values()]
    changes = [tag for before, tag in pairwise(["", *tags]) if before != tag]
    assert {tag["name"] for tag in openapi["tags"]} == set(changes)
