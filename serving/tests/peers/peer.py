"""Talks to a serving process with nothing of this project at hand: what there is, is asked by reflection."""

import sys

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase


class Bearer(grpc.UnaryUnaryClientInterceptor, grpc.StreamUnaryClientInterceptor, grpc.StreamStreamClientInterceptor,
             grpc.UnaryStreamClientInterceptor):
    """Sends a token with every call."""

    def __init__(self, token):
        self.metadata = [("authorization", "Bearer " + token)]

    def _call(self, proceed, details, request):
        class Details(grpc.ClientCallDetails):
            method = details.method
            timeout = details.timeout
            metadata = self.metadata
            credentials = details.credentials
            wait_for_ready = details.wait_for_ready
            compression = details.compression

        return proceed(Details(), request)

    intercept_unary_unary = intercept_stream_unary = intercept_stream_stream = intercept_unary_stream = _call


def main(address, token):
    open_channel = grpc.insecure_channel(address)
    health = health_pb2_grpc.HealthStub(open_channel)
    for service in ["", "foreshard.v1.ForecastService"]:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING, (service, answer)
    try:
        health.Check(health_pb2.HealthCheckRequest(service="no.such.Service"), timeout=10)
        raise AssertionError("a service that is not there has no health")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.NOT_FOUND, error

    channel = grpc.intercept_channel(open_channel, Bearer(token))
    found = ProtoReflectionDescriptorDatabase(channel)
    assert "foreshard.v1.ForecastService" in found.get_services(), found.get_services()
    pool = descriptor_pool.DescriptorPool(found)
    service = pool.FindServiceByName("foreshard.v1.ForecastService")

    def message(method, side):
        return message_factory.GetMessageClass(getattr(service.methods_by_name[method], side))

    def path(method):
        return f"/{service.full_name}/{method}"

    ingest_request, ingest_response = message("Ingest", "input_type"), message("Ingest", "output_type")
    batch = ingest_request()
    for i in range(20):
        row = batch.rows.add(shard_id="a", cpu_util=float(i))
        row.ts.FromSeconds(300 * i)
    ingest = channel.stream_unary(
        path("Ingest"), request_serializer=ingest_request.SerializeToString, response_deserializer=ingest_response.FromString
    )
    taken = ingest(iter([batch]), timeout=10)
    assert (taken.accepted, taken.refused_total) == (20, 0), taken

    request, response = message("Forecast", "input_type"), message("Forecast", "output_type")
    ask = dict(request_serializer=request.SerializeToString, response_deserializer=response.FromString)
    forecast = channel.unary_unary(path("Forecast"), **ask)
    next_hours = request.DESCRIPTOR.fields_by_name["product"].enum_type.values_by_name["PRODUCT_NEXT_HOURS"].number
    made = forecast(request(product=next_hours), timeout=10).series
    assert len(made) == 1 and made[0].shard_id == "a", made
    assert len(made[0].values) == 48 * len(made[0].levels), made
    assert made[0].provenance.version.number == 1, made[0].provenance

    stream = channel.unary_stream(path("ForecastStream"), **ask)
    assert [len(part.series) for part in stream(request(product=next_hours), timeout=10)] == [1]

    for product, token_sent, code in [(0, True, "INVALID_ARGUMENT"), (next_hours, False, "UNAUTHENTICATED")]:
        over = channel if token_sent else open_channel
        try:
            over.unary_unary(path("Forecast"), **ask)(request(product=product), timeout=10)
            raise AssertionError(code)
        except grpc.RpcError as error:
            assert error.code().name == code, error
    print("all well")


main(*sys.argv[1:])
