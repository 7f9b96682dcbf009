"""Other people's clients read one table, and must get the same rows.

Each check prints a line; the last line counts those that passed, and the exit
code is 1 unless all did.
"""

import argparse
import collections
import datetime
import json
import math
import struct
import subprocess
import sys
import traceback
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

import adbc_driver_flightsql.dbapi as flightsql
import adbc_driver_manager as adbc
import duckdb
import duckdb_extension_delta
import pyarrow as pa
import pyarrow.ipc
from adbc_driver_flightsql import ConnectionOptions, StatementOptions

STALE = 0x7FF0000000000002  # Prometheus' marker, a NaN

passed = collections.Counter()
failed = []


def check(group, name, f):
    """f raises where something differs; what it returns is printed."""
    try:
        note = f()
        passed[group] += 1
        print(f"  ok    {group:<10} {name}{f'  ({note})' if note else ''}")
    except Exception as e:
        failed.append(f"{group} {name}")
        print(f"  FAIL  {group:<10} {name}: {type(e).__name__}: {str(e)[:2000]}")
        if not isinstance(e, AssertionError):
            traceback.print_exc()


def same(want, got, what="answers"):
    if want == got:
        return
    if isinstance(want, list) and isinstance(got, list):
        less, more = [r for r in want if r not in got][:3], [r for r in got if r not in want][:3]
        raise AssertionError(f"{what}: {len(want)} and {len(got)}; missing {less}, too many {more}")
    raise AssertionError(f"{what} differ:\n  {str(want)[:800]}\n  {str(got)[:800]}")


# --- Grafana's calls, to a Prometheus and to us


def call(base, method, path, params):
    url, data = f"{base}/api/v1/{path}", None
    if method == "POST":
        data = params.encode()
    elif params:
        url += "?" + params
    r = urllib.request.Request(url, data=data, method=method)
    if data is not None:
        r.add_header("Content-Type", "application/x-www-form-urlencoded")
    for header in ("X-Dashboard-Uid", "X-Panel-Id", "X-Grafana-Org-Id"):
        r.add_header(header, "1")
    try:
        with urllib.request.urlopen(r, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as e:
        return e.code, json.load(e)


def anyhow(v):
    """The same value whatever the order of lists of objects in it."""
    if isinstance(v, dict):
        return {k: anyhow(e) for k, e in v.items()}
    if isinstance(v, list):
        v = [anyhow(e) for e in v]
        if all(isinstance(e, (dict, str)) for e in v):
            return sorted(v, key=lambda e: json.dumps(e, sort_keys=True))
    return v


def shape(v):
    return {k: type(e).__name__ for k, e in v.items()} if isinstance(v, dict) else type(v).__name__


def grafana(a):
    for line in Path(__file__).with_name("grafana.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        method, path, params, how = line.split()
        params = "" if params == "-" else params.replace("{start}", a.start).replace("{end}", a.end)

        def compare():
            (want_code, want), (code, got) = (call(base, method, path, params) for base in (a.prometheus, a.cardinal))
            same(want_code, code, "status")
            if how == "status":
                same(want["status"], got["status"])
            elif how == "shape":
                same(want["status"], got["status"])
                same(shape(want.get("data")), shape(got.get("data")), "members")
            elif how == "more":
                same(want["data"], {k: v for k, v in got["data"].items() if k in want["data"]})
            elif how == "set":
                same(anyhow(want), anyhow(got))
            else:
                same(want, got)
            data = got.get("data")
            found = data.get("result", data) if isinstance(data, dict) else data
            return f"{code}, {len(found)} found" if isinstance(found, (list, dict)) else str(code)

        check("grafana", f"{method} {path} {urllib.parse.unquote_plus(params)}", compare)


# --- promtool


def promtool(a):
    def run(base, command, *args):
        where = ["--server", base] if command[0] == "analyze" else [base]
        p = subprocess.run([a.promtool, "query", *command, *where, *args], capture_output=True, text=True, timeout=60)
        lines = p.stdout.splitlines()
        if "json" in command:  # whose order means nothing
            lines = [json.dumps(e, sort_keys=True) for line in lines for e in json.loads(line)]
        return p.returncode, sorted(lines), p.stderr.replace(base, "HOST")

    at = ["--start", a.start, "--end", a.end]
    for command, *args in (
        (["instant", "--time", a.end], "shop_requests_total"),
        (["instant", "--time", a.end, "--format", "json"], "sum by (code) (rate(shop_requests_total[5s]))"),
        (["instant", "--time", a.end], "shop_native_duration_seconds"),
        (["instant", "--time", a.end], "sum("),
        (["range", *at, "--step", "1s"], "sum by (method) (rate(shop_request_duration_seconds_count[5s]))"),
        (["series", *at, "--match", 'shop_requests_total{code="200"}'],),
        (["labels", *at], "__name__"),
        (["labels", *at], "path"),
        (["analyze", "--type", "histogram", "--time", a.end, "--duration", "10s", "--match", "shop_request_duration_seconds_bucket"],),
    ):

        def compare():
            want, got = (run(base, command, *args) for base in (a.prometheus, a.cardinal))
            same(want, got)
            return f"exit {got[0]}, {len(got[1])} lines"

        check("promtool", " ".join([command[0], *(args or command[-1:])]), compare)


# --- SQL: ADBC's Flight SQL driver, HTTP, DuckDB over the files


def sql_http(a, query, version=None, form="arrow"):
    body = {"query": query, "format": form}
    if version is not None:
        body["version"] = version
    r = urllib.request.Request(f"{a.cardinal}/api/v1/sql", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(r, timeout=60) as answer:
        data = answer.read()
    return pa.ipc.open_stream(data).read_all() if form == "arrow" else json.loads(data)


def connect(a, **headers):
    options = {ConnectionOptions.RPC_CALL_HEADER_PREFIX.value + k.replace("_", "-"): v for k, v in headers.items()}
    return flightsql.connect(a.flight_sql, conn_kwargs=options, autocommit=True)


def sql_adbc(a, query, version=None, parameters=None):
    headers = {} if version is None else {"cardinal_version": str(version)}
    with connect(a, **headers) as c, c.cursor() as cursor:
        cursor.execute(query, parameters)
        return cursor.fetch_arrow_table()


def sql_duckdb(a, query, version):
    c = duckdb.connect()
    c.execute("SET TimeZone = 'UTC'")
    extension = Path(duckdb_extension_delta.__file__).parent / "extensions" / f"v{duckdb.__version__}" / "delta.duckdb_extension"
    c.execute(f"LOAD '{extension}'")
    return c.execute(f"WITH metrics AS (FROM delta_scan('{a.table}', version => {version})) {query}").to_arrow_table()


def bits(v):
    return struct.pack(">d", v).hex() if isinstance(v, float) else v


def rows_of(table):
    """All cells, NaNs by their bits, in an order of their own."""
    names = sorted(table.column_names)
    columns = [[bits(v) if not isinstance(v, datetime.datetime) else v.timestamp() for v in table.column(n).to_pylist()] for n in names]
    return names, sorted(zip(*columns), key=repr)


def sql(a):
    version = sql_http(a, "SELECT max(version) AS v FROM metrics_log", form="json")[0]["v"]
    first = sql_http(a, "SELECT min(version) AS v FROM metrics_log WHERE files_added > 0", form="json")[0]["v"]
    middle = (first + version) // 2
    print(f"  versions {first} to {version}")
    queries = {
        "all rows": "SELECT * FROM metrics",
        "sums": "SELECT metric_name, count(*) AS n, sum(value) FILTER (isfinite(value)) AS total, min(timestamp) AS first, max(timestamp) AS last FROM metrics GROUP BY ALL",
        "one series": "SELECT timestamp, value FROM metrics WHERE metric_name = 'shop_requests_total' AND code = '500' AND path = '/p/3' AND method = 'PUT'",
        "histograms": "SELECT metric_name, method, timestamp, histogram FROM metrics WHERE histogram IS NOT NULL",
        "no rows": "SELECT * FROM metrics WHERE metric_name = 'nothing'",
        "names": "SELECT DISTINCT metric_name FROM metrics ORDER BY 1 DESC LIMIT 5",
    }
    for v in (first, middle, version):
        for name, query in queries.items():

            def compare():
                want = rows_of(sql_duckdb(a, query, v))
                for who, table in (("ADBC", sql_adbc(a, query, v)), ("HTTP", sql_http(a, query, v)), ("AT", sql_adbc(a, query.replace("metrics", f"metrics AT (VERSION => {v})", 1)))):
                    names, rows = rows_of(table)
                    same(want[0], names, f"columns by {who}")
                    if name == "sums":  # threads add in whatever order
                        close(want[1], rows, names.index("total"))
                    else:
                        same(want[1], rows, f"rows by {who}")
                return f"{len(want[1])} rows"

            check("sql", f"version {v}: {name}", compare)

    def latest():
        """PromQL's raw samples are SQL's rows, on both servers."""
        query = {"query": '{__name__=~".+"}[10m]', "time": a.end}
        answers = []
        for base in (a.prometheus, a.cardinal):
            _, answer = call(base, "POST", "query", urllib.parse.urlencode(query))
            answers.append(sorted(
                (json.dumps(s["metric"], sort_keys=True), round(t * 1000), float_of(v))
                for s in answer["data"]["result"] for t, v in s.get("values", [])
            ))
        same(answers[0], answers[1], "PromQL's samples")
        table = sql_adbc(a, f"SELECT * FROM metrics WHERE histogram IS NULL AND timestamp <= to_timestamp({a.end}) AND timestamp > to_timestamp({a.end}) - INTERVAL 10 MINUTES")
        fixed = {"timestamp", "nanos", "start_time_unix_nano", "metric_name", "series_id", "value", "histogram", "labels_overflow", "date", "shard"}
        rows = []
        for r in table.to_pylist():
            if struct.unpack(">Q", struct.pack(">d", r["value"]))[0] == STALE:
                continue
            labels = {k: v for k, v in r.items() if k not in fixed and v is not None} | {"__name__": r["metric_name"]}
            rows.append((json.dumps(labels, sort_keys=True), round(r["timestamp"].timestamp() * 1000), bits(r["value"] if r["value"] == r["value"] else math.nan)))
        same(answers[0], sorted(rows), "samples by PromQL and rows by SQL")
        return f"{len(rows)} samples"

    check("sql", "latest: PromQL of both, Flight SQL", latest)
    client(a, version)


def close(want, got, k):
    same(len(want), len(got), "rows")
    for w, g in zip(want, got):
        same(w[:k] + w[k + 1:], g[:k] + g[k + 1:], "rows")
        wf, gf = (struct.unpack(">d", bytes.fromhex(r[k]))[0] if r[k] is not None else None for r in (w, g))
        if wf != gf and not math.isclose(wf, gf, rel_tol=1e-12):
            raise AssertionError(f"sums {wf} and {gf}")


def float_of(text):
    return bits(float(text.replace("Inf", "inf")))


def client(a, version):
    """What else ADBC's driver can do."""

    def parameters():
        query = "SELECT count(*) FROM metrics WHERE metric_name = ? AND code = ?"
        with connect(a, cardinal_version=str(version)) as c, c.cursor() as cursor:
            cursor.adbc_prepare(query)
            for code in ("200", "404", "500"):
                cursor.execute(query, ("shop_requests_total", code))
                bound = cursor.fetchall()
                cursor.execute(f"SELECT count(*) FROM metrics WHERE metric_name = 'shop_requests_total' AND code = '{code}'")
                same(cursor.fetchall(), bound, "rows")
                assert bound[0][0] > 0

    check("adbc", "prepared statement, bound again and again", parameters)

    def parameter_schema():
        with connect(a) as c, c.cursor() as cursor:
            got = cursor.adbc_prepare("SELECT value FROM metrics WHERE metric_name = $name AND timestamp >= $from AND value > $least")
            want = pa.schema([("name", pa.string()), ("from", pa.timestamp("us", "UTC")), ("least", pa.float64())])
            same(want, got, "schemas")
            cursor.execute("SELECT count(*) FROM metrics WHERE timestamp >= ?", (datetime.datetime.fromtimestamp(int(a.start), datetime.timezone.utc),))
            assert cursor.fetchone()[0] > 0

    check("adbc", "schema of parameters, a time as one", parameter_schema)

    def stream_of_parameters():
        with connect(a) as c, c.cursor() as cursor:
            stmt = cursor.adbc_statement
            stmt.set_sql_query("SELECT ? * 2 AS twice")
            stmt.prepare()
            batch = pa.record_batch({"0": pa.array([1, 2, 3], pa.int64())})
            stmt.bind_stream(pa.RecordBatchReader.from_batches(batch.schema, [batch, batch]))
            handle, _ = stmt.execute_query()
            got = pa.RecordBatchReader._import_from_c(handle.address).read_all()
            same([2, 4, 6, 2, 4, 6], got.column(0).to_pylist(), "rows")

    check("adbc", "a stream of parameters, a run for each row", stream_of_parameters)

    def metadata():
        with connect(a) as c:
            same(["TABLE", "VIEW"], c.adbc_get_table_types(), "types")
            tree = c.adbc_get_objects(depth="all").read_all().to_pylist()
            tables = {t["table_name"]: [col["column_name"] for col in t["table_columns"]] for t in tree[0]["catalog_db_schemas"][0]["db_schema_tables"]}
            same(["metrics", "metrics_files", "metrics_log", "metrics_series", "metrics_shards"], sorted(tables), "tables")
            with c.cursor() as cursor:
                for name, columns in tables.items():
                    cursor.execute(f'SELECT * FROM "{tree[0]["catalog_name"]}"."{tree[0]["catalog_db_schemas"][0]["db_schema_name"]}"."{name}"')
                    same([d[0] for d in cursor.description], columns, name)
            same("CardinalSin", c.adbc_get_info()["vendor_name"], "vendors")
            schema = c.adbc_get_table_schema("metrics")
            same(pa.timestamp("us", "UTC"), schema.field("timestamp").type, "types")

    check("adbc", "catalogs, schemas, tables, columns, info", metadata)

    def partitions():
        with connect(a) as c, c.cursor() as cursor:
            parts, schema = cursor.adbc_execute_partitions("SELECT count(*) AS n FROM metrics")
            same(["n"], schema.names, "columns")
            same(1, len(parts), "partitions")
            with connect(a) as other, other.cursor() as reads:
                reads.adbc_read_partition(parts[0])
                assert reads.fetchone()[0] > 0

    check("adbc", "a ticket is good for another connection", partitions)

    def stops():
        with connect(a) as c:
            with c.cursor() as cursor:
                cursor.execute("SELECT * FROM range(1000000000000)")
                assert len(cursor.fetchmany(10_000)) == 10_000
            with c.cursor() as cursor:
                cursor.execute("SELECT * FROM range(1000000000000)")
                cursor.fetchone()
                cursor.adbc_cancel()
                try:
                    while cursor.fetchmany(100_000):
                        pass
                    raise AssertionError("a cancelled query ends as if it were whole")
                except adbc.OperationalError as e:
                    same("CANCELLED", e.status_code.name, "codes")
            with c.cursor() as cursor:
                cursor.execute("SELECT 1")
                same([(1,)], cursor.fetchall(), "rows")

    check("adbc", "a reader that stops, a query that is cancelled", stops)

    def timeout():
        with connect(a) as c, c.cursor() as cursor:
            cursor.adbc_statement.set_options(**{StatementOptions.TIMEOUT_FETCH.value: 0.5})
            try:
                cursor.execute("SELECT count(*) FROM range(1000000000000)")
                cursor.fetchall()
                raise AssertionError("it ends")
            except adbc.Error as e:
                same("TIMEOUT", e.status_code.name, "codes")

    check("adbc", "a deadline of the client's", timeout)

    for query, headers, code in (
        ("SELEC 1", {}, "INVALID_ARGUMENT"),
        ("SELECT nothing FROM metrics", {}, "INVALID_ARGUMENT"),
        ("DELETE FROM metrics", {}, "UNAUTHORIZED"),
        ("SELECT * FROM read_text('/etc/hostname')", {}, "UNAUTHORIZED"),
        ("SELECT CAST(metric_name AS INTEGER) FROM metrics", {}, "INVALID_ARGUMENT"),
        ("SELECT 1 FROM metrics", {"cardinal_version": "1000000"}, "NOT_FOUND"),
        ("SELECT 1 FROM metrics", {"cardinal_version": "x"}, "INVALID_ARGUMENT"),
        ("SELECT 1 FROM metrics", {"x_scope_orgid": "nobody"}, "NOT_FOUND"),
    ):

        def refused():
            with connect(a, **headers) as c, c.cursor() as cursor:
                try:
                    cursor.execute(query)
                    cursor.fetchall()
                except adbc.Error as e:
                    same(code, e.status_code.name, f"codes of {e}")
                    return
                raise AssertionError("it is answered")

        check("adbc", f"refused: {query} {headers or ''}", refused)


def main():
    p = argparse.ArgumentParser()
    for name in ("prometheus", "cardinal", "flight-sql", "table", "promtool", "start", "end"):
        p.add_argument("--" + name, required=True)
    a = p.parse_args()
    grafana(a)
    promtool(a)
    sql(a)
    total = sum(passed.values()) + len(failed)
    print(f"{sum(passed.values())}/{total} passed: " + ", ".join(f"{n} {g}" for g, n in passed.items()))
    for name in failed:
        print(f"failed: {name}")
    sys.exit(bool(failed))


main()
