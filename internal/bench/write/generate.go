package main

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"

	"github.com/klauspost/compress/s2"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/encoding/protowire"
)

// workload says what the generator sends: in every round one sample of every
// series, 15 s after the one before, as a scrape does.
type workload struct {
	series  int
	rounds  int
	churn   int // of a hundred series, how many are others in the next round
	perPost int // series in a request; Prometheus sends 2,000 by default
}

// samples is what a round has.
func (w workload) requests() int { return (w.series + w.perPost - 1) / w.perPost }

// body is one request, ready to be sent.
type body struct {
	data    []byte // snappy
	samples int
}

// rounds holds the requests of each round; the k-th of one round has the same
// series as the k-th of the next, but for churn.
type rounds [][]body

const stepMillis = 15_000

// generate makes all requests beforehand, so that sending them costs next to
// nothing beside the servers. The same workload gives the same bytes but for
// the times, which end at now, as some servers refuse old samples.
func generate(w workload, nowMillis int64) rounds {
	out := make(rounds, w.rounds)
	for r := range out {
		out[r] = make([]body, w.requests())
	}
	first := nowMillis - int64(w.rounds)*stepMillis
	var g errgroup.Group
	g.SetLimit(runtime.GOMAXPROCS(0))
	for k := range w.requests() {
		g.Go(func() error {
			from := k * w.perPost
			to := min(from+w.perPost, w.series)
			labels := make([][]byte, to-from)
			values := make([]float64, to-from)
			random := rand.New(rand.NewPCG(1, uint64(k)))
			for i := range labels {
				labels[i], values[i] = labelsOf(from+i, 0), random.Float64()*100
			}
			var raw []byte
			for r := range w.rounds {
				raw = raw[:0]
				for i := range labels {
					// Another tenth of the series each round.
					if r > 0 && w.churn > 0 && (i+r*w.churn)%100 < w.churn {
						labels[i] = labelsOf(from+i, r)
					}
					values[i] = min(100, max(0, values[i]+random.NormFloat64()))
					raw = appendSeries(raw, labels[i], math.Floor(values[i]), first+int64(r)*stepMillis)
				}
				out[r][k] = body{data: s2.EncodeSnappy(nil, raw), samples: len(labels)}
			}
			return nil
		})
	}
	_ = g.Wait() // none fails
	return out
}

// appendSeries appends a series with one sample to a WriteRequest.
func appendSeries(b, labels []byte, value float64, millis int64) []byte {
	sample := make([]byte, 0, 32)
	sample = protowire.AppendTag(sample, 1, protowire.Fixed64Type)
	sample = binary.LittleEndian.AppendUint64(sample, math.Float64bits(value))
	sample = protowire.AppendTag(sample, 2, protowire.VarintType)
	sample = protowire.AppendVarint(sample, uint64(millis))
	b = protowire.AppendTag(b, 1, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(len(labels)+2+len(sample)))
	b = append(b, labels...)
	b = protowire.AppendTag(b, 2, protowire.BytesType)
	return protowire.AppendBytes(b, sample)
}

var (
	metrics = []string{"usage_user", "usage_system", "usage_idle", "usage_nice", "usage_iowait", "usage_irq", "usage_softirq", "usage_steal", "usage_guest", "usage_guest_nice"}
	regions = []string{"us-east-1", "us-west-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "sa-east-1"}
	systems = []string{"Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"}
	archs   = []string{"x64", "x86"}
	teams   = []string{"SF", "NYC", "LON", "CHI"}
	stages  = []string{"production", "staging", "test"}
)

// labelsOf encodes the labels of the i-th series of TSBS' cpu-only data as it
// comes from exporters: ten metrics a host, twelve labels beside the name.
// Series of another generation are those of other hosts.
func labelsOf(i, generation int) []byte {
	host := i / len(metrics)
	r := rand.New(rand.NewPCG(2, uint64(host)))
	pick := func(list []string) string { return list[r.IntN(len(list))] }
	region := pick(regions)
	name := "host_" + strconv.Itoa(host)
	if generation > 0 {
		name += "-" + strconv.Itoa(generation)
	}
	return encodeLabels(
		"__name__", "cpu_"+metrics[i%len(metrics)],
		"arch", pick(archs),
		"datacenter", region+string(rune('a'+r.IntN(3))),
		"hostname", name,
		"instance", fmt.Sprintf("10.%d.%d.%d:9100", host>>16, host>>8&255, host&255),
		"job", "cpu",
		"os", pick(systems),
		"rack", strconv.Itoa(r.IntN(100)),
		"region", region,
		"service", strconv.Itoa(r.IntN(20)),
		"service_environment", pick(stages),
		"service_version", strconv.Itoa(r.IntN(2)),
		"team", pick(teams),
	)
}

// encodeLabels takes names, ascending, and values in turn.
func encodeLabels(pairs ...string) []byte {
	var out, label []byte
	for i := 0; i < len(pairs); i += 2 {
		label = protowire.AppendTag(label[:0], 1, protowire.BytesType)
		label = protowire.AppendString(label, pairs[i])
		label = protowire.AppendTag(label, 2, protowire.BytesType)
		label = protowire.AppendString(label, pairs[i+1])
		out = protowire.AppendTag(out, 1, protowire.BytesType)
		out = protowire.AppendBytes(out, label)
	}
	return out
}
