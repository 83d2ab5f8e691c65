"""The declaration that every RPC has: the option `(skyhigh.options.v1.rpc)`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import grpc
import pytest
from google.protobuf import descriptor_pb2, text_format
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection_pb2
from skyhigh.options.v1 import rpc_pb2

from gateway.descriptors import read_descriptors
from gateway.openapi.api import Api
from seat_service.service import SEAT_SERVICE
from services import app, rpcs
from services.auth import Role
from services.rpcs import CallClass, DeclarationError, Effect
from services.time_limits import FACTOR
from tests.callers import Callers

READ: Final = "roles: [CUSTOMER, AGENT] owned: 'hold_id' effect: READ time_limit {seconds: 2}"
KEYED: Final = "roles: [SERVICE] effect: MUTATION time_limit {seconds: 5}"
STREAM: Final = "roles: [ANYBODY] effect: STREAM"


def service_with(declaration: str | None, *fields: str, streams: bool = False) -> ServiceDescriptor:
    """Returns a service with one RPC, whose request has these fields."""
    file = descriptor_pb2.FileDescriptorProto(name="toy.proto", package="toy", dependency=[rpc_pb2.DESCRIPTOR.name])
    request = file.message_type.add(name="Request")
    for number, name in enumerate(fields, 1):
        request.field.add(name=name, number=number, type="TYPE_STRING", label="LABEL_OPTIONAL")
    method = file.service.add(name="ToyService").method.add(
        name="Play", input_type=".toy.Request", output_type=".toy.Request", server_streaming=streams
    )
    if declaration is not None:
        option = method.options.Extensions[rpc_pb2.rpc]
        option.SetInParent()
        text_format.Parse(declaration, option)
    pool = DescriptorPool()
    for module in (descriptor_pb2.DESCRIPTOR, *rpc_pb2.DESCRIPTOR.dependencies, rpc_pb2.DESCRIPTOR):
        copy = descriptor_pb2.FileDescriptorProto()
        module.CopyToProto(copy)
        pool.Add(copy)
    pool.Add(file)
    found: ServiceDescriptor = pool.FindServiceByName("toy.ToyService")
    return found


def test_every_field_of_a_declaration_is_read() -> None:
    text = READ + " gateway {call_class: MAP max_body_bytes: 4096}"
    rpc = rpcs.of_service(service_with(text, "hold_id"))["Play"]
    assert rpc.roles == {Role.CUSTOMER, Role.AGENT}
    assert (rpc.owned, rpc.effect) == (("hold_id",), Effect.READ)
    assert (rpc.seconds, rpc.time_limit_seconds) == (2.0, 2.0 * FACTOR)
    assert (rpc.call_class, rpc.max_body_bytes, rpc.exposed) == (CallClass.MAP, 4096, True)
    assert not rpc.public
    assert not rpc.mutation


def test_an_rpc_without_a_place_at_the_gateway_is_internal() -> None:
    rpc = rpcs.of_service(service_with(KEYED, "request_id"))["Play"]
    assert (rpc.exposed, rpc.call_class, rpc.mutation) == (False, None, True)


def test_a_stream_has_no_time_limit() -> None:
    rpc = rpcs.of_service(service_with(STREAM, streams=True))["Play"]
    assert (rpc.seconds, rpc.time_limit_seconds, rpc.public) == (None, None, True)


@pytest.mark.parametrize(
    ("declaration", "fields", "reason"),
    [
        (None, (), r"has no option \(skyhigh\.options\.v1\.rpc\)"),
        ("", (), "has no roles; has no effect; needs a time_limit"),
        ("roles: [ROLE_UNSPECIFIED] effect: READ time_limit {seconds: 2}", (), "has no roles"),
        ("roles: [ANYBODY, AGENT] effect: READ time_limit {seconds: 2}", (), "ANYBODY must be the only role"),
        ("roles: [AGENT] effect: READ", (), "needs a time_limit"),
        (STREAM + " time_limit {seconds: 2}", (), "a STREAM has no time_limit"),
        (READ + " gateway {}", ("hold_id",), "needs a call_class at the gateway"),
        (READ, (), "the request does not have every field of `owned`"),
        (READ, ("hold_id", "request_id"), "only an RPC whose request has a request_id is a MUTATION"),
        (KEYED, (), "only an RPC whose request has a request_id is a MUTATION"),
        (STREAM, (), "an RPC is a STREAM if and only if it streams"),
    ],
)
def test_a_missing_or_wrong_declaration_is_refused(
    declaration: str | None, fields: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(DeclarationError, match=rf"^toy\.ToyService\.Play: {reason}"):
        rpcs.of_service(service_with(declaration, *fields))


def test_a_service_with_an_undeclared_rpc_does_not_start() -> None:
    undeclared = replace(SEAT_SERVICE, descriptor=service_with(None))
    with pytest.raises(DeclarationError, match=r"toy\.ToyService\.Play"):
        app.run(undeclared)


def test_every_rpc_of_the_protos_has_a_declaration() -> None:
    files = read_descriptors()
    names = [f"{file.package}.{service.name}" for file in files.file for service in file.service]
    assert SEAT_SERVICE.descriptor.full_name in names
    for name in names:
        assert rpcs.of_service(Api(files).service(name)), name


@pytest.mark.parametrize(
    ("ours", "theirs", "special"),
    [
        (Role, rpc_pb2.Rpc.Role, "ROLE_UNSPECIFIED"),
        (Effect, rpc_pb2.Rpc.Effect, "EFFECT_UNSPECIFIED"),
        (CallClass, rpc_pb2.Rpc.Gateway.CallClass, "CALL_CLASS_UNSPECIFIED"),
    ],
)
def test_the_enums_are_those_of_the_proto(ours: Any, theirs: Any, special: str) -> None:
    assert {*ours.__members__, special} == set(theirs.keys())


async def test_a_client_of_reflection_reads_the_declarations(callers: Callers) -> None:
    name = SEAT_SERVICE.descriptor.full_name
    async with grpc.aio.insecure_channel(callers.address) as channel:
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        answers = call(iter([reflection_pb2.ServerReflectionRequest(file_containing_symbol=name)]))
        answer = await answers.read()
    sent = map(descriptor_pb2.FileDescriptorProto.FromString, answer.file_descriptor_response.file_descriptor_proto)
    files = {file.name: file for file in sent}
    pool = DescriptorPool()

    def add(name: str) -> None:
        file = files.pop(name, None)
        if file is not None:
            for dependency in file.dependency:
                add(dependency)
            pool.Add(file)

    for name_of_file in tuple(files):
        add(name_of_file)
    assert rpcs.of_service(pool.FindServiceByName(name)) == rpcs.of_service(SEAT_SERVICE.descriptor)
