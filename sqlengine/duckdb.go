package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	duckdb "github.com/duckdb/duckdb-go-bindings"
)

// database is one in-memory DuckDB with one connection. It is used by one
// goroutine at a time.
type database struct {
	db   duckdb.Database
	conn duckdb.Connection

	with    settings
	spill   string            // directory of its own, empty: none
	paths   []string          // the files that it can open, nil: not locked yet
	sources *sourceList       // of the scan of our rows
	views   map[string]string // views that stay the same, by name, see view
}

// settings bound one database.
type settings struct {
	threads     int
	memoryBytes int64
	spillDir    string // for directories of databases; empty: nothing is spilled
	spillBytes  int64
}

// openDatabase opens a database. It must be locked before it sees a statement
// that is not our own.
func openDatabase(ctx context.Context, s settings) (*database, error) {
	d, err := openBare(ctx)
	if err != nil {
		return nil, err
	}
	if err := d.configure(ctx, s); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

// openBare opens a database that has no settings yet; that takes 10 ms, and
// all else of it less than one.
func openBare(ctx context.Context) (*database, error) {
	var config duckdb.Config
	if duckdb.CreateConfig(&config) == duckdb.StateError {
		return nil, errors.New("open DuckDB: no configuration")
	}
	defer duckdb.DestroyConfig(&config)
	for _, option := range [][2]string{
		{"duckdb_api", "cardinalsin"},
		{"threads", "1"},
		{"memory_limit", fmt.Sprintf("%dKiB", bareMemoryBytes/1024)},
		{"autoinstall_known_extensions", "false"},
		{"autoload_known_extensions", "false"},
		{"allow_community_extensions", "false"},
	} {
		if duckdb.SetConfig(config, option[0], option[1]) == duckdb.StateError {
			return nil, fmt.Errorf("open DuckDB: option %s is refused", option[0])
		}
	}
	d := &database{views: map[string]string{}}
	var message string
	if duckdb.OpenExt("", &d.db, config, &message) == duckdb.StateError {
		duckdb.Close(&d.db)
		return nil, fmt.Errorf("open DuckDB: %s", message)
	}
	if duckdb.Connect(d.db, &d.conn) == duckdb.StateError {
		duckdb.Close(&d.db)
		return nil, errors.New("open DuckDB: no connection")
	}
	for _, line := range []string{
		"SET TimeZone = 'UTC'",
		"SET enable_external_file_cache = false", // files are local, and the system has a cache
		"SET parquet_metadata_cache = true",
		"SET allow_persistent_secrets = false",
		"SET temp_directory = ''",
	} {
		if err := d.exec(ctx, line); err != nil {
			d.close()
			return nil, fmt.Errorf("open DuckDB: %w", err)
		}
	}
	return d, nil
}

// bareMemoryBytes bounds a database that has no settings yet.
const bareMemoryBytes = 64 << 20

// configure gives the database its settings.
func (d *database) configure(ctx context.Context, s settings) error {
	var err error
	if d.spill, err = spill(s.spillDir); err != nil {
		return err
	}
	d.with = s
	script := []string{
		fmt.Sprintf("SET memory_limit = '%dKiB'", max(s.memoryBytes/1024, 1)),
		fmt.Sprintf("SET threads = %d", s.threads),
	}
	if d.spill != "" {
		script = append(script, "SET temp_directory = "+quoteText(d.spill))
	}
	if s.spillDir != "" && s.spillBytes > 0 {
		script = append(script, fmt.Sprintf("SET max_temp_directory_size = '%dKiB'", max(s.spillBytes/1024, 1)))
	}
	for _, line := range script {
		if err := d.exec(ctx, line); err != nil {
			return fmt.Errorf("open DuckDB: %w", err)
		}
	}
	return nil
}

// lock takes from the database all access to anything outside but the files
// at paths, which are absolute, and all ways to change its configuration.
func (d *database) lock(ctx context.Context, paths []string) error {
	script := []string{"SET enable_external_access = false", "SET lock_configuration = true"}
	if len(paths) > 0 {
		script = append([]string{"SET allowed_paths = " + quoteTexts(paths)}, script...)
	}
	for _, line := range script {
		if err := d.exec(ctx, line); err != nil {
			return fmt.Errorf("lock DuckDB: %w", err)
		}
	}
	d.paths = append([]string{}, paths...)
	return nil
}

// close disconnects; everything the database held is gone. It is idempotent.
func (d *database) close() {
	duckdb.Disconnect(&d.conn)
	duckdb.Close(&d.db)
	if d.spill != "" {
		_ = os.RemoveAll(d.spill)
	}
}

// interruptEvery is how often a statement is told to stop until it does:
// DuckDB forgets an interrupt that comes before the statement starts.
const interruptEvery = 10 * time.Millisecond

// run calls f, which is inside DuckDB, and interrupts it when ctx ends.
func (d *database) run(ctx context.Context, f func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if ctx.Done() == nil {
		return f()
	}
	done, ended := make(chan struct{}), make(chan struct{})
	// Nothing runs beside f until ctx ends: a result is fetched by many short
	// calls, which would each wait for a goroutine to come and go.
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		tick := time.NewTicker(interruptEvery)
		defer tick.Stop()
		for {
			duckdb.Interrupt(d.conn)
			select {
			case <-done:
				return
			case <-tick.C:
			}
		}
	})
	err := f()
	close(done)
	if !stop() {
		<-ended // it must not interrupt the next statement
	}
	if ctxErr := ctx.Err(); err != nil && ctxErr != nil {
		return ctxErr
	}
	return err
}

// prepare compiles exactly one statement. The error is a *duckError.
func (d *database) prepare(ctx context.Context, sql string) (p duckdb.PreparedStatement, err error) {
	err = d.run(ctx, func() error {
		var extracted duckdb.ExtractedStatements
		defer duckdb.DestroyExtracted(&extracted)
		switch n := duckdb.ExtractStatements(d.conn, sql, &extracted); {
		case n == 0:
			return &duckError{kind: duckdb.ErrorTypeParser, message: duckdb.ExtractStatementsError(extracted)}
		case n > 1:
			return &duckError{kind: duckdb.ErrorTypeParser, message: "more than one statement"}
		}
		if duckdb.PrepareExtractedStatement(d.conn, extracted, 0, &p) == duckdb.StateError {
			defer duckdb.DestroyPrepare(&p)
			// DuckDB does not say what kind of error it is.
			return &duckError{kind: duckdb.ErrorTypeBinder, message: duckdb.PrepareError(p)}
		}
		return nil
	})
	return p, err
}

// query prepares and starts a statement of our own; its rows stream.
func (d *database) query(ctx context.Context, sql string, arguments ...string) (*cursor, error) {
	p, err := d.prepare(ctx, sql)
	if err != nil {
		return nil, err
	}
	for i, a := range arguments {
		if duckdb.BindVarcharLength(p, duckdb.IdxT(i+1), a, duckdb.IdxT(len(a))) == duckdb.StateError {
			duckdb.DestroyPrepare(&p)
			return nil, fmt.Errorf("bind argument %d", i+1)
		}
	}
	return d.start(ctx, p)
}

// start executes a prepared statement and owns it from then on.
func (d *database) start(ctx context.Context, p duckdb.PreparedStatement) (*cursor, error) {
	c := &cursor{d: d, statement: p}
	err := d.run(ctx, func() error {
		if duckdb.ExecutePreparedStreaming(p, &c.result) == duckdb.StateError {
			return c.failure()
		}
		return nil
	})
	if err != nil {
		c.close()
		return nil, err
	}
	return c, nil
}

// exec runs a statement of our own for its effect.
func (d *database) exec(ctx context.Context, sql string) error {
	c, err := d.query(ctx, sql)
	if err != nil {
		return err
	}
	defer c.close()
	for {
		chunk, err := c.fetch(ctx)
		if err != nil || chunk.Ptr == nil {
			return err
		}
		duckdb.DestroyDataChunk(&chunk)
	}
}

// rows runs a statement of our own and returns all of its rows; every column
// must be text. A null is the empty string.
func (d *database) rows(ctx context.Context, sql string, arguments ...string) ([][]string, error) {
	c, err := d.query(ctx, sql, arguments...)
	if err != nil {
		return nil, err
	}
	defer c.close()
	var out [][]string
	for {
		chunk, err := c.fetch(ctx)
		if err != nil || chunk.Ptr == nil {
			return out, err
		}
		columns := int(duckdb.DataChunkGetColumnCount(chunk))
		n := int(duckdb.DataChunkGetSize(chunk))
		first := len(out)
		for range n {
			out = append(out, make([]string, columns))
		}
		for k := range columns {
			v := vectorOf(duckdb.DataChunkGetVector(chunk, duckdb.IdxT(k)))
			for i := range n {
				if v.valid(i) {
					out[first+i][k] = string(v.bytes(i))
				}
			}
		}
		duckdb.DestroyDataChunk(&chunk)
	}
}

// cursor is a running statement.
type cursor struct {
	d         *database
	statement duckdb.PreparedStatement
	result    duckdb.Result
}

// fetch returns the next rows, which the caller destroys; its Ptr is nil
// after the last.
func (c *cursor) fetch(ctx context.Context) (chunk duckdb.DataChunk, err error) {
	err = c.d.run(ctx, func() error {
		chunk = duckdb.FetchChunk(c.result)
		if chunk.Ptr == nil {
			return c.failure()
		}
		return nil
	})
	return chunk, err
}

// failure is the statement's error, nil if there is none.
func (c *cursor) failure() error {
	if message := duckdb.ResultError(&c.result); message != "" {
		return &duckError{kind: duckdb.ResultErrorType(&c.result), message: message}
	}
	return nil
}

// close ends the statement, finished or not. It is idempotent.
func (c *cursor) close() {
	duckdb.DestroyResult(&c.result)
	duckdb.DestroyPrepare(&c.statement)
}

// duckError is what DuckDB says went wrong.
type duckError struct {
	kind    duckdb.ErrorType
	message string
}

func (e *duckError) Error() string { return e.message }

// Is maps DuckDB's kinds of errors to ours.
func (e *duckError) Is(target error) bool {
	switch e.kind {
	case duckdb.ErrorTypeParser, duckdb.ErrorTypeSyntax, duckdb.ErrorTypeBinder, duckdb.ErrorTypeCatalog,
		duckdb.ErrorTypeParameterNotResolved, duckdb.ErrorTypeParameterNotAllowed, duckdb.ErrorTypeNotImplemented:
		return target == ErrSyntax
	case duckdb.ErrorTypeOutOfRange, duckdb.ErrorTypeConversion, duckdb.ErrorTypeDecimal, duckdb.ErrorTypeMismatchType,
		duckdb.ErrorTypeDivideByZero, duckdb.ErrorTypeObjectSize, duckdb.ErrorTypeInvalidType, duckdb.ErrorTypeExpression,
		duckdb.ErrorTypeInvalidInput, duckdb.ErrorTypeExecutor, duckdb.ErrorTypeConstraint:
		return target == ErrExecution
	case duckdb.ErrorTypeOutOfMemory:
		return target == ErrTooLarge
	case duckdb.ErrorTypePermission, duckdb.ErrorTypeSettings, duckdb.ErrorTypeInvalidConfiguration,
		duckdb.ErrorTypeMissingExtension, duckdb.ErrorTypeAutoload:
		return target == ErrNotAllowed
	}
	return false
}

// quoteText is a SQL text literal.
func quoteText(s string) string { return "'" + strings.ReplaceAll(s, "'", "''") + "'" }

// quoteBytes is a SQL binary literal.
func quoteBytes(s string) string {
	var b strings.Builder
	b.WriteByte('\'')
	for i := range len(s) {
		fmt.Fprintf(&b, `\x%02X`, s[i])
	}
	b.WriteString("'::BLOB")
	return b.String()
}

// quoteTexts is a SQL list of text literals.
func quoteTexts(list []string) string {
	var b strings.Builder
	b.WriteByte('[')
	for i, s := range list {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(quoteText(s))
	}
	b.WriteByte(']')
	return b.String()
}

// quoteName is a SQL identifier.
func quoteName(s string) string { return `"` + strings.ReplaceAll(s, `"`, `""`) + `"` }

// printable reports whether a text can pass through DuckDB's C interface,
// which ends texts at a zero byte.
func printable(s string) bool { return utf8.ValidString(s) && !strings.ContainsRune(s, 0) }
