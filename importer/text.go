package importer

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/big"
	"strings"

	"github.com/prometheus/prometheus/model/exemplar"
	"github.com/prometheus/prometheus/model/textparse"

	"cardinalsin/ingest"
	"cardinalsin/series"
	"cardinalsin/writer"
)

const (
	// blockBytes is what upstream's parser is given at a time.
	blockBytes = 1 << 20
	// maxLineBytes bounds a line, and with it the memory of a parser.
	maxLineBytes = 16 << 20
	// earliestGuess is the least timestamp, in milliseconds, that is believed
	// where the format was not named: 1973. Seconds lie below it until 5138.
	earliestGuess = 100_000_000_000
)

const eof = "# EOF\n"

// textParser reads text line by line in blocks. The blocks end anywhere, so
// the parts, which end after a number of samples, do not depend on them.
func textParser(path string, format Format, o Options, sure bool) parser {
	return fileParser(path, func(file io.Reader, yield func(*part, error) bool) error {
		t := &textReader{format: format, opts: o, sure: sure, yield: yield, in: file, line: 1, raw: map[string]int{}, kinds: map[string]int{}}
		t.rows.reset()
		if err := t.run(); !errors.Is(err, errStopped) {
			return err
		}
		return nil
	})
}

// errStopped: whoever takes the parts wants no more.
var errStopped = errors.New("stopped")

type textReader struct {
	format Format
	opts   Options
	sure   bool // the user named the format
	yield  func(*part, error) bool
	in     io.Reader

	read   int64  // bytes
	line   int    // of the first byte of the block, from 1
	prefix string // says the type of the family that the block begins in
	part   part
	rows   rows
	raw    map[string]int // series as text → place in rows
	mtype  string         // of the family
	kinds  map[string]int // metric → place in part.metadata
	newest series.Timestamp
	dated  bool // newest is set
}

// run cuts the input into blocks at ends of lines.
func (t *textReader) run() error {
	var block []byte
	for {
		old := len(block)
		block = append(block, make([]byte, blockBytes)...)
		n, err := io.ReadFull(t.in, block[old:])
		block = block[:old+n]
		t.read += int64(n)
		last := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
		if err != nil && !last {
			return fmt.Errorf("read: %w", err)
		}
		cut := len(block)
		if !last {
			cut = bytes.LastIndexByte(block, '\n') + 1
		}
		if cut == 0 && !last {
			if len(block) > maxLineBytes {
				return fmt.Errorf("line %d: %w: a line of more than %d bytes", t.line, ingest.ErrTooLarge, maxLineBytes)
			}
			continue
		}
		if err := t.block(block[:cut], last); err != nil {
			return err
		}
		if last {
			return t.emit()
		}
		t.line += bytes.Count(block[:cut], []byte("\n"))
		block = append([]byte(nil), block[cut:]...) // labels and texts may alias the old one
	}
}

// block parses whole lines.
func (t *textReader) block(data []byte, last bool) error {
	text := append([]byte(t.prefix), data...)
	var p textparse.Parser
	if t.format == OpenMetrics {
		if !last {
			text = append(text, eof...)
		}
		p = textparse.NewOpenMetricsParser(text, nil)
	} else {
		if last && len(data) > 0 && data[len(data)-1] != '\n' {
			text = append(text, '\n') // upstream insists
		}
		p = textparse.NewPromParser(text, nil, false)
	}
	at := len(t.prefix) // everything before was parsed
	skip := t.prefix != ""
	line := t.line
	for {
		entry, err := p.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("line %d: %w: %w", line+blankLines(text[at:]), ingest.ErrMalformed, err)
		}
		if skip { // the type of the family, which is not new
			skip = false
			continue
		}
		if entry == textparse.EntrySeries {
			raw, _, _ := p.Series()
			// raw is a slice of text, so their ends tell where it lies.
			start := cap(text) - cap(raw)
			line += bytes.Count(text[at:start], []byte("\n"))
			at = start
			if err := t.sample(p, raw, restOfLine(text[start+len(raw):])); err != nil {
				return fmt.Errorf("line %d: %w", line, err)
			}
		} else {
			line += blankLines(text[at:])
			at += blankBytes(text[at:])
			t.describe(p, entry)
		}
		end := bytes.IndexByte(text[at:], '\n') + 1
		if entry == textparse.EntrySeries {
			raw, _, _ := p.Series()
			end = len(raw) + bytes.IndexByte(text[at+len(raw):], '\n') + 1
		}
		line += bytes.Count(text[at:at+end], []byte("\n"))
		at += end
		if t.rows.count >= t.opts.partSamples {
			if err := t.emit(); err != nil {
				return err
			}
		}
	}
}

// blankBytes counts the bytes of lines without content at the beginning.
func blankBytes(b []byte) int {
	n := 0
	for {
		end := bytes.IndexByte(b[n:], '\n')
		if end < 0 || len(bytes.TrimSpace(b[n:n+end])) > 0 {
			return n
		}
		n += end + 1
	}
}

func blankLines(b []byte) int { return bytes.Count(b[:blankBytes(b)], []byte("\n")) }

func restOfLine(b []byte) string {
	if end := bytes.IndexByte(b, '\n'); end >= 0 {
		b = b[:end]
	}
	return string(b)
}

// describe notes TYPE, UNIT and HELP.
func (t *textReader) describe(p textparse.Parser, entry textparse.Entry) {
	var name, text []byte
	switch entry {
	case textparse.EntryType:
		n, kind := p.Type()
		name, text = n, []byte(kind)
		if string(kind) != t.mtype {
			t.mtype = string(kind)
			clear(t.raw) // how le and quantile are written depends on the type
		}
		t.prefix = "# TYPE " + quoteName(string(n)) + " " + string(kind) + "\n"
	case textparse.EntryHelp:
		name, text = p.Help()
	case textparse.EntryUnit:
		name, text = p.Unit()
	default:
		return
	}
	i, ok := t.kinds[string(name)]
	if !ok {
		i = len(t.part.metadata)
		t.kinds[string(name)] = i
		t.part.metadata = append(t.part.metadata, described{Metadata: series.Metadata{Metric: string(name)}})
	}
	m := &t.part.metadata[i]
	switch entry {
	case textparse.EntryType:
		m.Type = string(text)
	case textparse.EntryHelp:
		m.Help = string(text)
	case textparse.EntryUnit:
		m.Unit = string(text)
	}
}

// quoteName writes a name as both formats read it in a comment.
func quoteName(name string) string {
	for i, c := range []byte(name) {
		plain := c == '_' || c == ':' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || i > 0 && c >= '0' && c <= '9'
		if !plain {
			return `"` + name + `"` // still escaped, as the parser gave it
		}
	}
	return name
}

// sample adds one line's sample, and its exemplar. rest is what follows the
// labels: upstream's timestamps end at the millisecond.
func (t *textReader) sample(p textparse.Parser, raw []byte, rest string) error {
	_, ms, value := p.Series()
	place, ok := t.raw[string(raw)]
	if !ok {
		var l series.Labels
		p.Labels(&l)
		if err := checkLabels(l); err != nil {
			return err
		}
		place = t.rows.find(l)
		t.raw[string(raw)] = place
	}
	s := series.Sample{Value: value}
	if err := t.time(&s, ms, rest); err != nil {
		return err
	}
	if err := writer.CheckSample(&s); err != nil {
		return err
	}
	t.rows.add(place, s)
	if t.rows.count == 1 || s.Time > t.newest {
		t.newest, t.dated = s.Time, true
	}
	return t.exemplar(p, place, s, rest)
}

func (t *textReader) time(s *series.Sample, ms *int64, rest string) error {
	fields := strings.Fields(rest)
	switch {
	case ms == nil && t.opts.Time.IsZero():
		return fmt.Errorf("%w: a sample without a timestamp", ingest.ErrMalformed)
	case ms == nil:
		s.Time, s.Nanos = split(t.opts.Time.UnixNano())
	case t.format == OpenMetrics:
		if len(fields) < 2 {
			return fmt.Errorf("%w: no timestamp in %.200q", ingest.ErrMalformed, rest)
		}
		ns, err := seconds(fields[1])
		if err != nil {
			return err
		}
		s.Time, s.Nanos = split(ns)
	case !t.sure && *ms < earliestGuess:
		return fmt.Errorf("%w: timestamp %d is before 1973 in milliseconds, as this format has them; if that is meant, name the format", ErrFormat, *ms)
	default:
		if s.Time = series.FromMillis(*ms); s.Time.Millis() != *ms {
			return fmt.Errorf("%w: time %d ms", writer.ErrInvalidSample, *ms)
		}
	}
	return nil
}

func (t *textReader) exemplar(p textparse.Parser, place int, s series.Sample, rest string) error {
	var e exemplar.Exemplar
	if !p.Exemplar(&e) {
		return nil
	}
	x := series.Exemplar{Series: t.rows.batch[place].Labels, Labels: e.Labels, Time: s.Time, Nanos: s.Nanos, Value: e.Value}
	if e.HasTs {
		fields := strings.Fields(rest[strings.LastIndexByte(rest, '}')+1:])
		if len(fields) != 2 {
			return fmt.Errorf("%w: no exemplar's timestamp in %.200q", ingest.ErrMalformed, rest)
		}
		ns, err := seconds(fields[1])
		if err != nil {
			return err
		}
		x.Time, x.Nanos = split(ns)
	}
	t.part.exemplars = append(t.part.exemplars, x)
	return nil
}

// seconds reads a number of seconds as nanoseconds, exactly.
func seconds(text string) (int64, error) {
	f, ok := new(big.Float).SetPrec(64).SetString(text)
	if len(text) > 64 || !ok || f.IsInf() || f.MantExp(nil) > 40 || !f.IsInf() && f.Sign() != 0 && f.MantExp(nil) < -40 {
		return 0, fmt.Errorf("%w: timestamp %.80q", writer.ErrInvalidSample, text)
	}
	r, ok := new(big.Rat).SetString(text) // small: the exponent is
	if !ok {
		return 0, fmt.Errorf("%w: timestamp %.80q", writer.ErrInvalidSample, text)
	}
	r.Mul(r, big.NewRat(1_000_000_000, 1))
	if !r.IsInt() || !r.Num().IsInt64() || r.Num().Int64() == math.MinInt64 {
		return 0, fmt.Errorf("%w: timestamp %.80q is no number of nanoseconds in range", writer.ErrInvalidSample, text)
	}
	return r.Num().Int64(), nil
}

// emit yields what was collected.
func (t *textReader) emit() error {
	for i := range t.part.metadata {
		t.part.metadata[i].day = t.newest.Date()
	}
	t.part.samples, t.part.end = t.rows.batch, t.read
	p := t.part
	if t.rows.count == 0 {
		// Without a sample in the part there is no day for what it describes;
		// the day of the last one before will do.
		if p.samples = nil; !t.dated {
			p.metadata = nil
		}
	}
	if len(p.samples)+len(p.exemplars)+len(p.metadata) > 0 && !t.yield(&p, nil) {
		return errStopped
	}
	t.part = part{}
	t.rows.reset()
	clear(t.raw)
	clear(t.kinds)
	return nil
}
