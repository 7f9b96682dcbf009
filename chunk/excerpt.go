package chunk

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"

	"github.com/apache/arrow-go/v18/parquet/metadata"
	"github.com/cespare/xxhash/v2"
	"golang.org/x/sync/errgroup"
)

// Excerpt is a Parquet file with some columns and row groups of a data file,
// for an engine that opens local files only. It has their pages byte by byte,
// and a footer of its own: what was left out is not there, so no engine can
// take it for something else. It is no data file, and has no seal.
type Excerpt struct {
	file   *File
	parts  []columnChunk // of the file, in the order of the excerpt
	footer []byte        // with its length and the magic
	size   int64
}

// Excerpt prepares an excerpt with the columns that the file has of those named
// and with some row groups, ascending and at least one. It has the column of
// metric names if it would have none. It reads the footer again, with one
// request of the source. Errors: ErrInvalidInput, ErrCorrupt, and those of the
// source; each names the file.
func (f *File) Excerpt(ctx context.Context, columns func(name string) bool, rowGroups []int) (*Excerpt, error) {
	e, err := f.excerpt(ctx, columns, rowGroups)
	if err != nil {
		return nil, fmt.Errorf("excerpt of %s: %w", f.Name(), err)
	}
	return e, nil
}

func (f *File) excerpt(ctx context.Context, columns func(name string) bool, rowGroups []int) (*Excerpt, error) {
	for i, g := range rowGroups {
		if g < 0 || g >= len(f.groups) || i > 0 && g <= rowGroups[i-1] {
			return nil, fmt.Errorf("%w: row group %d of %d", ErrInvalidInput, g, len(f.groups))
		}
	}
	if len(rowGroups) == 0 {
		return nil, fmt.Errorf("%w: no row group", ErrInvalidInput)
	}
	end, err := f.fetch(ctx, []span{{f.body, f.size - f.body}})
	if err != nil {
		return nil, err
	}
	sealed, _ := end.slice(span{f.body, f.size - f.body})
	footer, _, err := openSeal(sealed)
	if err != nil {
		return nil, err
	}
	e := &Excerpt{file: f}
	if err := guard(func() error { return e.build(ctx, footer, columns, rowGroups) }); err != nil {
		return nil, err
	}
	e.size = int64(len(parquetMagic) + len(e.footer))
	for _, p := range e.parts {
		e.size += p.length
	}
	return e, nil
}

// build makes the excerpt's footer out of the file's.
func (e *Excerpt) build(ctx context.Context, footer []byte, columns func(string) bool, rowGroups []int) error {
	f := e.file
	md, err := metadata.NewFileMetaData(footer, nil)
	if err != nil {
		return fmt.Errorf("%w: footer: %w", ErrCorrupt, err)
	}
	raw := md.FileMetaData
	keep := make([]bool, len(f.leaves)) // by leaf
	any := false
	for i := range f.leaves {
		name := raw.RowGroups[0].Columns[i].MetaData.PathInSchema[0]
		keep[i] = columns(name)
		any = any || keep[i]
	}
	if !any {
		keep[f.byName[ColumnMetricName]] = true
	}
	// The schema is a tree, depth first; its leaves are in the order of the
	// columns. A column of the table is a child of the root.
	elements := raw.Schema[:1:1]
	var roots int32
	leaf := 0
	for at := 1; at < len(raw.Schema); {
		first, wanted := at, keep[leaf]
		for open := 1; open > 0; open-- {
			children := int(raw.Schema[at].GetNumChildren())
			if at++; children == 0 {
				leaf++
			}
			open += children
		}
		if wanted {
			elements = append(elements, raw.Schema[first:at]...)
			roots++
		}
	}
	raw.Schema = elements
	raw.Schema[0].NumChildren = &roots
	if raw.ColumnOrders != nil {
		raw.ColumnOrders = kept(raw.ColumnOrders, keep)
	}
	groups := raw.RowGroups
	raw.RowGroups, raw.NumRows = groups[:0:0], 0
	at := int64(len(parquetMagic))
	for n, i := range rowGroups {
		g, of := groups[i], &f.groups[i]
		start, ordinal := at, int16(n)
		g.Ordinal, g.FileOffset, g.TotalByteSize = &ordinal, &start, 0
		g.SortingColumns = nil // they are numbers of columns
		for j, c := range g.Columns {
			if !keep[j] {
				continue
			}
			part := of.columns[j]
			m := c.MetaData
			move := func(offset int64) int64 { return offset - part.offset + at }
			c.FileOffset = at
			m.DataPageOffset = move(m.DataPageOffset)
			if m.DictionaryPageOffset != nil {
				*m.DictionaryPageOffset = move(*m.DictionaryPageOffset)
			}
			c.OffsetIndexOffset, c.OffsetIndexLength, c.ColumnIndexOffset, c.ColumnIndexLength = nil, nil, nil, nil
			m.IndexPageOffset, m.BloomFilterOffset, m.BloomFilterLength = nil, nil, nil
			g.TotalByteSize += m.TotalUncompressedSize
			e.parts = append(e.parts, part)
			at += part.length
		}
		g.Columns = kept(g.Columns, keep)
		compressed := at - start
		g.TotalCompressedSize = &compressed
		raw.RowGroups = append(raw.RowGroups, g)
		raw.NumRows += g.NumRows
	}
	if e.footer, err = md.Serialize(ctx); err != nil {
		return fmt.Errorf("footer: %w", err)
	}
	e.footer = binary.LittleEndian.AppendUint32(e.footer, uint32(len(e.footer)))
	e.footer = append(e.footer, parquetMagic...)
	return nil
}

// kept returns the elements whose place is marked.
func kept[T any](list []T, keep []bool) []T {
	out := make([]T, 0, len(list))
	for i, v := range list {
		if keep[i] {
			out = append(out, v)
		}
	}
	return out
}

// Size is the number of bytes that Write writes.
func (e *Excerpt) Size() int64 { return e.size }

// Write writes the excerpt, and checks each part of it against its sum before.
// It holds 8 MiB in memory, or one column of a row group where that is more.
// Errors: ErrCorrupt, those of the source and of w; each names the file.
func (e *Excerpt) Write(ctx context.Context, w io.Writer) error {
	if err := e.write(ctx, w); err != nil {
		return fmt.Errorf("excerpt of %s: %w", e.file.Name(), err)
	}
	return nil
}

func (e *Excerpt) write(ctx context.Context, w io.Writer) error {
	if _, err := io.WriteString(w, parquetMagic); err != nil {
		return err
	}
	for rest := e.parts; len(rest) > 0; {
		n, bytes := 1, rest[0].length
		for n < len(rest) {
			gap := rest[n].offset - rest[n-1].end() // may be read in vain
			if bytes += rest[n].length + min(max(gap, 0), maxGap); bytes > maxRequest {
				break
			}
			n++
		}
		if err := e.copy(ctx, w, rest[:n]); err != nil {
			return err
		}
		rest = rest[n:]
	}
	_, err := w.Write(e.footer)
	return err
}

// excerptRequests is how many requests one excerpt makes at a time.
const excerptRequests = 4

// copy writes parts, which are read with requests side by side: the columns of a
// row group lie apart.
func (e *Excerpt) copy(ctx context.Context, w io.Writer, parts []columnChunk) error {
	f := e.file
	spans := make([]span, len(parts))
	for i, p := range parts {
		spans[i] = p.span
	}
	have := &blocks{spans: []span{{0, f.size}}, data: [][]byte{f.whole}}
	if f.whole == nil {
		have.spans = joined(spans)
		have.data = make([][]byte, len(have.spans))
		group, ctx := errgroup.WithContext(ctx)
		group.SetLimit(excerptRequests)
		for i, s := range have.spans {
			group.Go(func() (err error) {
				have.data[i], err = readRange(ctx, f.src, s)
				return err
			})
		}
		if err := group.Wait(); err != nil {
			return err
		}
	}
	for i, p := range parts {
		data, _ := have.slice(spans[i])
		if xxhash.Sum64(data) != p.sum {
			return fmt.Errorf("%w: checksum of %d bytes at %d", ErrCorrupt, p.length, p.offset)
		}
		if _, err := w.Write(data); err != nil {
			return err
		}
	}
	return nil
}
