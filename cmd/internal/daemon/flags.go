package daemon

import (
	"time"

	ucli "github.com/urfave/cli/v2"

	"cardinalsin"
	"cardinalsin/cmd/internal/cli"
)

// WriterFlags are the flags of a process that ingests.
func WriterFlags() []ucli.Flag {
	return []ucli.Flag{
		&ucli.StringFlag{Name: "http", Value: "localhost:8080", Usage: "listen on `ADDRESS`"},
		&ucli.StringFlag{Name: "wal-dir", Value: "./cardinal-wal", Usage: "`DIR` of the write-ahead log"},
		&ucli.DurationFlag{Name: "flush-age", Value: 10 * time.Second, Usage: "commit samples at most this long after they came"},
		&ucli.Int64Flag{Name: "flush-bytes", Value: 64 << 20, Usage: "commit once the head takes this many `BYTES`"},
	}
}

// Options are the table's options that the flags of both daemons give.
func Options(c *ucli.Context) (cardinalsin.Options, error) {
	logger, err := cli.Logger(c)
	if err != nil {
		return cardinalsin.Options{}, err
	}
	o := cardinalsin.Options{
		Store: c.String("store"), Tenant: c.String("tenant"), Table: c.String("table"),
		WALDir: c.String("wal-dir"), Logger: logger,
	}
	o.Writer.FlushAge = c.Duration("flush-age")
	o.Writer.FlushBytes = c.Int64("flush-bytes")
	return o, nil
}
