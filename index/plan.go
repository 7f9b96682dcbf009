package index

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"cardinalsin/action"
	"cardinalsin/chunk"
	"cardinalsin/series"
	"cardinalsin/txlog"
)

// Policy says when a job is due. The zero value is useful.
type Policy struct {
	// MinFiles is how many compacted files without an index make a job while
	// their day goes on; of flushed ones, which compaction soon replaces, it
	// takes 16 times as many. Default 4.
	MinFiles int
	// MaxFiles bounds the files of a segment, and so what a job holds open.
	// Default 1024.
	MaxFiles int
	// MaxSegments is how many segments a day may have before they are made
	// one; parts count once. Default 8.
	MaxSegments int
	// Settle is how long nothing has come for a day that is over until the
	// little that came late gets a job. Default 10 minutes.
	Settle time.Duration
	// Eager makes a job of any file without an index, whenever it came.
	Eager bool
	// Rebuild makes all segments anew.
	Rebuild bool
	// Damaged lists keys of segments that are of no use.
	Damaged map[string]bool
	// Now, by the store's clock, tells which days are over. Default: the
	// version's time.
	Now time.Time
}

// EnsureDefaults fills in what is unset.
func (p *Policy) EnsureDefaults() {
	if p.MinFiles <= 0 {
		p.MinFiles = 4
	}
	if p.MaxFiles <= 0 {
		p.MaxFiles = 1024
	}
	if p.MaxSegments <= 0 {
		p.MaxSegments = 8
	}
	if p.Settle <= 0 {
		p.Settle = 10 * time.Minute
	}
}

// Job makes one segment, and takes others away. Without files it only takes
// away.
type Job struct {
	Date series.Date
	// Files are to be indexed, in the order in which they were committed.
	Files []*action.Add
	// Replaces are the keys of the segments that the new one makes needless.
	Replaces []string
	// The segment is for the day's files that were committed after After and
	// up to Through, in ms.
	After, Through int64

	base *txlog.Snapshot
}

// day is what a version has of one date.
type day struct {
	date     series.Date
	files    []*action.Add
	segments []Segment
}

// Plan chooses the jobs that the policy asks for, oldest day first. It is pure:
// which files a segment covers follows from when they were committed. A file
// that came back by a restore makes more files than the segment was made for,
// and so a job. A table that is not ours gets none, and neither does one whose
// domain is damaged, unless Rebuild is set.
func Plan(snap *txlog.Snapshot, policy Policy) []Job {
	jobs, _ := plan(snap, policy)
	return jobs
}

// plan also tells after which time there will be a job though nothing happens,
// 0 for never.
func plan(snap *txlog.Snapshot, policy Policy) (jobs []Job, wait time.Duration) {
	policy.EnsureDefaults()
	if policy.Now.IsZero() {
		policy.Now = snap.Time()
	}
	if !slices.Contains(snap.Protocol().WriterFeatures, txlog.ExclusiveFeature) || !slices.Equal(snap.Metadata().PartitionColumns, chunk.PartitionColumns()) {
		return nil, 0
	}
	segments, err := Segments(snap)
	if err != nil && !policy.Rebuild {
		return nil, 0
	}
	for _, d := range days(snap, segments) {
		found, w := d.plan(snap, &policy)
		jobs = append(jobs, found...)
		if w > 0 && (wait == 0 || w < wait) {
			wait = w
		}
	}
	return jobs, wait
}

func days(snap *txlog.Snapshot, segments []Segment) []*day {
	byDate := map[series.Date]*day{}
	at := func(text string) *day {
		date, err := series.ParseDate(text)
		if err != nil {
			return nil
		}
		d := byDate[date]
		if d == nil {
			d = &day{date: date}
			byDate[date] = d
		}
		return d
	}
	for _, s := range segments {
		if d := at(s.Date); d != nil {
			d.segments = append(d.segments, s)
		}
	}
	for a := range snap.Files() {
		parts, err := a.PartitionValues.Map()
		if err != nil || parts[chunk.ColumnDate] == nil || a.DeletionVector != nil {
			continue
		}
		if d := at(*parts[chunk.ColumnDate]); d != nil {
			d.files = append(d.files, a)
		}
	}
	out := slices.Collect(maps.Values(byDate))
	slices.SortFunc(out, func(a, b *day) int { return cmp.Compare(a.date, b.date) })
	for _, d := range out {
		slices.SortFunc(d.files, func(a, b *action.Add) int {
			return cmp.Or(cmp.Compare(a.ModificationTime, b.ModificationTime), cmp.Compare(a.Path, b.Path))
		})
		slices.SortFunc(d.segments, func(a, b Segment) int { return cmp.Or(cmp.Compare(a.Through, b.Through), cmp.Compare(a.Key, b.Key)) })
	}
	return out
}

func (d *day) plan(snap *txlog.Snapshot, p *Policy) (jobs []Job, wait time.Duration) {
	anew := p.Rebuild
	through, covered := int64(-1), 0
	groups := 0
	for _, s := range d.segments {
		anew = anew || p.Damaged[s.Key]
		if s.Part > 0 {
			continue // as the first part
		}
		groups++
		live := 0
		for _, a := range d.files {
			if a.ModificationTime > s.After && a.ModificationTime <= s.Through {
				live++
			}
		}
		// Dead files cost space and false candidates; more files than there
		// were came back, and no segment knows them.
		anew = anew || live > s.Files || 2*live < s.Files
		covered += live
		through = max(through, s.Through)
	}
	// Segments follow each other in time. A gap is where a job failed while
	// another, for later files, did not.
	known, _ := slices.BinarySearchFunc(d.files, through+1, func(a *action.Add, t int64) int { return cmp.Compare(a.ModificationTime, t) })
	anew = anew || known != covered
	if !anew {
		fresh := d.files[known:]
		if len(fresh) == 0 {
			return nil, 0
		}
		if wait, ok := d.due(fresh, p); !ok {
			return nil, wait
		}
		if groups < p.MaxSegments {
			return d.split(snap, p, fresh, through, nil), 0
		}
	}
	if len(d.files) == 0 && len(d.segments) == 0 {
		return nil, 0
	}
	keys := make([]string, len(d.segments))
	for i, s := range d.segments {
		keys[i] = s.Key
	}
	return d.split(snap, p, d.files, -1, keys), 0
}

// due reports whether files without an index are worth a job, or after which
// time they will be.
func (d *day) due(fresh []*action.Add, p *Policy) (wait time.Duration, ok bool) {
	compacted := 0
	for _, a := range fresh {
		if tags, tagged, err := chunk.ParseTags(a.Tags); err == nil && tagged && tags.Level > 0 {
			compacted++
		}
	}
	if p.Eager || compacted >= p.MinFiles || len(fresh) >= 16*p.MinFiles {
		return 0, true
	}
	now := series.FromTime(p.Now)
	if d.date >= now.Date() {
		return time.Duration(d.date.Range().Max-now+1) * time.Microsecond, false
	}
	wait = time.UnixMilli(fresh[len(fresh)-1].ModificationTime).Add(p.Settle).Sub(p.Now)
	return max(wait, 0), wait <= 0
}

// split makes jobs of at most MaxFiles. Files of one commit stay together,
// since only the time of the commit tells which segment is theirs.
func (d *day) split(snap *txlog.Snapshot, p *Policy, files []*action.Add, after int64, replaces []string) []Job {
	var jobs []Job
	for first := true; first || len(files) > 0; first = false {
		n := min(len(files), p.MaxFiles)
		for n < len(files) && files[n].ModificationTime == files[n-1].ModificationTime {
			n++
		}
		j := Job{Date: d.date, Files: files[:n:n], Replaces: replaces, After: after, Through: snap.Time().UnixMilli(), base: snap}
		if files = files[n:]; len(files) > 0 {
			j.Through = j.Files[n-1].ModificationTime
		}
		after = j.Through
		jobs = append(jobs, j)
	}
	return jobs
}
