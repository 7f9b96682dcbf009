"""The peers' side of the bench: answers requests, one JSON object a line, like
our own child (child.go).

Usage: peers.py delta-rs|kernel
"""

import json
import os
import sys
import time
from pathlib import Path


def status(name):
    """One size of proc(5)'s status, in bytes."""
    with open("/proc/self/status") as f:
        for line in f:
            if line.startswith(name + ":"):
                return int(line.split()[1]) << 10
    return 0


class DeltaRS:
    def __init__(self):
        import deltalake
        from deltalake.transaction import AddAction, PostCommitHookProperties

        self.lib, self.add = deltalake, AddAction
        self.hooks = PostCommitHookProperties(create_checkpoint=False, cleanup_expired_logs=False)
        self.next = 0

    def load(self, r):
        begin = time.perf_counter()
        self.table = self.lib.DeltaTable(r["path"], storage_options=r.get("options"))
        return time.perf_counter() - begin

    def files(self):
        return len(self.table.file_uris())

    def refresh(self, r):
        begin = time.perf_counter()
        self.table.update_incremental()
        return time.perf_counter() - begin

    def commit(self, r):
        stats = ('{"numRecords":1000,"minValues":{"timestamp":"2026-01-01T00:00:00.000Z","metric_name":"cpu_seconds_total","series_id":-5,"value":0,"host":"host-1","job":"node"},'
                 '"maxValues":{"timestamp":"2026-01-01T23:59:59.999Z","metric_name":"up","series_id":5,"value":9,"host":"host-9","job":"node"},'
                 '"nullCount":{"timestamp":0,"metric_name":0,"series_id":0,"value":0,"host":0,"job":0}}')
        actions = []
        for _ in range(r["n"]):
            self.next += 1
            actions.append(self.add(f"date=2026-01-01/shard=1/c{os.getpid()}-7f3a-4c1e-9b2d-{self.next:012x}.parquet", 1000000,
                                    {"date": "2026-01-01", "shard": "1"}, 1790000000000, True, stats))
        schema = self.table.schema()
        begin = time.perf_counter()
        self.table.create_write_transaction(actions, "append", schema, partition_by=["date", "shard"], post_commithook_properties=self.hooks)
        return time.perf_counter() - begin

    def checkpoint(self, r):
        begin = time.perf_counter()
        self.table.create_checkpoint()
        return time.perf_counter() - begin

    def version(self):
        return self.table.version()


class Kernel:
    def __init__(self):
        import duckdb
        import duckdb_extension_delta

        self.con = duckdb.connect()
        extension = Path(duckdb_extension_delta.__file__).parent / "extensions" / f"v{duckdb.__version__}" / "delta.duckdb_extension"
        self.con.execute(f"LOAD '{extension}'")

    def load(self, r):
        if r.get("threads"):
            self.con.execute(f"SET threads = {r['threads']}")
        self.path = r["path"]
        begin = time.perf_counter()
        self.con.execute(f"EXPLAIN SELECT * FROM delta_scan('{self.path}')").fetchall()
        return time.perf_counter() - begin

    def files(self):
        return self.con.execute(f"SELECT count(*) FROM delta_list_files('{self.path}')").fetchone()[0]

    def version(self):
        return -1


def main():
    engine = {"delta-rs": DeltaRS, "kernel": Kernel}[sys.argv[1]]()
    for line in sys.stdin:
        r = json.loads(line)
        before = status("VmRSS")
        with open("/proc/self/clear_refs", "w") as f:
            f.write("5")  # forget the peak so far
        try:
            a = {"seconds": getattr(engine, r["do"])(r)}
            a["peak"], a["resident"] = status("VmHWM"), status("VmRSS") - before
            a["version"] = engine.version()
            if r["do"] == "load":
                a["files"] = engine.files() if r.get("count") else -1
            if r["do"] == "checkpoint":
                a["resident"] = before
        except Exception as e:  # the driver ends the run
            a = {"error": f"{type(e).__name__}: {e}"}
        print(json.dumps(a), flush=True)


if __name__ == "__main__":
    main()
