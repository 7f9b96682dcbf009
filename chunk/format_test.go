package chunk

import (
	"os"
	"testing"
)

// TestFormat1: files from before this package laid pages down itself are read
// as they were. The fixtures are those of fixture, as arrow-go wrote them.
func TestFormat1(t *testing.T) {
	for name, opts := range map[string]Options{
		"format1-plain": {RowGroupRows: 12, PageRows: 5},
		"format1-split": {SplitValues: true},
	} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile("testdata/" + name + ".parquet")
			if err != nil {
				t.Fatal(err)
			}
			if err := Verify(data); err != nil {
				t.Fatal(err)
			}
			_, want := fixture(t, opts)
			got, err := read(data, everything)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(want, got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
