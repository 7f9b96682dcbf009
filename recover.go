package cardinalsin

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cardinalsin/wal"
)

// recoverWALs opens every table that has records in a WAL here, one after the
// other, which brings back what was acknowledged and not committed.
func (t *Tenants) recoverWALs(ctx context.Context) error {
	if t.opts.WALDir == "" {
		return nil
	}
	names, err := walTables(t.opts.WALDir)
	if err != nil {
		return err
	}
	var failed []error
	for _, n := range names {
		if err := ctx.Err(); err != nil {
			return errors.Join(append(failed, err)...)
		}
		_, release, err := t.acquire(ctx, n, true)
		if err != nil {
			failed = append(failed, fmt.Errorf("open %s/%s: %w", n.tenant, n.table, err))
			continue
		}
		release()
	}
	return errors.Join(failed...)
}

// walTables lists the tables that have a WAL directory with records in it.
func walTables(dir string) ([]tableName, error) {
	tenants, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // nothing was written yet
	}
	if err != nil {
		return nil, fmt.Errorf("list the wals: %w", err)
	}
	var names []tableName
	for _, tenant := range tenants {
		if !tenant.IsDir() || ValidateName(tenant.Name()) != nil {
			continue
		}
		tables, err := os.ReadDir(filepath.Join(dir, tenant.Name()))
		if err != nil {
			return nil, fmt.Errorf("list the wals: %w", err)
		}
		for _, table := range tables {
			if !table.IsDir() || ValidateName(table.Name()) != nil {
				continue
			}
			some, err := wal.Pending(filepath.Join(dir, tenant.Name(), table.Name()))
			if err != nil {
				return nil, fmt.Errorf("look into the wal of %s/%s: %w", tenant.Name(), table.Name(), err)
			}
			if some {
				names = append(names, tableName{tenant.Name(), table.Name()})
			}
		}
	}
	return names, nil
}
