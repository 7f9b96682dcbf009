"""A Delta reader that none of us wrote counts the rows of the demo's table.

Usage: delta.py CARDINAL. Runs `cardinal demo --keep-data DIR`, reads the table
with deltalake (delta-rs) and compares the counts and sums with `cardinal sql`.
"""

import json
import subprocess
import sys
import tempfile

import deltalake
import pyarrow.compute as pc

QUERY = (
    "SELECT count(*) AS n, count(DISTINCT metric_name) AS metrics, "
    "sum(value) FILTER (metric_name = 'node_memory_MemTotal_bytes') AS total FROM metrics"
)


def main(cardinal: str) -> int:
    with tempfile.TemporaryDirectory(prefix="interop-delta-") as root:
        subprocess.run([cardinal, "demo", "--keep-data", root], check=True, stdout=subprocess.DEVNULL)
        out = subprocess.run(
            [cardinal, "sql", "--store", root, "--format", "json", QUERY],
            check=True, capture_output=True, text=True,
        ).stdout
        ours = json.loads(out)[0]
        table = deltalake.DeltaTable(f"{root}/default/metrics")
        rows = table.to_pyarrow_table()
        memory = rows.filter(pc.equal(rows["metric_name"], "node_memory_MemTotal_bytes"))
        theirs = {
            "n": rows.num_rows,
            "metrics": pc.count_distinct(rows["metric_name"]).as_py(),
            "total": pc.sum(memory["value"]).as_py(),
        }
        print(f"{'':12} {'version':>8} {'rows':>10} {'metrics':>8} {'sum(MemTotal)':>22}")
        print(f"{'delta-rs':12} {table.version():>8} {theirs['n']:>10} {theirs['metrics']:>8} {theirs['total']:>22}")
        print(f"{'cardinal sql':12} {'':>8} {ours['n']:>10} {ours['metrics']:>8} {ours['total']:>22}")
        if (ours["n"], ours["metrics"], ours["total"]) != (theirs["n"], theirs["metrics"], theirs["total"]):
            print("the two differ", file=sys.stderr)
            return 1
        try:
            deltalake.write_deltalake(table, rows.slice(0, 1), mode="append")
        except Exception as e:  # the library has no typed error for this
            print(f"a write by delta-rs is refused: {type(e).__name__}: {str(e).splitlines()[0]}")
        else:
            print("delta-rs wrote to our table", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
