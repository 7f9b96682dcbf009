package chunk

import (
	"os"
	"testing"
)

// TestFormat1: files from before this package laid pages down itself are read
// as they were. The files hold fixtureRows, as arrow-go wrote them.
func TestFormat1(t *testing.T) {
	for _, name := range []string{"format1-plain", "format1-split"} {
		t.Run(name, func(t *testing.T) {
			data, err := os.ReadFile("testdata/" + name + ".parquet")
			if err != nil {
				t.Fatal(err)
			}
			if err := Verify(data); err != nil {
				t.Fatal(err)
			}
			got, err := read(data, everything)
			if err != nil {
				t.Fatal(err)
			}
			if d := diff(fixtureRows(), got); d != "" {
				t.Errorf("-want +got:\n%s", d)
			}
		})
	}
}
