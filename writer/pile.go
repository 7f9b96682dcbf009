package writer

import (
	"strings"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/txlog"
)

// pile counts the uncompacted files of each partition. It hears of the files
// that come, and looks up now and then which of them are still there; so what
// it costs follows the changes, not the table.
type pile struct {
	partitions map[string]*stack
	deepest    int // most files of one partition
}

type stack struct {
	files map[action.Key]struct{} // live when they were last looked up
	next  int                     // number of files at which to look them up
}

// minLookup is the number of files below which nothing is looked up.
const minLookup = 16

func newPile() *pile { return &pile{partitions: map[string]*stack{}} }

// add notes a file that came, if it is an uncompacted one.
func (p *pile) add(a *action.Add) {
	if !isLevelZero(string(a.Tags)) {
		return
	}
	date, _ := a.PartitionValues.Get(chunk.ColumnDate)
	shard, _ := a.PartitionValues.Get(chunk.ColumnShard)
	s := p.partitions[date+"/"+shard]
	if s == nil {
		s = &stack{files: map[action.Key]struct{}{}, next: minLookup}
		p.partitions[date+"/"+shard] = s
	}
	s.files[a.Key()] = struct{}{}
}

// settle brings the counts up to a version, in which all files are that were
// added since the last call. Of partitions with fewer files than exact the
// count may be up to twice too high.
func (p *pile) settle(snap *txlog.Snapshot, exact int) {
	p.deepest = 0
	for name, s := range p.partitions {
		if n := len(s.files); n >= s.next || n >= exact {
			for k := range s.files {
				if _, live := snap.File(k); !live {
					delete(s.files, k)
				}
			}
			s.next = max(minLookup, 2*len(s.files))
		}
		if len(s.files) == 0 {
			delete(p.partitions, name)
		}
		p.deepest = max(p.deepest, len(s.files))
	}
}

// isLevelZero reads one tag of a file: to parse all tags of a million files
// takes seconds.
func isLevelZero(tags string) bool {
	_, rest, ok := strings.Cut(tags, `"`+chunk.TagLevel+`"`)
	return ok && strings.HasPrefix(strings.TrimLeft(rest, ": \t\r\n"), `"0"`)
}
