package importer

import (
	"github.com/prometheus/prometheus/model/labels"

	"cardinalsin/series"
)

// rows collects the samples of one part by series, in the order in which they
// came.
type rows struct {
	batch  series.Batch
	byHash map[uint64][]int
	count  int
}

func (r *rows) reset() {
	r.batch, r.count = nil, 0
	if r.byHash == nil {
		r.byHash = map[uint64][]int{}
	}
	clear(r.byHash)
}

// find returns the place of a series in the batch, which it adds if need be.
func (r *rows) find(l series.Labels) int {
	h := l.Hash()
	for _, i := range r.byHash[h] {
		if labels.Equal(r.batch[i].Labels, l) {
			return i
		}
	}
	r.batch = append(r.batch, series.Series{Labels: l})
	i := len(r.batch) - 1
	r.byHash[h] = append(r.byHash[h], i)
	return i
}

// add appends a sample to the series at that place.
func (r *rows) add(i int, s series.Sample) {
	r.batch[i].Samples = append(r.batch[i].Samples, s)
	r.count++
}
