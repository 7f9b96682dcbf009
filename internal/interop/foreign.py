"""Tables that other engines make, each with a feature of the format that ours
do not use. Every maker returns the versions worth comparing besides the latest.
"""

import datetime
import decimal

import deltalake
import polars
import pyarrow as pa

UTC = datetime.timezone.utc


def batch(start: int, n: int) -> pa.Table:
    """n rows with every type that the engines share, some of them null."""
    ids = list(range(start, start + n))
    return pa.table({
        "id": pa.array(ids, pa.int64()),
        "small": pa.array([i % 100 for i in ids], pa.int32()),
        "name": pa.array([None if i % 7 == 0 else f"näme {i}" for i in ids]),
        "score": pa.array([i / 4 for i in ids], pa.float64()),
        "flag": pa.array([i % 2 == 0 for i in ids]),
        "price": pa.array([decimal.Decimal(i).scaleb(-2) for i in ids], pa.decimal128(12, 2)),
        "day": pa.array([datetime.date(2026, 1, 1) + datetime.timedelta(days=i % 5) for i in ids]),
        "at": pa.array([datetime.datetime(2026, 1, 1, tzinfo=UTC) + datetime.timedelta(seconds=i, microseconds=i) for i in ids], pa.timestamp("us", tz="UTC")),
        "raw": pa.array([bytes([i % 256]) for i in ids], pa.binary()),
        "tags": pa.array([[f"t{i % 3}", None] for i in ids], pa.list_(pa.string())),
        "point": pa.array([{"x": i, "y": None if i % 5 == 0 else str(i)} for i in ids], pa.struct([("x", pa.int64()), ("y", pa.string())])),
        "part": pa.array([None if i % 4 == 3 else ["a", "b c/d", "ü%20="][i % 4] for i in ids]),
    })


# delta-rs, by its DataFusion engine, the only one that it writes with.


def rs_append(store, name):
    for i in range(3):
        deltalake.write_deltalake(store.table(name), batch(i * 50, 50), mode="append", storage_options=store.options())
    return [0, 1]


def rs_partitioned(store, name):
    for i in range(2):
        deltalake.write_deltalake(store.table(name), batch(i * 50, 50), mode="append",
                                  partition_by=["part", "day"], storage_options=store.options())
    return [0]


def rs_overwrite(store, name):
    deltalake.write_deltalake(store.table(name), batch(0, 80), storage_options=store.options())
    deltalake.write_deltalake(store.table(name), batch(500, 30), mode="overwrite", storage_options=store.options())
    return [0]


def rs_delete(store, name):
    versions = rs_append(store, name)
    table = deltalake.DeltaTable(store.table(name), storage_options=store.options())
    table.delete("id % 3 = 0")
    table.update(predicate="id > 100", updates={"name": "'updated'"})
    return versions + [2, 3]


def rs_checkpoint(store, name):
    rs_delete(store, name)
    table = deltalake.DeltaTable(store.table(name), storage_options=store.options())
    table.create_checkpoint()
    table.delete("id < 20")
    return [2, 4]


def rs_grown(store, name):
    rs_append(store, name)
    more = batch(900, 10).append_column("extra", pa.array(range(10), pa.int64()))
    deltalake.write_deltalake(store.table(name), more, mode="append", schema_mode="merge", storage_options=store.options())
    return [2]


def polars_write(store, name):
    for i in range(2):
        polars.from_arrow(batch(i * 50, 50)).write_delta(store.table(name), mode="append", storage_options=store.options())
    polars.from_arrow(batch(300, 5)).write_delta(store.table(name), mode="overwrite", storage_options=store.options())
    return [0, 1]


def duckdb_insert(store, name, duck):
    """The extension cannot create a table, only append to one."""
    plain = ["id", "small", "name", "score", "flag", "price", "day", "at"]
    deltalake.write_deltalake(store.table(name), batch(0, 10).select(plain), storage_options=store.options())
    duck.con.register("rows_to_insert", batch(10, 40).select(plain))
    duck.insert(store, name, "SELECT * FROM rows_to_insert")
    return [0]


# Spark


def frame(spark, start, n):
    return spark.createDataFrame(batch(start, n))


def spark_table(spark, path, n, properties=None, partition_by=(), start=0):
    writer = frame(spark, start, n).coalesce(1).write.format("delta").mode("append").partitionBy(*partition_by)
    for k, v in (properties or {}).items():
        writer = writer.option(k, v)
    writer.save(path)


def spark_partitioned(spark, path):
    for i in range(2):
        spark_table(spark, path, 40, partition_by=["part", "day"], start=i * 40)
    replaced = frame(spark, 200, 20).where("part = 'a'")
    replaced.write.format("delta").mode("overwrite").option("replaceWhere", "part = 'a'").save(path)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE part IS NULL")
    return [0, 1, 2]


def spark_deletion_vectors(spark, path):
    for i in range(2):
        spark_table(spark, path, 60, {"delta.enableDeletionVectors": "true"}, start=i * 60)
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id % 5 = 1")
    spark.sql(f"DELETE FROM delta.`{path}` WHERE id % 7 = 2")
    spark.sql(f"UPDATE delta.`{path}` SET name = 'u' WHERE id % 11 = 3")
    return [1, 2, 3]


def spark_column_mapping(mode):
    def make(spark, path):
        spark_table(spark, path, 30, {"delta.columnMapping.mode": mode}, partition_by=["part"])
        spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN score TO `sco re`")
        spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN point.x TO px")
        spark.sql(f"ALTER TABLE delta.`{path}` DROP COLUMN raw")
        spark.sql(f"ALTER TABLE delta.`{path}` ADD COLUMN raw STRING")
        rows = frame(spark, 30, 30)
        rows = rows.withColumnRenamed("score", "sco re").drop("raw").withColumn("raw", rows["name"]) \
            .withColumn("point", rows["point"].cast("struct<px:bigint,y:string>"))
        rows.coalesce(1).write.format("delta").mode("append").save(path)
        return [0, 1, 3]

    return make


def spark_v2_checkpoint(top):
    def make(spark, path):
        spark.conf.set("spark.databricks.delta.checkpointV2.topLevelFileFormat", top)
        spark.conf.set("spark.databricks.delta.checkpoint.partSize", "3")  # several sidecars
        try:
            for i in range(5):
                spark_table(spark, path, 20, {"delta.checkpointPolicy": "v2", "delta.checkpointInterval": "4"}, ["day"], start=i * 20)
            spark.sql(f"DELETE FROM delta.`{path}` WHERE id < 10")
        finally:
            spark.conf.unset("spark.databricks.delta.checkpointV2.topLevelFileFormat")
            spark.conf.unset("spark.databricks.delta.checkpoint.partSize")
        return [3, 4]

    return make


def spark_multi_part(spark, path):
    spark.conf.set("spark.databricks.delta.checkpoint.partSize", "4")
    try:
        for i in range(5):
            spark_table(spark, path, 20, {"delta.checkpointInterval": "4"}, ["day"], start=i * 20)
        spark.sql(f"DELETE FROM delta.`{path}` WHERE id < 10")
    finally:
        spark.conf.unset("spark.databricks.delta.checkpoint.partSize")
    return [3, 4]


def spark_type_widening(spark, path):
    spark_table(spark, path, 30, {"delta.enableTypeWidening": "true"})
    spark.sql(f"ALTER TABLE delta.`{path}` ALTER COLUMN small TYPE BIGINT")
    spark.sql(f"ALTER TABLE delta.`{path}` ALTER COLUMN price TYPE DECIMAL(20, 4)")
    spark.sql(f"INSERT INTO delta.`{path}` (id, small, price) VALUES (1000, 9000000000000, 12345678901.2345)")
    return [0, 1]


def spark_merge_optimize(spark, path):
    for i in range(3):
        spark_table(spark, path, 30, start=i * 30)
    frame(spark, 80, 30).createOrReplaceTempView("changes")
    spark.sql(f"MERGE INTO delta.`{path}` t USING changes c ON t.id = c.id "
              "WHEN MATCHED THEN UPDATE SET name = 'merged' WHEN NOT MATCHED THEN INSERT *")
    spark.sql(f"OPTIMIZE delta.`{path}` ZORDER BY (id)")
    return [2, 3]


def spark_no_zone(spark, path):
    """Features that a reader may ignore, and timestamps without a zone."""
    spark_table(spark, path, 10, {"delta.enableRowTracking": "true", "delta.enableInCommitTimestamps": "true",
                                  "delta.enableChangeDataFeed": "true", "delta.feature.timestampNtz": "supported"})
    spark.sql(f"ALTER TABLE delta.`{path}` ADD COLUMN wall TIMESTAMP_NTZ")
    spark.sql(f"INSERT INTO delta.`{path}` (id, wall) VALUES (77, TIMESTAMP_NTZ '2026-03-29 02:30:00.123456')")
    spark.sql(f"UPDATE delta.`{path}` SET flag = NULL WHERE id = 3")
    return [0, 1, 2]


SPARK = {
    "partitioned, DELETE": spark_partitioned,
    "deletion vectors": spark_deletion_vectors,
    "column mapping by name": spark_column_mapping("name"),
    "column mapping by id": spark_column_mapping("id"),
    "V2 checkpoint, JSON": spark_v2_checkpoint("json"),
    "V2 checkpoint, Parquet": spark_v2_checkpoint("parquet"),
    "multi-part checkpoint": spark_multi_part,
    "type widening": spark_type_widening,
    "MERGE, OPTIMIZE": spark_merge_optimize,
    "row tracking, CDF, ntz": spark_no_zone,
}
DELTA_RS = {
    "append": rs_append,
    "partitioned": rs_partitioned,
    "overwrite": rs_overwrite,
    "DELETE, UPDATE": rs_delete,
    "DELETE past checkpoint": rs_checkpoint,
    "schema growth": rs_grown,
}
