// Package ingest is where every protocol hands over what it has decoded:
// samples, exemplars and metadata of one tenant, accepted or refused whole.
//
// It stands on layer 6, above writer and below the protocols, which know their
// wire formats and nothing of tables. It holds the limits of a tenant and the
// reasons of refusals, so that the same fault has the same answer in every
// protocol.
//
// INVARIANT: when Append returns nil, everything in the request is durable and
// readable; otherwise the caller was told why, and the refusal is counted.
package ingest

import (
	"context"

	"cardinalsin/series"
)

// Protocol names the way in which a request came, as the metrics have it.
type Protocol string

// The protocols.
const (
	RemoteWrite1 Protocol = "remote_write_1"
	RemoteWrite2 Protocol = "remote_write_2"
	OTLP         Protocol = "otlp"
	Influx       Protocol = "influx"
	Flight       Protocol = "flight"
	Scrape       Protocol = "scrape"
)

// Request is what one client request carries.
type Request struct {
	Protocol  Protocol
	Samples   series.Batch
	Exemplars []series.Exemplar
	Metadata  []series.Metadata
}

// Sink takes requests. It may be used concurrently.
type Sink interface {
	// Append makes a whole request durable, in the tables of that tenant, or
	// refuses it; Classify tells what to answer. It does not keep the batch
	// and does not change it, but see writer.Writer.Append on histograms.
	// tenant "" is the default tenant.
	Append(ctx context.Context, tenant string, r *Request) error
	// Refuse counts what a protocol refused by itself: a request that it could
	// not decode (n 0), or n samples that it left out of one and told the
	// client so. What Append refused is counted already.
	Refuse(p Protocol, reason Reason, n int)
}
