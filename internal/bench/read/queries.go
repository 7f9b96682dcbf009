package main

import (
	"fmt"
	"strings"
	"time"
)

// An hour of the live data, after what rate() needs before it.
func hour(q query) query {
	q.Start, q.End = epoch.Add(liveSpan-time.Hour), epoch.Add(liveSpan)
	return q
}

// liveQueries are those of the issue on a million series.
func (b *bench) liveQueries() []query {
	pod := podName(123_456 % max(20, 200_000/b.scale))
	return []query{
		hour(query{Name: "one-series", Exprs: []string{`requests_total{pod="` + pod + `"}`}, Step: 15 * time.Second}),
		hour(query{Name: "20k-series", Exprs: []string{`inflight_requests`}, Step: time.Minute}),
		hour(query{Name: "sum-rate-200k", Exprs: []string{`sum by (region) (rate(requests_total[5m]))`}, Step: 15 * time.Second}),
		hour(query{Name: "histogram-quantile-100k", Exprs: []string{`histogram_quantile(0.99, sum by (le, service) (rate(request_duration_seconds_bucket[5m])))`}, Step: time.Minute}),
	}
}

// headQueries are asked of what nobody has flushed.
func (b *bench) headQueries() []query {
	pod := podName(123_456 % max(20, 980_000/b.scale))
	return []query{
		hour(query{Name: "one-series", Exprs: []string{`build_info{pod="` + pod + `"}`}, Step: 15 * time.Second}),
		hour(query{Name: "20k-series", Exprs: []string{`inflight_requests`}, Step: time.Minute}),
		hour(query{Name: "values-service", Label: "service"}),
	}
}

// fortnight is the part of the long data in which all series are.
func fortnight(q query) query {
	q.Start, q.End = epoch.Add((longDays-indexDays)*day), epoch.Add(longDays*day)
	return q
}

// labelQueries list label values over the fortnight.
func labelQueries() []query {
	return []query{
		fortnight(query{Name: "values-model", Label: "model"}),
		fortnight(query{Name: "values-metric", Label: "__name__"}),
		fortnight(query{Name: "values-device-limit-1000", Label: "device", Limit: 1000}),
	}
}

// monthOfOne is one series over all of the long data.
func (b *bench) monthOfOne() query {
	return query{
		Name: "one-series-30d", Exprs: []string{`temperature{sensor="` + sensorName(12_345%max(20, 20_000/b.scale)) + `"}`},
		Start: epoch, End: epoch.Add(longDays * day), Step: time.Hour,
	}
}

// tsbs are TSBS' queries of the cpu-only data, as SQL on our table, where a
// row is one value, and as PromQL. PromQL's are empty where it cannot say the
// same.
func (b *bench) tsbs() []query {
	end := epoch.Add(cpuHours * time.Hour)
	last := func(n int) time.Time { return end.Add(-time.Duration(n) * time.Hour) }
	names := make([]string, 8)
	for i := range names {
		names[i] = hostName((i*487 + 11) % hosts(b.scale))
	}
	one, eight := names[:1], names
	where := func(metricsN, hours int, hosts []string) string {
		text := fmt.Sprintf("timestamp >= '%s' AND timestamp < '%s' AND metric_name IN (%s)", sqlTime(last(hours)), sqlTime(end), quoted(metrics[:metricsN], "cpu_"))
		if hosts != nil {
			text += " AND hostname IN (" + quoted(hosts, "") + ")"
		}
		return text
	}
	each := func(n int, format string) (exprs []string) {
		for _, m := range metrics[:n] {
			exprs = append(exprs, fmt.Sprintf(format, "cpu_"+m))
		}
		return exprs
	}
	of := func(hosts []string) string { return `{hostname=~"` + strings.Join(hosts, "|") + `"}` }
	maxBy := func(name string, n, hours int, hosts []string, unit string, step time.Duration) query {
		window := map[time.Duration]string{time.Minute: "1m", time.Hour: "1h"}[step]
		return query{
			Name: name, Start: last(hours), End: end, Step: step,
			SQL:   fmt.Sprintf("SELECT date_trunc('%s', timestamp) AS t, metric_name, max(value) FROM metrics WHERE %s GROUP BY ALL ORDER BY ALL", unit, where(n, hours, hosts)),
			Exprs: each(n, "max(max_over_time(%s"+of(hosts)+"["+window+"]))"),
		}
	}
	avgBy := func(name string, n int) query {
		return query{
			Name: name, Start: last(cpuHours), End: end, Step: time.Hour,
			SQL:   "SELECT date_trunc('hour', timestamp) AS t, hostname, metric_name, avg(value) FROM metrics WHERE " + where(n, cpuHours, nil) + " GROUP BY ALL ORDER BY ALL",
			Exprs: each(n, "avg by (hostname) (avg_over_time(%s[1h]))"),
		}
	}
	return []query{
		maxBy("single-groupby-1-1-1", 1, 1, one, "minute", time.Minute),
		maxBy("single-groupby-5-8-1", 5, 1, eight, "minute", time.Minute),
		maxBy("cpu-max-all-8", 10, 8, eight, "hour", time.Hour),
		avgBy("double-groupby-1", 1),
		avgBy("double-groupby-5", 5),
		avgBy("double-groupby-all", 10),
		{
			Name: "high-cpu-all", Start: last(cpuHours), End: end, Step: time.Minute,
			SQL:   "SELECT timestamp, hostname, value FROM metrics WHERE value > 90 AND " + where(1, cpuHours, nil),
			Exprs: []string{"cpu_usage_user > 90"},
		},
		{
			Name: "lastpoint", End: end,
			SQL:   "SELECT hostname, metric_name, max(timestamp), arg_max(value, timestamp) FROM metrics GROUP BY ALL",
			Exprs: each(len(metrics), "last_over_time(%s[12h])"),
		},
		{
			Name: "groupby-orderby-limit", Start: end.Add(-5 * time.Minute), End: end, Step: time.Minute,
			SQL: fmt.Sprintf("SELECT date_trunc('minute', timestamp) AS t, max(value) FROM metrics WHERE metric_name = 'cpu_usage_user' AND timestamp < '%s' GROUP BY t ORDER BY t DESC LIMIT 5", sqlTime(end)),
			// PromQL has no such limit; this is what one would ask in its place.
			Exprs: []string{"max(max_over_time(cpu_usage_user[1m]))"},
		},
	}
}

func sqlTime(t time.Time) string { return t.UTC().Format("2006-01-02 15:04:05+00") }

func quoted(list []string, prefix string) string {
	return "'" + prefix + strings.Join(list, "', '"+prefix) + "'"
}
