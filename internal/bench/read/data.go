package main

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"runtime"
	"strconv"
	"time"

	"github.com/prometheus/prometheus/model/labels"
	"golang.org/x/sync/errgroup"
)

// epoch is when the data begin: midnight, long enough ago for every server.
var epoch = time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)

// family is one metric of a dataset, or several that have series in turns.
type family struct {
	series int
	// rounds samples of each series, step apart, the first at first after the
	// epoch.
	rounds      int
	first, step time.Duration
	labels      func(i int) labels.Labels
	// values fills in the samples of a series; r is the series' own.
	values func(i int, r *rand.Rand, out []float64)
}

// dataset is what one table holds; its series come in the order of families.
type dataset struct {
	name     string
	families []family
}

func (d dataset) samples() (n int) {
	for _, f := range d.families {
		n += f.series * f.rounds
	}
	return n
}

func (d dataset) series() (n int) {
	for _, f := range d.families {
		n += f.series
	}
	return n
}

// span is the time from the first sample to the last.
func (d dataset) span() time.Duration {
	first, last := time.Duration(math.MaxInt64), time.Duration(0)
	for _, f := range d.families {
		first, last = min(first, f.first), max(last, f.first+time.Duration(f.rounds-1)*f.step)
	}
	return last - first
}

// part is some series of a dataset with all of their samples.
type part struct {
	labels []labels.Labels
	times  [][]int64 // ms since the epoch of Unix; families share theirs
	values [][]float64
}

func (p *part) samples() (n int) {
	for _, v := range p.values {
		n += len(v)
	}
	return n
}

// partSamples is about how many samples a part has.
const partSamples = 50_000

// each makes the dataset part by part, on all cores, and calls f with each,
// concurrently and in any order. The same dataset has the same samples always.
func (d dataset) each(ctx context.Context, f func(context.Context, *part) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(runtime.GOMAXPROCS(0))
	for k, fam := range d.families {
		times := make([]int64, fam.rounds)
		for r := range times {
			times[r] = epoch.Add(fam.first + time.Duration(r)*fam.step).UnixMilli()
		}
		size := max(1, min(5000, partSamples/fam.rounds))
		for from := 0; from < fam.series && ctx.Err() == nil; from += size {
			g.Go(func() error { return f(ctx, fam.part(k, from, min(from+size, fam.series), times)) })
		}
	}
	return g.Wait()
}

func (f *family) part(k, from, to int, times []int64) *part {
	n := to - from
	p := &part{labels: make([]labels.Labels, n), times: make([][]int64, n), values: make([][]float64, n)}
	all := make([]float64, n*f.rounds)
	for j := range n {
		i := from + j
		p.labels[j], p.times[j], p.values[j] = f.labels(i), times, all[j*f.rounds:(j+1)*f.rounds:(j+1)*f.rounds]
		f.values(i, rand.New(rand.NewPCG(uint64(k), uint64(i))), p.values[j])
	}
	return p
}

// counter counts events that come at random, at a mean rate of its own: up to
// 500 in a step.
func counter(_ int, r *rand.Rand, out []float64) {
	mean, v := 5+495*r.Float64()*r.Float64(), 0.0
	for k := range out {
		v += max(0, math.Round(mean+math.Sqrt(mean)*r.NormFloat64()))
		out[k] = v
	}
}

// gauge walks at random between 0 and 100, as TSBS' cpu values do.
func gauge(_ int, r *rand.Rand, out []float64) {
	v := r.Float64() * 100
	for k := range out {
		v = min(100, max(0, v+r.NormFloat64()))
		out[k] = math.Floor(v)
	}
}

func ones(_ int, _ *rand.Rand, out []float64) {
	for k := range out {
		out[k] = 1
	}
}

var (
	regions = []string{"us-east-1", "us-west-1", "us-west-2", "eu-west-1", "eu-central-1", "ap-southeast-1", "ap-southeast-2", "ap-northeast-1", "sa-east-1"}
	bounds  = []string{"0.005", "0.01", "0.025", "0.05", "0.1", "0.25", "0.5", "1", "5", "+Inf"}
	metrics = []string{"usage_user", "usage_system", "usage_idle", "usage_nice", "usage_iowait", "usage_irq", "usage_softirq", "usage_steal", "usage_guest", "usage_guest_nice"}
	systems = []string{"Ubuntu16.10", "Ubuntu16.04LTS", "Ubuntu15.10"}
	teams   = []string{"SF", "NYC", "LON", "CHI"}
	stages  = []string{"production", "staging", "test"}
)

// podLabels are those of a service's pod; more are appended, in pairs.
func podLabels(metric string, i int, more ...string) labels.Labels {
	region := regions[i%len(regions)]
	return labels.FromStrings(append([]string{
		labels.MetricName, metric,
		"cluster", region + "-" + strconv.Itoa(i%3),
		"env", stages[i%len(stages)],
		"instance", fmt.Sprintf("10.%d.%d.%d:8080", i>>16&255, i>>8&255, i&255),
		"job", "pods",
		"namespace", "ns-" + strconv.Itoa(i%50),
		"node", fmt.Sprintf("node-%04d", i%1500),
		"pod", podName(i),
		"region", region,
		"service", "service-" + strconv.Itoa(i%200),
	}, more...)...)
}

func podName(i int) string { return fmt.Sprintf("pod-%07d", i) }

// liveSpan is how long the live data last: an hour, and what rate() needs
// before it.
const liveSpan = 65 * time.Minute

// live is an hour of a million series at 15 s, all but a third of them with
// two samples.
func live(scale int) dataset {
	const step = 15 * time.Second
	const rounds = int(liveSpan/step) + 1
	scaled := func(n int) int { return max(20, n/scale) }
	pods := func(metric string) func(int) labels.Labels {
		return func(i int) labels.Labels { return podLabels(metric, i) }
	}
	return dataset{"live", []family{
		{series: scaled(200_000), rounds: rounds, step: step, labels: pods("requests_total"), values: counter},
		{series: scaled(20_000), rounds: rounds, step: step, labels: pods("inflight_requests"), values: gauge},
		{
			series: scaled(100_000), rounds: rounds, step: step, values: bucket,
			labels: func(i int) labels.Labels {
				return podLabels("request_duration_seconds_bucket", i/len(bounds), "le", bounds[i%len(bounds)])
			},
		},
		{series: scaled(680_000), rounds: 2, first: liveSpan - step, step: step, labels: pods("build_info"), values: ones},
	}}
}

// bucket is a counter; those of one histogram grow with the bound.
func bucket(i int, _ *rand.Rand, out []float64) {
	r := rand.New(rand.NewPCG(9, uint64(i/len(bounds))))
	share := float64(i%len(bounds)+1) / float64(len(bounds))
	v := 0.0
	for k := range out {
		v += math.Floor(float64(r.IntN(100)) * share)
		out[k] = v
	}
}

// headData is a million series as a writer's head holds them.
func headData(scale int) dataset {
	d := live(scale)
	d.name = "head"
	d.families = []family{d.families[1], d.families[3]}
	d.families[1].series = max(20, 980_000/scale)
	return d
}

// longDays is how many days the long data last; all series have samples on the
// last indexDays of them.
const (
	longDays  = 30
	indexDays = 14
	day       = 24 * time.Hour
)

// long is a month: 20,000 sensors that report every hour, and for the last
// fortnight a million devices that report once a day.
func long(scale int) dataset {
	return dataset{"long", []family{
		{
			series: max(20, 20_000/scale), rounds: longDays * 24, step: time.Hour, values: gauge,
			labels: func(i int) labels.Labels {
				return labels.FromStrings(labels.MetricName, "temperature", "region", regions[i%len(regions)], "sensor", sensorName(i), "site", "site-"+strconv.Itoa(i%200))
			},
		},
		{
			series: max(20, 1_000_000/scale), rounds: indexDays, first: (longDays-indexDays)*day + day/2, step: day, values: ones,
			labels: func(i int) labels.Labels {
				return labels.FromStrings(labels.MetricName, "device_info", "device", fmt.Sprintf("dev-%07d", i), "firmware", "v"+strconv.Itoa(i%50),
					"model", "model-"+strconv.Itoa(i%1000), "region", regions[i%len(regions)], "site", "site-"+strconv.Itoa(i%200))
			},
		},
	}}
}

func sensorName(i int) string { return fmt.Sprintf("sensor-%06d", i) }

// cpuHours is how long the TSBS data last, cpuStep how far apart they are:
// a sixth of TSBS' own density.
const (
	cpuHours = 12
	cpuStep  = time.Minute
)

// cpu is TSBS' cpu-only data at scale 4,000, as exporters have it: ten metrics
// a host, ten tags.
func cpu(scale int) dataset {
	return dataset{"cpu", []family{{
		series: hosts(scale) * len(metrics), rounds: cpuHours * int(time.Hour/cpuStep), step: cpuStep, values: gauge,
		labels: func(i int) labels.Labels {
			r := rand.New(rand.NewPCG(2, uint64(i/len(metrics))))
			pick := func(list []string) string { return list[r.IntN(len(list))] }
			region := pick(regions)
			return labels.FromStrings(
				labels.MetricName, "cpu_"+metrics[i%len(metrics)],
				"arch", pick([]string{"x64", "x86"}),
				"datacenter", region+string(rune('a'+r.IntN(3))),
				"hostname", hostName(i/len(metrics)),
				"os", pick(systems),
				"rack", strconv.Itoa(r.IntN(100)),
				"region", region,
				"service", strconv.Itoa(r.IntN(20)),
				"service_environment", pick(stages),
				"service_version", strconv.Itoa(r.IntN(2)),
				"team", pick(teams),
			)
		},
	}}}
}

func hosts(scale int) int { return max(20, 4000/scale) }

func hostName(i int) string { return "host_" + strconv.Itoa(i) }
