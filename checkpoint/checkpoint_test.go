package checkpoint

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"cardinalsin/storage/mem"
)

func TestRoundTrip(t *testing.T) {
	for _, n := range []int{0, 1, 7, 2500} {
		store := mem.New(mem.Options{})
		in := sample(n)
		info, err := Write(t.Context(), store, logDir, in.state(), Options{RowGroupActions: 700})
		if err != nil {
			t.Fatal(err)
		}
		got, err := readTable(t.Context(), store, info.Ref)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(stored(in), got); diff != "" {
			t.Fatalf("%d files: -want +got\n%s", n, diff)
		}
	}
}
