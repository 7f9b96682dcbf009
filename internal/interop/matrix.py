"""Other people's engines against ours, in both directions.

Usage: matrix.py --cardinal BIN --tables BIN --jars DIR --store S3URL

It makes tables of ours in a directory and in the S3 store, has every engine
read them, at the latest and at older versions, and compares all rows, and sums
and counts that the engine computes itself, with `cardinal sql`. It lets the
engines try to write to them, which they must refuse. It has the engines make
tables of theirs, and compares what `cardinal sql` reads with what the engine
itself reads. Then it prints the matrix; it exits 1 if a cell failed.
"""

import argparse
import io
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc

import foreign
from engines import DeltaRSDataFusion, DeltaRSPyArrow, DuckDB, NotOffered, Polars, Spark, Store, ordered, rows_of

# What the log of each shape must hold, so that a cell shows what it says, and
# versions worth a visit besides the latest.
SHAPES = {
    "young": (r"0{20}\.json", [0, 2]),
    "checkpointed": (r"\d{20}\.checkpoint\.parquet", [0, 7, 12]),
    "log_compacted": (r"\d{20}\.\d{20}\.compacted\.json", [0, 20, 35]),
    "grown": (r"0{20}\.json", [0, 3, 4]),
    "compacted": (r"0{20}\.json", [0, 8, 9]),
}


class Matrix:
    """Cells by operation and engine, and the notes beneath them."""

    def __init__(self, engines):
        self.engines, self.title, self.lines, self.notes, self.failed = engines, "", [], [], 0

    def note(self, text: str) -> str:
        if text not in self.notes:
            self.notes.append(text)
        return f"[{self.notes.index(text) + 1}]"

    def section(self, title):
        self.title = title
        self.lines.append((title, None))

    def row(self, title, cells: dict):
        """cells has a function an engine: it returns the cell's text."""
        line = {}
        for name in self.engines:
            if name not in cells:
                line[name] = "·"
                continue
            begin = time.monotonic()
            try:
                line[name] = cells[name]()
            except NotOffered as e:
                line[name] = "n/a" + self.note(str(e))
            except Exception as e:
                self.failed += 1
                line[name] = "FAIL" + self.note(f"{self.title}: {title}: {name}: {reason(e)}")
                traceback.print_exc()
            print(f"{time.monotonic() - begin:6.1f}s  {self.title}: {title}: {name}: {line[name]}", file=sys.stderr, flush=True)
        self.lines.append((title, line))

    def __str__(self):
        left = max(len(t) for t, _ in self.lines)
        widths = {n: max(len(n), *(len(l[n]) for _, l in self.lines if l)) for n in self.engines}
        out = [" " * left + "".join(f"  {n:{widths[n]}}" for n in self.engines)]
        for title, line in self.lines:
            if line is None:
                out += ["", title]
            else:
                out.append((f"{title:{left}}" + "".join(f"  {line[n]:{widths[n]}}" for n in self.engines)).rstrip())
        out.append("")
        out.append("ok: all rows equal, and what the engine computes itself; refused: as it must; ·: does not apply")
        out += [f"[{i + 1}] {n}" for i, n in enumerate(self.notes)]
        return "\n".join(out)


def reason(e: Exception) -> str:
    """What an engine says, without stack traces and wrapping."""
    text = str(e)
    for line in text.splitlines():
        if m := re.search(r"Exception: (.*)", line):
            return m.group(1)[:300]
    return f"{type(e).__name__}: {text.splitlines()[0] if text else ''}"[:300]


class Ours:
    """Our own program."""

    def __init__(self, program, cache):
        self.program, self.cache = program, cache

    def query(self, store, table, version, query) -> pa.Table:
        args = [self.program, "sql", "--store", store.url, "--table", table, "--cache-dir", self.cache, "--format", "arrow", "--log-level", "error"]
        if version is not None:
            args += ["--version", str(version)]
        done = subprocess.run(args + [query], capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"cardinal sql exits {done.returncode}: {done.stderr.decode().strip()}")
        return pa.ipc.open_stream(io.BytesIO(done.stdout)).read_all()

    def rows(self, store, table, version=None):
        return rows_of(self.query(store, table, version, f'SELECT * FROM "{table}"'))

    def aggregate(self, store, table, version=None):
        t = self.query(store, table, version, (
            f'SELECT metric_name, count(*) AS n, count(DISTINCT series_id) AS s, sum("value") AS v FROM "{table}" GROUP BY metric_name'))
        return ordered(zip(*[c.to_pylist() for c in t.columns]))

    def part(self, store, table, version=None):
        t = self.query(store, table, version, (
            f"SELECT count(*) AS n, sum(\"value\") AS v FROM \"{table}\" WHERE metric_name = 'queue_length' "
            "AND \"timestamp\" >= TIMESTAMPTZ '2026-11-22 00:05:00+00:00' AND \"date\" = DATE '2026-11-22'"))
        return ordered(zip(*[c.to_pylist() for c in t.columns]))


def same(what, ours, theirs):
    if ours == theirs:
        return
    detail = f"{len(ours)} rows of ours, {len(theirs)} of theirs"
    for a, b in zip(ours, theirs):
        if a != b:
            detail += f"; first difference: {a} / {b}"
            break
    raise AssertionError(f"{what}: {detail}")


def read_ours(matrix, ours, engines, store):
    for shape, (must_hold, past) in SHAPES.items():
        names = [Path(o).name for o in store.objects(shape)]
        as_named = any(re.fullmatch(must_hold, n) for n in names)
        for title, versions in ((shape, [None]), (f"{shape}, versions {past}", past)):
            expected = {
                v: (ours.rows(store, shape, v), ours.aggregate(store, shape, v), ours.part(store, shape, v))
                for v in versions
            }
            assert versions != [None] or len(expected[None][0]) > 100, f"{title}: the table is empty"

            def cell(engine):
                if not as_named:
                    raise AssertionError(f"the log holds no {must_hold}")
                for v in versions:
                    rows, aggregate, part = expected[v]
                    same(f"rows at version {v}", rows, engine.rows(store, shape, v))
                    same(f"counts and sums at version {v}", aggregate, engine.aggregate(store, shape, v))
                    same(f"filtered count and sum at version {v}", part, engine.part(store, shape, v))
                return "ok"

            matrix.row(title, {e.name: lambda e=e: cell(e) for e in engines})


def write_ours(matrix, ours, engines, store):
    """compacted has files that a VACUUM without retention would delete."""
    table = "compacted"
    rows = ours.rows(store, table)

    def cell(engine, operation):
        before = store.objects(table)
        try:
            getattr(engine, operation)(store, table)
        except NotOffered:
            raise
        except Exception as e:
            text = reason(e)
            if "cardinal-exclusive" not in text:
                raise
        else:
            raise AssertionError("it was not refused")
        after = store.objects(table)
        left = [o for o in after if o not in before]
        if {o: after.get(o) for o in before} != before or any("/_" in o for o in left):
            raise AssertionError(f"it was refused, and yet the table changed: {left}")
        if ours.rows(store, table) != rows:
            raise AssertionError("it was refused, and yet the rows changed")
        if left:
            text += " (It had put data files there before it looked: no version names them, `vacuum --full` takes them.)"
        words = re.sub(r"\[[^\]]*Unknown\(\"cardinal-exclusive\"\)[^\]]*\]", '[… Unknown("cardinal-exclusive") …]', text)
        return "refused" + matrix.note(re.sub(r'table "[^"]*"', "table", f"{engine.name}: {words}"))

    for operation in ("write", "delete", "vacuum"):
        matrix.row(operation, {e.name: lambda e=e: cell(e, operation) for e in engines})


def read_theirs(matrix, ours, store, title, table, engine, make):
    def cell():
        versions = make()
        for v in versions + [None]:
            theirs = engine.rows(store, table, v)
            if len(theirs) < 3:
                raise AssertionError(f"{engine.name} reads nothing at version {v}")
            same(f"rows at version {v}", ours.rows(store, table, v), theirs)
        return "ok"

    matrix.row(title, {engine.name: cell})


def main() -> int:
    parser = argparse.ArgumentParser()
    for name in ("cardinal", "tables", "jars", "store"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="interop-") as scratch:
        places = {"local": Store(f"{scratch}/store"), "S3": Store(args.store)}
        for store in places.values():
            subprocess.run([args.tables, "-store", store.url], check=True)
        spark, duck, rs = Spark(args.jars, scratch), DuckDB(), DeltaRSDataFusion()
        engines = [DeltaRSPyArrow(), rs, spark, duck, Polars()]
        ours = Ours(args.cardinal, f"{scratch}/cache")
        matrix = Matrix([e.name for e in engines])
        for place, store in places.items():
            matrix.section(f"our tables, read by …, {place}")
            read_ours(matrix, ours, engines, store)
        for place, store in places.items():
            matrix.section(f"our tables, written to by …, {place}")
            write_ours(matrix, ours, engines, store)
        for place, store in places.items():
            matrix.section(f"tables of …, read by us, {place}")
            number = 0

            def theirs(title, engine, make):
                nonlocal number
                number += 1
                table = f"theirs_{number}"
                read_theirs(matrix, ours, store, title, table, engine, lambda: make(table))

            for title, make in foreign.DELTA_RS.items():
                theirs(title, rs, lambda t, make=make: make(store, t))
            for title, make in foreign.SPARK.items():
                theirs(title, spark, lambda t, make=make: make(spark.spark, spark.path(store, t)))
            theirs("append, overwrite", engines[-1], lambda t: foreign.polars_write(store, t))
            theirs("INSERT", duck, lambda t: foreign.duckdb_insert(store, t, duck))
        spark.stop()
    print(matrix)
    if matrix.failed:
        print(f"{matrix.failed} cells failed", file=sys.stderr)
    return 1 if matrix.failed else 0


if __name__ == "__main__":
    sys.exit(main())
