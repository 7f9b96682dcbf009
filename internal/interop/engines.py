"""The engines: how each of them opens a Delta table, reads it, travels in time,
and tries to write.

An Engine answers with rows as Python values, so that one comparison serves all:
timestamps as microseconds since the epoch, dates as ISO strings, maps as sorted
pairs, floats by their repr (a NaN equals a NaN, -0 does not equal 0).
"""

import datetime
import decimal
import os
import urllib.parse
from pathlib import Path

import deltalake
import duckdb
import duckdb_extension_delta
import duckdb_extension_httpfs
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs
from deltalake import QueryBuilder

EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.timezone.utc)


class NotOffered(Exception):
    """The engine has no such operation; the text says why."""


class Store:
    """A place for tables: a directory, or a bucket of an S3 server."""

    def __init__(self, url: str):
        self.url = url  # as `cardinal --store` takes it
        parts = urllib.parse.urlsplit(url)
        self.s3 = parts.scheme == "s3"
        if self.s3:
            query = dict(urllib.parse.parse_qsl(parts.query))
            self.endpoint = query["endpoint"]
            self.region = query["region"]
            self.root = f"s3://{parts.netloc}{parts.path}"
        else:
            self.root = str(Path(url).absolute())

    def table(self, name: str) -> str:
        return f"{self.root}/default/{name}"

    def options(self) -> dict:
        """The storage options of delta-rs and Polars."""
        if not self.s3:
            return {}
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_REGION": self.region,
            "AWS_ACCESS_KEY_ID": os.environ["AWS_ACCESS_KEY_ID"],
            "AWS_SECRET_ACCESS_KEY": os.environ["AWS_SECRET_ACCESS_KEY"],
            "AWS_ALLOW_HTTP": "true",
            "aws_conditional_put": "etag",
        }

    def objects(self, name: str) -> dict:
        """Every object below a table with what shows that it was written."""
        if self.s3:
            fs = pyarrow.fs.S3FileSystem(
                endpoint_override=self.endpoint, region=self.region,
                access_key=os.environ["AWS_ACCESS_KEY_ID"], secret_key=os.environ["AWS_SECRET_ACCESS_KEY"],
            )
            where = self.table(name).removeprefix("s3://")
        else:
            fs, where = pyarrow.fs.LocalFileSystem(), self.table(name)
        infos = fs.get_file_info(pyarrow.fs.FileSelector(where, recursive=True))
        return {i.path: (i.size, i.mtime_ns) for i in infos if i.type == pyarrow.fs.FileType.File}


def plain(v):
    """One value as all engines can agree on it."""
    if isinstance(v, datetime.datetime):
        if v.tzinfo is None:  # a timestamp without a zone: its wall clock
            return "ntz", (v.replace(tzinfo=datetime.timezone.utc) - EPOCH) // datetime.timedelta(microseconds=1)
        return (v - EPOCH) // datetime.timedelta(microseconds=1)
    if isinstance(v, datetime.date):
        return v.isoformat()
    if isinstance(v, float):
        return repr(v)
    if isinstance(v, decimal.Decimal):
        return str(v.normalize())
    if isinstance(v, (bytes, bytearray)):
        return bytes(v).hex()
    if isinstance(v, dict):
        return tuple(sorted((k, plain(x)) for k, x in v.items()))
    if isinstance(v, (list, tuple)):
        return tuple(plain(x) for x in v)
    return v


def rows_of(table: pa.Table) -> list:
    """All rows of an Arrow table, in one order, columns in the order of their names."""
    names = sorted(table.column_names)
    columns = []
    for name in names:
        column = table[name]
        if pa.types.is_map(column.type):
            values = [None if v is None else dict(v) for v in column.to_pylist()]
        else:
            values = column.to_pylist()
        columns.append([plain(v) for v in values])
    rows = list(zip(*columns)) if columns else []
    return [tuple(names)] + sorted(rows, key=repr)


class Engine:
    """One engine. Methods take the table's store and name.

    aggregate's answer has a row a metric: (metric, rows, series, sum); part's
    has one row: rows and sum of queue_length from a moment on, on one day,
    which engines that skip files answer with our statistics.
    """

    name = ""
    sql_aggregate = (
        'SELECT metric_name, count(*) AS n, count(DISTINCT series_id) AS s, sum("value") AS v FROM t GROUP BY metric_name'
    )
    sql_part = (
        "SELECT count(*) AS n, sum(\"value\") AS v FROM t WHERE metric_name = 'queue_length' "
        "AND \"timestamp\" >= TIMESTAMP '2026-11-22 00:05:00+00:00' AND \"date\" = DATE '2026-11-22'"
    )

    def rows(self, store: Store, table: str, version=None) -> list:
        raise NotImplementedError

    def aggregate(self, store: Store, table: str, version=None) -> list:
        raise NotImplementedError

    def part(self, store: Store, table: str, version=None) -> list:
        raise NotImplementedError

    def write(self, store: Store, table: str):
        raise NotImplementedError

    def delete(self, store: Store, table: str):
        raise NotImplementedError

    def vacuum(self, store: Store, table: str):
        raise NotImplementedError


def ordered(tuples) -> list:
    return sorted((tuple(plain(v) for v in t) for t in tuples), key=repr)


FROM = datetime.datetime(2026, 11, 22, 0, 5, tzinfo=datetime.timezone.utc)
DAY = datetime.date(2026, 11, 22)


class DeltaRS(Engine):
    """What both paths of delta-rs share: opening and writing."""

    def open(self, store, table, version=None):
        return deltalake.DeltaTable(store.table(table), version=version, storage_options=store.options())

    def write(self, store, table):
        t = self.open(store, table)
        deltalake.write_deltalake(t, t.to_pyarrow_table().slice(0, 1), mode="append")

    def delete(self, store, table):
        self.open(store, table).delete("metric_name = 'queue_length'")

    def vacuum(self, store, table):
        self.open(store, table).vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)


class DeltaRSPyArrow(DeltaRS):
    name = "delta-rs pyarrow"

    def rows(self, store, table, version=None):
        return rows_of(self.open(store, table, version).to_pyarrow_table())

    def aggregate(self, store, table, version=None):
        t = self.open(store, table, version).to_pyarrow_table()
        g = t.group_by("metric_name", use_threads=False).aggregate(
            [([], "count_all"), ("series_id", "count_distinct"), ("value", "sum")]
        ).select(["metric_name", "count_all", "series_id_count_distinct", "value_sum"])
        return ordered(zip(*[c.to_pylist() for c in g.columns]))

    def part(self, store, table, version=None):
        data = self.open(store, table, version).to_pyarrow_dataset()
        t = data.to_table(filter=(pc.field("metric_name") == "queue_length") & (pc.field("timestamp") >= FROM) & (pc.field("date") == DAY))
        return ordered([(t.num_rows, pc.sum(t["value"]).as_py())])

    def delete(self, store, table):
        raise NotOffered("delta-rs writes by DataFusion alone; see that column")

    write = vacuum = delete


class DeltaRSDataFusion(DeltaRS):
    name = "delta-rs DataFusion"

    def sql(self, store, table, version, query):
        t = QueryBuilder().register("t", self.open(store, table, version))
        return pa.table(t.execute(query).read_all())

    def rows(self, store, table, version=None):
        return rows_of(self.sql(store, table, version, "SELECT * FROM t"))

    def aggregate(self, store, table, version=None):
        return ordered(zip(*[c.to_pylist() for c in self.sql(store, table, version, self.sql_aggregate).columns]))

    def part(self, store, table, version=None):
        return ordered(zip(*[c.to_pylist() for c in self.sql(store, table, version, self.sql_part).columns]))


class DuckDB(Engine):
    name = "DuckDB delta"

    def __init__(self):
        self.con = duckdb.connect()
        for package, name in ((duckdb_extension_httpfs, "httpfs"), (duckdb_extension_delta, "delta")):
            path = Path(package.__file__).parent / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension"
            self.con.execute(f"LOAD '{path}'")

    def reach(self, store):
        if store.s3:
            self.con.execute(
                f"CREATE OR REPLACE SECRET (TYPE s3, KEY_ID '{os.environ['AWS_ACCESS_KEY_ID']}', "
                f"SECRET '{os.environ['AWS_SECRET_ACCESS_KEY']}', REGION '{store.region}', "
                f"ENDPOINT '{store.endpoint.removeprefix('http://')}', URL_STYLE 'path', USE_SSL false)"
            )

    def scan(self, store, table, version, query):
        self.reach(store)
        at = "" if version is None else f", version => {version}"
        return self.con.execute(f"WITH t AS (FROM delta_scan('{store.table(table)}'{at})) {query}").to_arrow_table()

    def rows(self, store, table, version=None):
        return rows_of(self.scan(store, table, version, "SELECT * FROM t"))

    def aggregate(self, store, table, version=None):
        return ordered(zip(*[c.to_pylist() for c in self.scan(store, table, version, self.sql_aggregate).columns]))

    def part(self, store, table, version=None):
        query = self.sql_part.replace("TIMESTAMP '", "TIMESTAMPTZ '")
        return ordered(zip(*[c.to_pylist() for c in self.scan(store, table, version, query).columns]))

    def insert(self, store, table, query):
        self.reach(store)
        self.con.execute(f"ATTACH '{store.table(table)}' AS target (TYPE delta, READ_WRITE)")
        try:
            self.con.execute(f"INSERT INTO target {query}")
        finally:
            self.con.execute("DETACH target")

    def write(self, store, table):
        self.insert(store, table, "SELECT * FROM target LIMIT 1")

    def delete(self, store, table):
        raise NotOffered("the extension only appends")

    def vacuum(self, store, table):
        raise NotOffered("the extension has no VACUUM")


class Polars(Engine):
    name = "Polars"
    # The sum of no values is zero here, and null in SQL.
    sum = polars.when(polars.col("value").count() > 0).then(polars.col("value").sum()).alias("v")

    def scan(self, store, table, version):
        return polars.scan_delta(store.table(table), version=version, storage_options=store.options())

    def rows(self, store, table, version=None):
        return rows_of(self.scan(store, table, version).collect().to_arrow())

    def aggregate(self, store, table, version=None):
        t = self.scan(store, table, version).group_by("metric_name").agg(
            polars.len().alias("n"), polars.col("series_id").n_unique().alias("s"), self.sum)
        return ordered(t.collect().rows())

    def part(self, store, table, version=None):
        t = self.scan(store, table, version).filter(
            (polars.col("metric_name") == "queue_length") & (polars.col("timestamp") >= FROM) & (polars.col("date") == DAY)
        ).select(polars.len().alias("n"), self.sum)
        return ordered(t.collect().rows())

    def write(self, store, table):
        self.scan(store, table, None).head(1).collect().write_delta(
            store.table(table), mode="append", storage_options=store.options())

    def delete(self, store, table):
        raise NotOffered("Polars neither deletes rows nor vacuums")

    vacuum = delete


class Spark(Engine):
    name = "Spark delta-spark"
    sql_part = (
        "SELECT count(*) AS n, sum(`value`) AS v FROM t WHERE metric_name = 'queue_length' "
        "AND `timestamp` >= TIMESTAMP '2026-11-22 00:05:00+00:00' AND `date` = DATE '2026-11-22'"
    )
    sql_aggregate = Engine.sql_aggregate.replace('"', "`")

    def __init__(self, jars: str, scratch: str):
        import pyspark.sql

        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        self.spark = (
            pyspark.sql.SparkSession.builder.master("local[2]")
            .config("spark.driver.extraClassPath", f"{jars}/*")
            .config("spark.driver.memory", "2g")
            .config("spark.driver.host", "127.0.0.1")
            .config("spark.driver.bindAddress", "127.0.0.1")
            .config("spark.ui.enabled", "false")
            .config("spark.ui.showConsoleProgress", "false")
            .config("spark.local.dir", scratch)
            .config("spark.sql.warehouse.dir", f"{scratch}/warehouse")
            .config("spark.sql.session.timeZone", "UTC")
            .config("spark.sql.shuffle.partitions", "2")
            .config("spark.databricks.delta.snapshotPartitions", "2")
            .config("spark.sql.extensions", "io.delta.sql.DeltaSparkSessionExtension")
            .config("spark.sql.catalog.spark_catalog", "org.apache.spark.sql.delta.catalog.DeltaCatalog")
            .config("spark.databricks.delta.retentionDurationCheck.enabled", "false")
            .config("spark.hadoop.fs.s3a.path.style.access", "true")
            .config("spark.hadoop.fs.s3a.connection.ssl.enabled", "false")
            .getOrCreate()
        )
        self.spark.sparkContext.setLogLevel("OFF")

    def stop(self):
        self.spark.stop()

    def path(self, store, table):
        if store.s3:
            conf = self.spark.sparkContext._jsc.hadoopConfiguration()
            conf.set("fs.s3a.endpoint", store.endpoint)
            conf.set("fs.s3a.endpoint.region", store.region)
            conf.set("fs.s3a.access.key", os.environ["AWS_ACCESS_KEY_ID"])
            conf.set("fs.s3a.secret.key", os.environ["AWS_SECRET_ACCESS_KEY"])
        return store.table(table).replace("s3://", "s3a://")

    def view(self, store, table, version):
        reader = self.spark.read.format("delta")
        if version is not None:
            reader = reader.option("versionAsOf", version)
        frame = reader.load(self.path(store, table))
        frame.createOrReplaceTempView("t")
        return frame

    def rows(self, store, table, version=None):
        return rows_of(self.view(store, table, version).toArrow())

    def aggregate(self, store, table, version=None):
        self.view(store, table, version)
        return ordered(self.spark.sql(self.sql_aggregate).collect())

    def part(self, store, table, version=None):
        self.view(store, table, version)
        return ordered(self.spark.sql(self.sql_part).collect())

    def write(self, store, table):
        self.view(store, table, None).limit(1).write.format("delta").mode("append").save(self.path(store, table))

    def delete(self, store, table):
        self.spark.sql(f"DELETE FROM delta.`{self.path(store, table)}` WHERE metric_name = 'queue_length'")

    def vacuum(self, store, table):
        self.spark.sql(f"VACUUM delta.`{self.path(store, table)}` RETAIN 0 HOURS")
