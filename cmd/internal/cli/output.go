package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	ucli "github.com/urfave/cli/v2"
)

// JSONFlag makes a listing print one JSON object a line.
func JSONFlag() ucli.Flag {
	return &ucli.BoolFlag{Name: "json", Usage: "one JSON object a line"}
}

// Listing prints rows as an aligned table, or as JSON lines where --json was
// given. Row fields carry their JSON names; columns picks what the table
// shows.
type Listing[Row any] struct {
	Header  string // tab-separated
	Columns func(Row) string
}

// Print writes all rows; it stops at the first error.
func (l Listing[Row]) Print(c *ucli.Context, rows []Row) error {
	if c.Bool("json") {
		enc := json.NewEncoder(c.App.Writer)
		for _, r := range rows {
			if err := enc.Encode(r); err != nil {
				return fmt.Errorf("print: %w", err)
			}
		}
		return nil
	}
	w := tabwriter.NewWriter(c.App.Writer, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, l.Header)
	for _, r := range rows {
		fmt.Fprintln(w, l.Columns(r))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

// Time prints a moment as tables show it, "-" for none.
func Time(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format("2006-01-02T15:04:05.000Z")
}

// Bytes prints a size for people.
func Bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	div, exp := int64(unit), 0
	for m := n / unit; m >= unit; m /= unit {
		div *= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", float64(n)/float64(div), "KMGTPE"[exp])
}

// Printf writes to stdout; a closed pipe ends the command with an error.
func Printf(w io.Writer, format string, args ...any) error {
	if _, err := fmt.Fprintf(w, format, args...); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}
