package writer

import "sync/atomic"

// Budget bounds the heads of several writers together, beside the bound that
// each has. A writer whose head holds nothing may take one batch whatever the
// others hold, so that none is starved; the sum may be above the bound by that.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// NewBudget returns a budget of so many bytes, to be shared by Options.Budget.
func NewBudget(bytes int64) *Budget { return &Budget{limit: bytes} }

// Used is what all heads take now, in bytes.
func (b *Budget) Used() int64 { return b.used.Load() }

// account notes that the head has grown, or shrunk, and returns its size.
// insertMu is held.
func (w *Writer) account(delta int64) int64 {
	if w.opts.Budget != nil && !w.released {
		w.opts.Budget.used.Add(delta)
	}
	return w.headBytes.Add(delta)
}

// release gives back what the head takes of the budget: the writer accepts
// nothing more, and who gives it up with a head that it cannot flush must not
// take room from the others for ever.
func (w *Writer) release() {
	w.insertMu.Lock()
	defer w.insertMu.Unlock()
	if w.opts.Budget != nil && !w.released {
		w.opts.Budget.used.Add(-w.headBytes.Load())
	}
	w.released = true
}

// full reports whether a head that holds so much, what is on its way to it
// included, has no room for more.
func (w *Writer) full(held, more int64) bool {
	if held == 0 {
		return false // else a large batch could never be written
	}
	b := w.opts.Budget
	return held+more > w.opts.MaxHeadBytes || b != nil && b.used.Load()+more > b.limit
}
