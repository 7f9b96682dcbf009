"""Other people's clients, each run as its makers mean it to be run.

    clients.py NAME ADDRESS

sends a known load and prints what it has sent as one JSON object: how many
samples of which metric, and what their values add up to. ADDRESS is host:port
of HTTP or gRPC, as the client needs it.
"""

import collections
import datetime
import json
import sys

ROWS = 20_000


def otel(exporter):
    """The OpenTelemetry SDK: a counter, a gauge, a classic histogram and an
    exponential one, collected ten times."""
    from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
    from opentelemetry.sdk.metrics.export import MetricExportResult, PeriodicExportingMetricReader
    from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
    from opentelemetry.sdk.resources import Resource

    name = sys.argv[1].replace("-", "_")
    points, sums = collections.Counter(), collections.Counter()
    inner = exporter.export

    def export(data, *args, **kwargs):
        result = inner(data, *args, **kwargs)
        assert result is MetricExportResult.SUCCESS, result
        for resource in data.resource_metrics:
            for scope in resource.scope_metrics:
                for metric in scope.metrics:
                    for point in metric.data.data_points:
                        points[metric.name] += 1
                        sums[metric.name] += getattr(point, "value", 0)
        return result

    exporter.export = export
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=float("inf"))
    provider = MeterProvider(
        metric_readers=[reader],
        resource=Resource.create({"service.name": "interop", "service.instance.id": name}),
        views=[View(instrument_name=f"{name}_exponential", aggregation=ExponentialBucketHistogramAggregation())],
    )
    meter = provider.get_meter("interop")
    counter = meter.create_counter(f"{name}_requests", unit="1", description="requests so far")
    gauge = meter.create_gauge(f"{name}_level", unit="By")
    classic = meter.create_histogram(f"{name}_classic", unit="s", explicit_bucket_boundaries_advisory=[0.1, 1, 10])
    exponential = meter.create_histogram(f"{name}_exponential", unit="s")
    rounds, instances = 10, 50
    for r in range(rounds):
        for i in range(instances):
            of = {"instance_number": str(i)}
            counter.add(i + 1, of)
            gauge.set(r * i + 0.5, of)
            classic.record(0.5 + i, of)
            exponential.record(0.5 + i, of)
        assert provider.force_flush(30_000)
    provider.shutdown()
    assert len(points) == 4 and min(points.values()) >= rounds * instances, points
    n = points[f"{name}_classic"]
    return {
        f"{name}_requests_total": [points[f"{name}_requests"], sums[f"{name}_requests"]],
        f"{name}_level_bytes": [points[f"{name}_level"], sums[f"{name}_level"]],
        # Three bounds make four buckets.
        f"{name}_classic_seconds_bucket": [4 * n, None],
        f"{name}_classic_seconds_count": [n, None],
        f"{name}_exponential_seconds": [points[f"{name}_exponential"], None],
    }


def otel_http(address):
    from opentelemetry.exporter.otlp.proto.http import Compression
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return otel(OTLPMetricExporter(endpoint=f"http://{address}/v1/metrics", compression=Compression.Gzip))


def otel_grpc(address):
    from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter

    return otel(OTLPMetricExporter(endpoint=address, insecure=True))


def moments(n):
    """n moments of the last hours, a second and a microsecond apart."""
    start = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) - datetime.timedelta(hours=6)
    return [start + datetime.timedelta(seconds=i, microseconds=i % 1000) for i in range(n)]


def influx1(address):
    """The client of InfluxDB 1."""
    from influxdb import InfluxDBClient

    host, port = address.rsplit(":", 1)
    client = InfluxDBClient(host, int(port), database="interop", gzip=True)
    client.ping()
    points = [
        {"measurement": "influx1", "tags": {"host": f"h{i % 10}"}, "time": t, "fields": {"usage": i / 8, "count": i}}
        for i, t in enumerate(moments(ROWS))
    ]
    assert client.write_points(points, time_precision="u", batch_size=5000)
    return {"influx1_usage": [ROWS, sum(i / 8 for i in range(ROWS))], "influx1_count": [ROWS, sum(range(ROWS))]}


def influx2(address):
    """The client of InfluxDB 2, which batches in the background."""
    from influxdb_client import InfluxDBClient, Point, WriteOptions

    errors = []
    with InfluxDBClient(f"http://{address}", token="none", org="interop", enable_gzip=True) as client:
        assert client.ping()
        with client.write_api(
            write_options=WriteOptions(batch_size=3000, flush_interval=500),
            error_callback=lambda *args: errors.append(args),
        ) as api:
            for i, t in enumerate(moments(ROWS)):
                api.write("interop", record=Point("influx2").tag("host", f"h{i % 10}").field("usage", i / 8).field("up", i % 2 == 0).time(t))
    assert not errors, errors[0]
    return {"influx2_usage": [ROWS, sum(i / 8 for i in range(ROWS))], "influx2_up": [ROWS, ROWS // 2]}


def flight(address):
    """pyarrow puts ten record batches, text as dictionaries and as it is."""
    import pyarrow as pa
    import pyarrow.flight as fl

    rows = 10 * ROWS
    times = moments(rows)
    table = pa.table({
        "timestamp": pa.array(times, pa.timestamp("us", tz="UTC")),
        "metric_name": pa.array(["flight_usage"] * rows).dictionary_encode(),
        "value": pa.array([i / 8 for i in range(rows)]),
        "host": pa.array([f"h{i // ROWS}" for i in range(rows)]).dictionary_encode(),
        "zone": pa.array([None if i % 3 == 0 else "a" for i in range(rows)]),
    })
    client = fl.connect(f"grpc://{address}")
    writer, reader = client.do_put(fl.FlightDescriptor.for_path("metrics"), table.schema)
    for batch in table.to_batches(max_chunksize=ROWS):
        writer.write_batch(batch)
    writer.done_writing()
    last = None
    while (message := reader.read()) is not None:
        last = json.loads(message.to_pybytes())
    writer.close()
    assert last and last["rows"] == rows, last
    return {"flight_usage": [rows, sum(i / 8 for i in range(rows))]}


CLIENTS = {
    "otel-http": otel_http, "otel-grpc": otel_grpc, "collector-http": otel_grpc, "collector-grpc": otel_grpc,
    "influx1": influx1, "influx2": influx2, "flight": flight,
}

if __name__ == "__main__":
    print(json.dumps(CLIENTS[sys.argv[1]](sys.argv[2])))
