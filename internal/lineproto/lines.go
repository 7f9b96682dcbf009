package lineproto

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"cardinalsin/ingest"
)

// maxLineBytes bounds one line: the decoder keeps it in memory whole.
const maxLineBytes = 16 << 20

// lineReader gives its input a line a call, so that number tells where the
// decoder is, and how much it holds.
type lineReader struct {
	r      *bufio.Reader
	rest   []byte // of the line, not given yet
	inside bool   // the last byte given out was not a line's end
	number int64  // of the line given last, from 1
	held   int    // bytes since begin
}

func newLineReader(r io.Reader) *lineReader {
	return &lineReader{r: bufio.NewReaderSize(r, 64<<10)}
}

// begin tells that the decoder wants a new line.
func (l *lineReader) begin() { l.held = 0 }

func (l *lineReader) Read(p []byte) (int, error) {
	if len(l.rest) == 0 {
		line, err := l.r.ReadSlice('\n')
		if len(line) == 0 && err != nil {
			return 0, err
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) && !errors.Is(err, io.EOF) {
			return 0, err
		}
		if !l.inside {
			l.number++
		}
		l.inside = line[len(line)-1] != '\n'
		l.rest = line
	}
	n := copy(p, l.rest)
	l.rest = l.rest[n:]
	if l.held += n; l.held > maxLineBytes {
		return 0, fmt.Errorf("%w: more than %d bytes in one line, or of comments", ingest.ErrTooLarge, maxLineBytes)
	}
	return n, nil
}
