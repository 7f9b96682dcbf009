package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/shard"
	"cardinalsin/storage"
	"cardinalsin/storage/storeurl"
	"cardinalsin/txlog"
)

// root is the table's key prefix in its store.
const root = "default/metrics"

// billed are the calls that are requests.
var billed = []storage.Op{storage.OpGet, storage.OpGetRange, storage.OpPut, storage.OpPutIfAbsent, storage.OpPutIfMatch, storage.OpList, storage.OpDelete}

const addsPerCommit = 10_000

// addAt is what a flush of ours adds: a path of ours, two partition values,
// statistics of the fixed columns and three labels, and our tags. unique tells
// files of different origin apart.
func addAt(i int, unique string) action.Add {
	day := fmt.Sprintf("2026-%02d-%02d", 1+i/28%12, 1+i%28)
	return addOn(day, i, fmt.Sprintf("%s%08x-7f3a-4c1e-9b2d-%012x", unique, uint32(i*2654435761), i))
}

// flushedAt is the i-th file that one process flushes: as a writer's, its name
// begins with the time (UUID version 7) and it belongs to the last day.
func flushedAt(i int, unique string) action.Add {
	return addOn("2026-12-28", i, fmt.Sprintf("%012x-7f3a-%s", 0x019a_0000_0000+i, unique))
}

func addOn(day string, i int, name string) action.Add {
	ms := 1_790_000_000_000 + int64(i)*1000
	return action.Add{
		Path:            fmt.Sprintf("date=%s/shard=%d/%s.parquet", day, i%8, name),
		PartitionValues: action.ObjectOf(map[string]string{"date": day, "shard": fmt.Sprint(i % 8)}),
		Size:            1_000_000 + int64(i%1000), ModificationTime: ms, DataChange: true,
		Stats: fmt.Sprintf(`{"numRecords":%d,"minValues":{"timestamp":"%sT00:00:00.000Z","metric_name":"cpu_seconds_total","series_id":%d,"value":0,"host":"host-%d","job":"node"},"maxValues":{"timestamp":"%sT23:59:59.999Z","metric_name":"up","series_id":%d,"value":%d,"host":"host-%d","job":"node"},"nullCount":{"timestamp":0,"metric_name":0,"series_id":0,"value":0,"host":0,"job":0}}`,
			1000+i%1000, day, -int64(i)*1_000_003, i%100, day, int64(i)*1_000_003, i, 100+i%100),
		Tags: action.ObjectOf(map[string]string{
			"cardinal.level": "0", "cardinal.order": fmt.Sprintf("%d-%d", ms*1000, ms*1000),
			"cardinal.time": fmt.Sprintf("%d..%d", ms*1000, ms*1000+59_999_999),
		}),
	}
}

// makeTable makes a table of n files in a local store, unless it is there:
// "ours" by our log, with a checkpoint; "foreign", of protocol 1/2 and without
// our tags, as commits alone. It returns the store's folder.
func makeTable(ctx context.Context, store, kind string, n int) (string, error) {
	if _, err := os.Stat(store); !errors.Is(err, os.ErrNotExist) {
		return store, err
	}
	if err := os.MkdirAll(store, 0o755); err != nil {
		return "", err
	}
	if kind == "foreign" {
		return store, makeForeign(filepath.Join(store, root, "_delta_log"), n)
	}
	return store, makeOurs(ctx, store, n)
}

// makeOurs makes a table of ours in any store.
func makeOurs(ctx context.Context, url string, n int) error {
	store, err := storeurl.Open(ctx, url)
	if err != nil {
		return err
	}
	log, err := txlog.Create(ctx, store, root, txlog.CreateOptions{
		Schema: schema(), PartitionColumns: chunk.PartitionColumns(),
		Domains: map[string]string{shard.Domain: shard.Initial().Encode()},
	}, txlog.Options{CheckpointEvery: 1 << 40})
	if err != nil {
		return err
	}
	for first := 0; first < n; first += addsPerCommit {
		tx := log.Begin(nil, txlog.Operation{Name: "WRITE", BlindAppend: true})
		for i := first; i < min(first+addsPerCommit, n); i++ {
			tx.Add(addAt(i, ""))
		}
		if _, err := tx.Commit(ctx); err != nil {
			return err
		}
	}
	_, err = log.Checkpoint(ctx)
	return err
}

func schema() *action.Schema {
	s := chunk.BaseSchema()
	for _, name := range []string{"host", "job"} {
		s.Fields = append(s.Fields, action.Field{Name: name, Type: action.PrimitiveType("string"), Nullable: true})
	}
	return s
}

// makeForeign writes the log of a table that any engine may write to.
func makeForeign(dir string, n int) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	s := schema()
	for i := range s.Fields {
		s.Fields[i].Nullable = true
	}
	encoded, err := s.Encode()
	if err != nil {
		return err
	}
	first := &action.Commit{
		Protocol: &action.Protocol{MinReaderVersion: 1, MinWriterVersion: 2},
		Metadata: &action.Metadata{
			ID: "00000000-0000-4000-8000-000000000000", Format: action.Format{Provider: "parquet", Options: map[string]string{}},
			SchemaString: encoded, PartitionColumns: chunk.PartitionColumns(), Configuration: map[string]string{},
		},
	}
	if err := writeCommit(dir, 0, first); err != nil {
		return err
	}
	for v, i := 1, 0; i < n; v++ {
		c := new(action.Commit)
		for end := min(i+addsPerCommit, n); i < end; i++ {
			a := addAt(i, "")
			a.Tags = ""
			c.Adds = append(c.Adds, a)
		}
		if err := writeCommit(dir, v, c); err != nil {
			return err
		}
	}
	return nil
}

func writeCommit(dir string, v int, c *action.Commit) (err error) {
	data, err := c.Encode()
	if err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(dir, fmt.Sprintf("%020d.json", v)))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	if _, err := w.Write(data); err != nil {
		return err
	}
	return w.Flush()
}
