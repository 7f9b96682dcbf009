package main

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// shop is a page of metrics of every kind, which change with each scrape.
type shop struct {
	page http.Handler

	mu       sync.Mutex // guards what follows
	scrapes  int
	requests *prometheus.CounterVec
	stock    *prometheus.GaugeVec
	classic  *prometheus.HistogramVec
	native   *prometheus.HistogramVec
	sizes    prometheus.Summary
}

func newShop() http.Handler {
	r := prometheus.NewRegistry()
	s := &shop{
		page:     promhttp.HandlerFor(r, promhttp.HandlerOpts{EnableOpenMetrics: true}),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "shop_requests_total", Help: "Requests."}, []string{"method", "code", "path"}),
		stock:    prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "shop_stock", Help: "Goods, some of \"them\" odd.\nIn pieces."}, []string{"good"}),
		classic:  prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shop_request_duration_seconds", Help: "Durations.", Buckets: prometheus.ExponentialBuckets(0.01, 2, 8)}, []string{"method"}),
		native:   prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "shop_native_duration_seconds", Help: "The same.", NativeHistogramBucketFactor: 1.1}, []string{"method"}),
		sizes:    prometheus.NewSummary(prometheus.SummaryOpts{Name: "shop_size_bytes", Help: "Sizes.", Objectives: map[float64]float64{0.5: 0.05, 0.9: 0.01}}),
	}
	r.MustRegister(s.requests, s.stock, s.classic, s.native, s.sizes)
	return s
}

// ServeHTTP implements http.Handler.
func (s *shop) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.scrapes++
	for i, method := range []string{"GET", "POST", "PUT"} {
		for _, code := range []string{"200", "404", "500"} {
			for path := range 10 {
				s.requests.WithLabelValues(method, code, "/p/"+strconv.Itoa(path)).Add(float64(i + path + s.scrapes%7))
			}
		}
		for k := range 5 {
			took := 0.005 * float64(1+k*k) * float64(1+s.scrapes%5)
			exemplar := prometheus.Labels{"trace_id": strconv.Itoa(s.scrapes*100 + k)}
			s.classic.WithLabelValues(method).(prometheus.ExemplarObserver).ObserveWithExemplar(took, exemplar)
			s.native.WithLabelValues(method).(prometheus.ExemplarObserver).ObserveWithExemplar(took, exemplar)
		}
	}
	for i, good := range []string{"apple", "bánh mì", `qu"ote\`, "new\nline", ""} {
		s.stock.WithLabelValues(good).Set(math.Sin(float64(s.scrapes+i)) * 1e3)
	}
	s.stock.WithLabelValues("nothing").Set(math.NaN())
	s.stock.WithLabelValues("endless").Set(math.Inf(1))
	if s.scrapes%20 < 10 { // it goes stale, and comes again
		s.stock.WithLabelValues("seasonal").Set(float64(s.scrapes))
	} else {
		s.stock.DeleteLabelValues("seasonal")
	}
	s.sizes.Observe(float64(time.Now().UnixNano() % 1000))
	s.page.ServeHTTP(w, r)
}
