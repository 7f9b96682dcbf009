package checkpoint

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"cardinalsin/action"
	"cardinalsin/storage"
)

// Kind tells how a checkpoint is named (PROTOCOL.md, "Checkpoint Naming
// Scheme").
type Kind uint8

// Kinds of checkpoints, in the order in which FromListing prefers them.
const (
	// Classic is one object, <version>.checkpoint.parquet. Its content may
	// follow the V1 or the V2 specification.
	Classic Kind = iota
	// UUIDParquet is <version>.checkpoint.<uuid>.parquet, V2.
	UUIDParquet
	// UUIDJSON is <version>.checkpoint.<uuid>.json, V2.
	UUIDJSON
	// MultiPart is <version>.checkpoint.<part>.<parts>.parquet, V1.
	MultiPart
)

// String names the kind.
func (k Kind) String() string {
	switch k {
	case Classic:
		return "classic"
	case UUIDParquet:
		return "v2-parquet"
	case UUIDJSON:
		return "v2-json"
	case MultiPart:
		return "multi-part"
	}
	return "kind " + strconv.Itoa(int(k))
}

// Ref names one complete checkpoint, sidecars aside.
type Ref struct {
	Version action.Version
	Kind    Kind
	// Keys are its objects, in order of the parts.
	Keys []string
	// Sizes are the objects' sizes in bytes, in the order of Keys. They may
	// be left out, at the price of reading each object whole.
	Sizes []int64
}

// SizeInBytes is the sum of Sizes.
func (r Ref) SizeInBytes() int64 {
	var n int64
	for _, s := range r.Sizes {
		n += s
	}
	return n
}

// ClassicKey is the key of the classic checkpoint of a version.
func ClassicKey(logDir string, v action.Version) string {
	return path.Join(logDir, v.String()+".checkpoint.parquet")
}

// FromListing picks the complete checkpoints out of the objects of a log's
// listing, newest version first. Empty objects, multi-part checkpoints that
// lack a part, and anything else than the exact names are left out.
func FromListing(objs []storage.ObjectInfo) []Ref {
	type set struct {
		version action.Version
		parts   int64
	}
	var refs []Ref
	sets := map[set]map[int64]storage.ObjectInfo{}
	for _, o := range objs {
		n, ok := parseName(o.Key)
		if !ok || o.Size <= 0 {
			continue
		}
		if n.kind != MultiPart {
			refs = append(refs, Ref{Version: n.version, Kind: n.kind, Keys: []string{o.Key}, Sizes: []int64{o.Size}})
			continue
		}
		s := set{n.version, n.parts}
		if sets[s] == nil {
			sets[s] = map[int64]storage.ObjectInfo{}
		}
		sets[s][n.part] = o
	}
	for s, parts := range sets {
		if int64(len(parts)) != s.parts {
			continue
		}
		r := Ref{Version: s.version, Kind: MultiPart}
		for i := range s.parts {
			r.Keys = append(r.Keys, parts[i+1].Key)
			r.Sizes = append(r.Sizes, parts[i+1].Size)
		}
		refs = append(refs, r)
	}
	slices.SortFunc(refs, func(a, b Ref) int {
		return cmp.Or(cmp.Compare(b.Version, a.Version), cmp.Compare(a.Kind, b.Kind), strings.Compare(a.Keys[0], b.Keys[0]))
	})
	return refs
}

type name struct {
	version     action.Version
	kind        Kind
	part, parts int64
}

// parseName takes an object's name apart; ok is false for what is no
// checkpoint or does not lie in the log directory itself.
func parseName(key string) (n name, ok bool) {
	dir, base := path.Split(key)
	if d := path.Base(dir); d == sidecarDir || d == "_staged_commits" {
		return n, false
	}
	f := strings.Split(base, ".")
	if len(f) < 3 || f[1] != "checkpoint" {
		return n, false
	}
	if n.version, ok = action.ParseVersion(f[0]); !ok {
		return n, false
	}
	ext := f[len(f)-1]
	switch mid := f[2 : len(f)-1]; {
	case len(mid) == 0 && ext == "parquet":
		n.kind = Classic
		return n, true
	case len(mid) == 1 && isUUID(mid[0]) && ext == "parquet":
		n.kind = UUIDParquet
		return n, true
	case len(mid) == 1 && isUUID(mid[0]) && ext == "json":
		n.kind = UUIDJSON
		return n, true
	case len(mid) == 2 && ext == "parquet":
		n.kind = MultiPart
		var ok1, ok2 bool
		n.part, ok1 = parsePart(mid[0])
		n.parts, ok2 = parsePart(mid[1])
		return n, ok1 && ok2 && 1 <= n.part && n.part <= n.parts
	}
	return n, false
}

// parsePart parses exactly ten digits.
func parsePart(s string) (int64, bool) {
	if len(s) != 10 {
		return 0, false
	}
	var v int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		v = v*10 + int64(c-'0')
	}
	return v, true
}

func isUUID(s string) bool {
	if len(s) != 36 {
		return false
	}
	for i, c := range []byte(s) {
		switch i {
		case 8, 13, 18, 23:
			if c != '-' {
				return false
			}
		default:
			if (c < '0' || c > '9') && (c < 'a' || c > 'f') && (c < 'A' || c > 'F') {
				return false
			}
		}
	}
	return true
}

// sidecarDir holds the sidecars of V2 checkpoints, below the log directory.
const sidecarDir = "_sidecars"

// sidecarKey resolves the path of a sidecar action: a file name, or any URI
// that ends in one, since sidecars lie in one directory (PROTOCOL.md,
// "Sidecar File Information").
func sidecarKey(logDir, p string) (string, error) {
	d, err := action.DecodePath(p[strings.LastIndexByte(p, '/')+1:])
	if err != nil {
		return "", err
	}
	key := path.Join(logDir, sidecarDir) + "/" + d
	if err := storage.ValidateKey(key); err != nil || strings.ContainsRune(d, '/') {
		return "", fmt.Errorf("path %.200q is no file name", p)
	}
	return key, nil
}
