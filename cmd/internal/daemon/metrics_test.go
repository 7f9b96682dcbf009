package daemon

import (
	"testing"

	"cardinalsin"
	"cardinalsin/storage/cache"
)

// TestDamageOfCacheIsCounted in bytes.
func TestDamageOfCacheIsCounted(t *testing.T) {
	m := NewMetrics()
	var o cardinalsin.Options
	m.observeStore(&o)
	for _, n := range []int64{100, 65536} {
		o.CacheEvents.Damaged(cache.Damage{Span: cache.Span{Length: n}})
	}
	families, err := m.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "cardinal_cache_damaged_bytes_total" {
			if got := f.GetMetric()[0].GetCounter().GetValue(); got != 65636 {
				t.Errorf("counted %v", got)
			}
			return
		}
	}
	t.Error("no such metric")
}
