// Package otlp receives OpenTelemetry metrics over HTTP and gRPC.
//
// It stands on the layer of the protocols. Messages are decoded by the
// Collector's library and translated by Prometheus' converter, which see for
// names and labels; this package refuses what neither of them would, and keeps
// what the converter would not hand through.
//
//	gauge, sum            a float sample; non-monotonic sums are gauges
//	histogram             _bucket, _sum, _count as Prometheus has them
//	exponential histogram a native histogram; of a scale above 8 the buckets
//	                      are merged down to it, of one below −4 refused
//	min, max of both      gauges _min and _max
//	summary               its quantiles, _sum, _count
//	no recorded value     a stale marker
//	start time            series.Sample.Start
//	exemplars             those of gauges and of all others, with the
//	                      filtered attributes under their own names
//	resource attributes   labels, and labels of target_info
//	scope                 labels otel_scope_name, _version, _schema_url and
//	                      otel_scope_<attribute>
//
// An attribute whose label the translation sets itself (job, instance, le, …)
// becomes exported_<name>, as in a scrape. Not kept: delta temporality, whose
// data points are refused; and what says nothing of data points: counts of
// dropped attributes, entity references, metric metadata, schema URLs of
// resources.
//
// INVARIANT: a data point is stored to the nanosecond and the bit, or counted
// in rejected_data_points with the reason. What is stored with a difference,
// such as an integer that no float is equal to, the answer tells. A request of
// which nothing can be kept is refused; of one that cannot be decoded nothing
// is stored.
package otlp

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"

	"github.com/prometheus/otlptranslator"
	"github.com/prometheus/prometheus/config"
	"go.opentelemetry.io/collector/pdata/pmetric/pmetricotlp"

	"cardinalsin/ingest"
)

// Options of a Handler and of Register; the zero value is useful.
type Options struct {
	// Translate is the section otlp of Prometheus' configuration, as that
	// reads it (an empty translation strategy is NoTranslation). Default:
	// names and suffixes as by Prometheus' own defaults, but all attributes of
	// resources and scopes as labels, without which two resources or scopes
	// could write one series.
	Translate *config.OTLPConfig
	// Logger hears of failures that are not the client's. Default: nobody.
	Logger *slog.Logger
}

// EnsureDefaults fills in what is unset.
func (o *Options) EnsureDefaults() {
	if o.Translate == nil {
		o.Translate = &config.OTLPConfig{
			TranslationStrategy:                  otlptranslator.UnderscoreEscapingWithSuffixes,
			PromoteAllResourceAttributes:         true,
			PromoteScopeMetadata:                 true,
			LabelNameUnderscoreSanitization:      config.DefaultOTLPConfig.LabelNameUnderscoreSanitization,
			LabelNamePreserveMultipleUnderscores: config.DefaultOTLPConfig.LabelNamePreserveMultipleUnderscores,
		}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// MaxMessageBytes bounds a request, before decompression and after it. A gRPC
// server must be told (grpc.MaxRecvMsgSize).
const MaxMessageBytes = 32 << 20

type receiver struct {
	sink ingest.Sink
	opts Options
}

func newReceiver(sink ingest.Sink, o Options) *receiver {
	o.EnsureDefaults()
	return &receiver{sink, o}
}

var errNotJSON = errors.New("no JSON value, or more than one")

// decodeProto decodes a request of either transport.
func decodeProto(body []byte) (pmetricotlp.ExportRequest, error) {
	request := pmetricotlp.NewExportRequest()
	if err := scanProto(body); err != nil {
		return request, err
	}
	if err := request.UnmarshalProto(body); err != nil {
		return request, malformed(err)
	}
	return request, nil
}

func decodeJSON(body []byte) (pmetricotlp.ExportRequest, error) {
	request := pmetricotlp.NewExportRequest()
	if err := scanJSON(body); err != nil {
		return request, err
	}
	if !json.Valid(body) { // upstream reads what it can, and ignores what follows
		return request, malformed(errNotJSON)
	}
	if err := request.UnmarshalJSON(body); err != nil {
		return request, malformed(err)
	}
	return request, nil
}

// export stores a request, and tells in the response what is not in the
// tables as it was sent. What it refuses by itself it counts.
func (r *receiver) export(ctx context.Context, tenant string, request pmetricotlp.ExportRequest) (pmetricotlp.ExportResponse, error) {
	response := pmetricotlp.NewExportResponse()
	t := newTranslation(r.opts.Translate)
	rows, err := t.translate(ctx, request.Metrics())
	if err != nil {
		return response, r.refuse(err)
	}
	left := t.report.left()
	if left == t.report.points && left > 0 {
		r.countLeft(&t.report)
		return response, &nothingKept{&t.report}
	}
	if len(rows.Samples) > 0 {
		if err := r.sink.Append(ctx, tenant, rows); err != nil {
			return response, err
		}
	}
	r.countLeft(&t.report)
	if message := t.report.String(); message != "" {
		response.PartialSuccess().SetRejectedDataPoints(int64(left))
		response.PartialSuccess().SetErrorMessage(message)
	}
	return response, nil
}

// nothingKept is the refusal of a request whose every data point is.
type nothingKept struct{ report *report }

func (e *nothingKept) Error() string { return e.report.String() }

func (e *nothingKept) Unwrap() error { return e.report.first }

// refuse counts a request that is refused whole.
func (r *receiver) refuse(err error) error {
	reason, _ := ingest.Classify(err)
	r.sink.Refuse(ingest.OTLP, reason, 0)
	return err
}

// countLeft counts what was left out; not before its request is answered for
// good, since one that failed comes again.
func (r *receiver) countLeft(t *report) {
	for _, counts := range []map[ingest.Reason]int{t.rejected, t.exemplars} {
		for reason, n := range counts {
			r.sink.Refuse(ingest.OTLP, reason, n)
		}
	}
}
