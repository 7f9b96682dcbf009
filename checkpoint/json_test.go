package checkpoint

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"cardinalsin/action"
)

// manifestOf is a V2 checkpoint in JSON with n adds and as many removes.
func manifestOf(n int) []byte {
	var b bytes.Buffer
	b.WriteString(`{"checkpointMetadata":{"version":10}}{"protocol":{"minReaderVersion":1,"minWriterVersion":2}}` + "\n" +
		`{"metaData":{"id":"x","schemaString":"{}"}}` + "\n" + `{"future":{"add":{"path":"no add"}}}` + "\n")
	for i := range n {
		fmt.Fprintf(&b, `{"add":{"path":"a%d","size":%d}}`+"\n"+`{"remove":{"path":"r%d"}}`+"\n", i, i, i)
	}
	return b.Bytes()
}

// Every action arrives once, in whatever number of batches.
func TestReadJSON(t *testing.T) {
	for _, n := range []int{0, 1, batchRows/2 - 1, batchRows / 2, 2*batchRows + 7} {
		store, ref := put(t, manifestOf(n))
		ref.Kind = UUIDJSON
		adds, removes, size := map[string]bool{}, map[string]bool{}, int64(0)
		if err := Read(t.Context(), store, logDir, ref, Sink{
			Add:    func(a *action.Add) error { adds[a.Path] = true; size += a.Size; return nil },
			Remove: func(r *action.Remove) error { removes[r.Path] = true; return nil },
		}); err != nil {
			t.Fatal(err)
		}
		if len(adds) != n || len(removes) != n || size != int64(n)*int64(n-1)/2 {
			t.Errorf("%d of each: got %d adds, %d removes, size %d", n, len(adds), len(removes), size)
		}
		if err := Read(t.Context(), store, logDir, ref, Sink{}); err != nil {
			t.Errorf("nobody wants anything: %v", err)
		}
	}
}

// A sink's error comes back as it is; damage is ErrCorrupt.
func TestReadJSONErrors(t *testing.T) {
	stop := errors.New("enough")
	for _, at := range []int{1, 2*batchRows - 1} {
		store, ref := put(t, manifestOf(batchRows))
		ref.Kind = UUIDJSON
		n := 0
		err := Read(t.Context(), store, logDir, ref, Sink{Add: func(*action.Add) error {
			if n++; n >= at/2 {
				return stop
			}
			return nil
		}})
		if err != stop { //nolint:errorlint // the very error is promised
			t.Errorf("at %d: got %v", at, err)
		}
	}
	for _, line := range []string{`{"sidecar":7}`, `{"sidecar":{"path":7}}`, `{"checkpointMetadata":{"version":"x"}}`, `{"add":{"path":"p"},"remove":{"path":"q"}}`, `{"add":`, `x`} {
		store, ref := put(t, append(manifestOf(2), line...))
		ref.Kind = UUIDJSON
		if err := Read(t.Context(), store, logDir, ref, Sink{}); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %v", line, err)
		}
	}
}
