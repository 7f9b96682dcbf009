package sqlengine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	duckdb "github.com/duckdb/duckdb-go-bindings"

	"cardinalsin/action"
	"cardinalsin/reader"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Query runs one SELECT and streams its rows, which the caller closes. It
// costs what the reader's views cost, one for each version that the statement
// names, and of a remote store the files that may hold selected rows. See the
// package's errors.
func (e *Engine) Query(ctx context.Context, sql string, opts QueryOptions) (*Rows, error) {
	q, err := e.open(ctx, sql, opts)
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	rows, err := q.run(ctx)
	if err != nil {
		q.close()
		return nil, fmt.Errorf("query: %w", err)
	}
	return rows, nil
}

// query is one statement on its way.
type query struct {
	engine    *Engine
	opts      QueryOptions
	deadline  time.Time
	statement *statement
	sql       string // what DuckDB runs
	groups    []*group
	views     []*reader.View
	db        *database
	finished  bool // to the last row
	remade    bool // the statement runs again, see cause
	whole     bool // no excerpts
	release   []func()
	refusals  []error // of columns that cannot be read, see refuse
}

// group is what a statement reads of one table at one version.
type group struct {
	kind tableKind
	at   txlog.At
	refs []*tableRef
	name string // of DuckDB's view
	view *reader.View
	rows *rowsTable // of kindRows and kindSeries
	// source is the number of the rows of the other kinds.
	source int
	// where holds what is certain of the rows that are asked for.
	where predicate
}

// open parses and checks a statement and waits for the memory it may use. A dry
// one may leave its parameters open.
func (e *Engine) open(ctx context.Context, sql string, opts QueryOptions) (*query, error) {
	opts.within(&e.opts)
	q := &query{engine: e, opts: opts, sql: sql, deadline: time.Now().Add(opts.Timeout)}
	ctx, cancel := context.WithDeadline(ctx, q.deadline)
	defer cancel()
	s, err := e.parsed(ctx, sql)
	if err != nil {
		return nil, q.typed(ctx, err)
	}
	q.statement = s
	bound := false
	if !opts.dry || len(opts.Arguments) > 0 {
		if bound, err = e.parser.bind(ctx, s, opts.Arguments); err != nil {
			return nil, q.typed(ctx, err)
		}
	}
	if err := q.group(ctx, bound || s.qualified); err != nil {
		return nil, q.typed(ctx, err)
	}
	if err := e.opts.Memory.free.Acquire(ctx, opts.MemoryBytes); err != nil {
		return nil, q.typed(ctx, fmt.Errorf("wait for memory: %w", err))
	}
	q.release = append(q.release, func() { e.opts.Memory.free.Release(opts.MemoryBytes) })
	return q, nil
}

// parsed parses and checks a statement, or knows one. Nobody changes a
// statement that is remembered: it has no parameters and runs as it is written.
func (e *Engine) parsed(ctx context.Context, sql string) (*statement, error) {
	if s, ok := e.statements.Get(sql); ok {
		return s, nil
	}
	s, err := e.parser.parse(ctx, sql, e.names)
	if err != nil || s.qualified || len(sql) > maxKeyBytes {
		return s, err
	}
	_, names, err := s.parameters()
	if err != nil || len(names) > 0 || slices.ContainsFunc(s.refs, func(r *tableRef) bool { return r.at != nil }) {
		return s, err
	}
	e.statements.Put(sql, s, 1)
	return s, nil
}

// close frees everything, in the order that pins demand: DuckDB first.
func (q *query) close() {
	if q.db != nil {
		if q.keepable() {
			q.engine.spares.keep(q.db)
		} else {
			q.db.close()
		}
		q.db = nil
	}
	for _, v := range q.views {
		v.Close()
	}
	q.views = nil
	for _, f := range slices.Backward(q.release) {
		f()
	}
	q.release = nil
	q.engine.spares.fill()
}

// typed tells the query's own time limit from the caller's, and says which
// limit on memory it was: DuckDB's advice is about settings that are locked.
func (q *query) typed(ctx context.Context, err error) error {
	var said *duckError
	if errors.As(err, &said) {
		if why := q.refusal(said.message); why != nil {
			return why
		}
	}
	if said != nil && said.kind == duckdb.ErrorTypeOutOfMemory {
		return fmt.Errorf("%w: it needs more than %d bytes of memory", ErrTooLarge, q.opts.MemoryBytes)
	}
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() != nil && !time.Now().Before(q.deadline) {
		return fmt.Errorf("%w after %v", ErrTimeout, q.opts.Timeout)
	}
	return err
}

// versionKey tells points in time apart.
type versionKey struct {
	unit string
	n    int64
}

// group sorts the references by table and version, and names DuckDB's views.
// Without AT clauses the views have the names that the statement uses, and it
// runs as it was written; with them, or where the tree has changed (rewrite),
// the parse tree gets the views' names.
func (q *query) group(ctx context.Context, rewrite bool) error {
	byKey := map[string]*group{}
	for _, ref := range q.statement.refs {
		at, key := q.opts.At, versionKey{}
		if ref.at != nil {
			open := false // a parameter without a value: any version has the columns
			collect(ref.at.expression, func(object) { open = true })
			if !open {
				var err error
				if at, key, err = q.engine.parser.pointInTime(ctx, ref.at); err != nil {
					return err
				}
			}
			rewrite = true
		}
		id := fmt.Sprint(ref.kind, key)
		g := byKey[id]
		if g == nil {
			g = &group{kind: ref.kind, at: at, name: "cardinal_" + strconv.Itoa(len(q.groups))}
			byKey[id] = g
			q.groups = append(q.groups, g)
		}
		g.refs = append(g.refs, ref)
	}
	if !rewrite {
		return nil
	}
	for _, g := range q.groups {
		for _, ref := range g.refs {
			ref.node["table_name"], ref.node["alias"], ref.node["at_clause"] = g.name, ref.alias, nil
			ref.node["schema_name"], ref.node["catalog_name"] = "", ""
		}
	}
	sql, err := q.engine.parser.text(ctx, q.statement.tree)
	if err != nil {
		return err
	}
	q.sql = sql
	return nil
}

// pointInTime evaluates an AT clause.
func (p *parser) pointInTime(ctx context.Context, c *atClause) (txlog.At, versionKey, error) {
	fail := func(err error) (txlog.At, versionKey, error) { return txlog.At{}, versionKey{}, err }
	if dependsOnRows(c.expression) {
		return fail(fmt.Errorf("%w: AT takes a constant", ErrSyntax))
	}
	text, err := p.text(ctx, selectTree([]any{c.expression}, object{"type": "EMPTY"}, nil))
	if err != nil {
		return fail(err)
	}
	rows, err := p.rows(ctx, "SELECT typeof(c), CAST(c AS VARCHAR), TRY(epoch_us(TRY_CAST(CAST(c AS VARCHAR) AS TIMESTAMPTZ)))::VARCHAR FROM ("+text+") AS t(c)")
	if err != nil {
		return fail(err)
	}
	if len(rows) != 1 {
		return fail(fmt.Errorf("%w: AT takes one value", ErrSyntax))
	}
	kind, value, micros := rows[0][0], rows[0][1], rows[0][2]
	switch c.unit {
	case "VERSION":
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < 0 {
			return fail(fmt.Errorf("%w: AT (VERSION => %s): a version is an integer from 0", ErrSyntax, value))
		}
		return txlog.AtVersion(action.Version(n)), versionKey{c.unit, n}, nil
	case "TIMESTAMP":
		switch kind {
		case "VARCHAR", "DATE", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE":
			if n, err := strconv.ParseInt(micros, 10, 64); err == nil {
				return txlog.AtTime(time.UnixMicro(n).UTC()), versionKey{c.unit, n}, nil
			}
		}
		return fail(fmt.Errorf("%w: AT (TIMESTAMP => %s): not a time", ErrSyntax, value))
	}
	return fail(fmt.Errorf("%w: AT (%s => …): VERSION or TIMESTAMP", ErrSyntax, c.unit))
}

// prepare opens the views and a database in which they are tables.
func (q *query) prepare(ctx context.Context) error {
	if err := q.openViews(ctx); err != nil {
		return err
	}
	err := q.build(ctx)
	if errors.Is(err, errWhole) {
		return q.rebuild(ctx)
	}
	return err
}

// rebuild begins anew with whole files.
func (q *query) rebuild(ctx context.Context) error {
	q.db.close()
	q.db, q.whole = nil, true
	return q.build(ctx)
}

// compile prepares the statement. One that names what its tables have not got
// may be wrong, or touch more than was seen in it: the tables without rows
// tell, and it gets whole files.
func (q *query) compile(ctx context.Context) (duckdb.PreparedStatement, error) {
	p, err := q.db.prepare(ctx, q.sql)
	if err == nil || !slices.ContainsFunc(q.groups, func(g *group) bool { return g.rows != nil && g.rows.hidden != nil }) {
		return p, err
	}
	dry := *q
	dry.opts.dry, dry.release, dry.db = true, nil, nil
	dry.groups = slices.Clone(q.groups)
	for i, g := range dry.groups {
		one := *g
		dry.groups[i] = &one
	}
	err = dry.build(ctx)
	if err == nil {
		if p, err = dry.db.prepare(ctx, q.sql); err == nil {
			duckdb.DestroyPrepare(&p)
		}
	}
	if dry.db != nil {
		dry.db.close()
	}
	if err != nil {
		return duckdb.PreparedStatement{}, err
	}
	if err := q.rebuild(ctx); err != nil {
		return duckdb.PreparedStatement{}, err
	}
	return q.db.prepare(ctx, q.sql)
}

// openViews opens one view for each version.
func (q *query) openViews(ctx context.Context) error {
	byAt := map[txlog.At]*reader.View{}
	for _, g := range q.groups {
		v := byAt[g.at]
		if v == nil {
			var err error
			if v, err = q.engine.reader.At(ctx, g.at); err != nil {
				return err
			}
			byAt[g.at] = v
			q.views = append(q.views, v)
		}
		g.view = v
	}
	return nil
}

// plan decides what a group reads. It returns the sources with the group's
// added.
func (q *query) plan(ctx context.Context, g *group, sources []source) ([]source, error) {
	var list *listing
	var err error
	switch g.kind {
	case kindFiles:
		list, err = filesListing(ctx, g.view)
	case kindShards:
		list, err = shardsListing(g.view)
	case kindLog:
		if list = newLogListing(); !q.opts.dry {
			err = q.engine.fillLog(ctx, g.view, list)
		}
	default:
		return q.planRows(ctx, g, sources)
	}
	if err != nil {
		return nil, err
	}
	g.source = len(sources)
	return append(sources, list), nil
}

func (q *query) planRows(ctx context.Context, g *group, sources []source) ([]source, error) {
	var names []string
	head := g.view.Head()
	if head != nil {
		names = labelNames(head)
	}
	t, err := newRowsTable(g.view, names)
	if err != nil {
		return nil, err
	}
	g.rows = t
	if q.opts.dry {
		return sources, nil
	}
	if t.layout == nil {
		return q.planForeign(ctx, t, sources)
	}
	if g.kind == kindRows {
		if err := q.narrow(ctx, g); err != nil {
			return nil, err
		}
	}
	if err := q.engine.planned(ctx, t); err != nil {
		return nil, err
	}
	var span series.TimeRange
	hasHead := false
	if head != nil {
		span, hasHead = head.Range()
	}
	t.contested = findContested(t.scan.Files, span, hasHead)
	q.restrict(g)
	if head != nil {
		t.head = len(sources)
		sources = append(sources, newHeadSource(t))
	}
	return sources, nil
}

// narrow finds what all references of a group have in common: the times and
// the series that any of them asks for.
func (q *query) narrow(ctx context.Context, g *group) error {
	columns := keyColumnsOf(g.rows.columnLabels())
	var span series.TimeRange
	var each []implication
	for i, ref := range g.refs {
		p := understand(ref, columns)
		bounds, err := q.timeRanges(ctx, p.bounds)
		if err != nil {
			return fmt.Errorf("evaluate time bounds: %w", err)
		}
		r := p.implied.times(bounds)
		if r.Min > r.Max {
			r.Max = r.Min // nothing can match; keep the range well formed
		}
		if span = span.Union(r); i == 0 {
			span = r
		}
		each = append(each, p.implied)
		if len(g.refs) == 1 {
			g.where = p
		}
	}
	g.rows.sel.Range = span
	if len(each) == 1 {
		g.rows.sel.Matchers = each[0].matchers()
	} else {
		g.rows.sel.Matchers = implication{any: each}.matchers()
	}
	return nil
}

// run starts the statement.
func (q *query) run(ctx context.Context) (*Rows, error) {
	ctx, cancel := context.WithDeadline(ctx, q.deadline)
	defer cancel()
	if err := q.prepare(ctx); err != nil {
		return nil, q.typed(ctx, err)
	}
	p, err := q.compile(ctx)
	if err != nil {
		return nil, q.typed(ctx, err)
	}
	// The parse tree has said so already; this is DuckDB's own word for it.
	if kind := duckdb.PreparedStatementType(p); kind != duckdb.StatementTypeSelect {
		duckdb.DestroyPrepare(&p)
		return nil, fmt.Errorf("%w: statement of type %d", ErrNotAllowed, kind)
	}
	c, err := q.db.start(ctx, p)
	if err != nil {
		return nil, q.typed(ctx, q.cause(ctx, err))
	}
	conv, err := newConverter(&c.result)
	if err != nil {
		c.close()
		return nil, err
	}
	return &Rows{query: q, cursor: c, converter: conv}, nil
}

// cause finds out why DuckDB stopped a statement that nobody interrupted. When
// one of its threads fails while another one hands over rows of a stream, the
// error that comes out is the interruption of the latter; what happened is
// lost. So the statement runs again, all of it and without a stream, in a new
// database.
func (q *query) cause(ctx context.Context, err error) error {
	var stopped *duckError
	if !errors.As(err, &stopped) || stopped.kind != duckdb.ErrorTypeInterrupt || ctx.Err() != nil {
		return err
	}
	sql, textErr := q.engine.parser.text(ctx, q.statement.tree)
	if textErr != nil {
		return errors.Join(err, textErr)
	}
	q.db.close()
	q.db, q.remade = nil, true
	if buildErr := q.build(ctx); buildErr != nil {
		return errors.Join(err, buildErr)
	}
	if again := q.db.exec(ctx, "SELECT max(hash(COLUMNS(*))) FROM ("+sql+") AS t"); again != nil {
		return again
	}
	return fmt.Errorf("%w: %w", ErrExecution, err)
}

// isGone reports that a version's commit is no longer, or not yet, there.
func isGone(err error) bool {
	return errors.Is(err, txlog.ErrVersionVacuumed) || errors.Is(err, txlog.ErrVersionNotFound)
}
