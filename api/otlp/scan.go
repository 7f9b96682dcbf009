package otlp

import (
	"fmt"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protowire"

	"cardinalsin/ingest"
)

// The decoder of upstream allocates a struct of up to two hundred bytes for an
// element of two, recurses as deep as attributes are nested, and takes any
// bytes for text. So a message is looked through before it is decoded.
const (
	// maxElements bounds the elements of a message: resources, scopes,
	// metrics, data points, attributes, values, exemplars and the like, and
	// the bytes of exponential buckets. A Collector's batch of 8,192 data
	// points with ten attributes each has 180,000.
	maxElements = 1 << 20
	// maxDepth bounds nesting; a plain attribute of a data point is on level 7.
	maxDepth = 64
	// maxJSONTokens bounds what begins or separates values in JSON, where an
	// element needs about four.
	maxJSONTokens = 4 * maxElements
)

// message tells which fields of a protobuf message are text, bytes that expand
// and messages themselves, as in opentelemetry/proto/metrics/v1/metrics.proto,
// common/v1/common.proto and resource/v1/resource.proto.
type message struct {
	text     [16]bool
	expands  [16]bool
	messages [16]*message
	legacy   *message // field 1000 of a resource's metrics, from before OTLP 1.0
}

const legacyField = 1000

type (
	marks = [16]bool
	subs  = [16]*message
)

var exportRequest = func() *message {
	anyValue, keyValue := &message{text: marks{1: true}}, &message{text: marks{1: true}}
	keyValue.messages = subs{2: anyValue}
	anyValue.messages = subs{
		5: {messages: subs{1: anyValue}}, // array
		6: {messages: subs{1: keyValue}}, // key-value list
	}
	exemplar := &message{messages: subs{7: keyValue}}
	buckets := &message{expands: marks{2: true}}
	points := func(point *message) *message { return &message{messages: subs{1: point}} }
	number := points(&message{messages: subs{5: exemplar, 7: keyValue}})
	metric := &message{text: marks{1: true, 2: true, 3: true}, messages: subs{
		5:  number,                                                                              // gauge
		7:  number,                                                                              // sum
		9:  points(&message{messages: subs{8: exemplar, 9: keyValue}}),                          // histogram
		10: points(&message{messages: subs{1: keyValue, 8: buckets, 9: buckets, 11: exemplar}}), // exponential histogram
		11: points(&message{messages: subs{6: {}, 7: keyValue}}),                                // summary
		12: keyValue,
	}}
	scopeMetrics := &message{text: marks{3: true}, messages: subs{
		1: {text: marks{1: true, 2: true}, messages: subs{3: keyValue}}, // scope
		2: metric,
	}}
	entity := &message{text: marks{1: true, 2: true, 3: true, 4: true}}
	return &message{messages: subs{1: {text: marks{3: true}, legacy: scopeMetrics, messages: subs{
		1: {messages: subs{1: keyValue, 3: entity}}, // resource
		2: scopeMetrics,
	}}}}
}()

// scanProto looks through an ExportMetricsServiceRequest in protobuf. Its
// errors wrap ingest.ErrMalformed or ingest.ErrTooLarge. It allocates nothing.
func scanProto(body []byte) error {
	n := 0
	return exportRequest.scan(body, &n, 0)
}

func (m *message) scan(b []byte, n *int, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: nested deeper than %d", ingest.ErrTooLarge, maxDepth)
	}
	for len(b) > 0 {
		number, typ, size := protowire.ConsumeTag(b)
		if size < 0 {
			return fmt.Errorf("%w: %w", ingest.ErrMalformed, protowire.ParseError(size))
		}
		b = b[size:]
		if size = protowire.ConsumeFieldValue(number, typ, b); size < 0 {
			return fmt.Errorf("%w: %w", ingest.ErrMalformed, protowire.ParseError(size))
		}
		field := b[:size]
		b = b[size:]
		if typ != protowire.BytesType {
			continue
		}
		value, _ := protowire.ConsumeBytes(field)
		*n++
		sub := m.legacy
		if number < protowire.Number(len(m.messages)) {
			sub = m.messages[number]
			if m.text[number] && !utf8.Valid(value) {
				return fmt.Errorf("%w: %.100q is no UTF-8 text", ingest.ErrMalformed, value)
			}
			if m.expands[number] {
				*n += len(value)
			}
		} else if number != legacyField {
			sub = nil
		}
		if *n > maxElements {
			return fmt.Errorf("%w: more than %d elements; send fewer data points at a time", ingest.ErrTooLarge, maxElements)
		}
		if sub != nil {
			if err := sub.scan(value, n, depth+1); err != nil {
				return err
			}
		}
	}
	return nil
}

// scanJSON does the same for JSON; what is no JSON the decoder will find.
func scanJSON(body []byte) error {
	if !utf8.Valid(body) {
		return fmt.Errorf("%w: no UTF-8 text", ingest.ErrMalformed)
	}
	n, depth, quoted := 0, 0, false
	for i := 0; i < len(body); i++ {
		c := body[i]
		if quoted {
			switch c {
			case '\\':
				i++
			case '"':
				quoted = false
			}
			continue
		}
		switch c {
		case '"':
			quoted = true
		case '{', '[':
			n++
			depth++
		case '}', ']':
			depth--
		case ',':
			n++
		}
		if n > maxJSONTokens {
			return fmt.Errorf("%w: more than %d values; send fewer data points at a time", ingest.ErrTooLarge, maxJSONTokens)
		}
		if depth > 2*maxDepth {
			return fmt.Errorf("%w: nested deeper than %d", ingest.ErrTooLarge, 2*maxDepth)
		}
	}
	return nil
}
