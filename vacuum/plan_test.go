package vacuum

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"cardinalsin/action"
)

// TestPlans runs the scripts in testdata/plan. A file's name stands for its
// content; every command prints the version it made or what it found.
func TestPlans(t *testing.T) {
	datadriven.Walk(t, "testdata/plan", func(t *testing.T, path string) {
		tab := newTable(t)
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := tab.script(t, d)
			if err != nil {
				return fmt.Sprintf("error: %v\n", err)
			}
			return out
		})
	})
}

// script runs one command.
func (tab *table) script(t *testing.T, d *datadriven.TestData) (string, error) {
	arg := func(name string) []string {
		for _, a := range d.CmdArgs {
			if a.Key == name {
				return a.Vals
			}
		}
		return nil
	}
	switch d.Cmd {
	case "upload":
		tab.upload(t, arg("files")...)
		return "ok\n", nil
	case "write":
		tab.upload(t, arg("files")...)
		return versionLine(tab.commit(t, "WRITE", arg("files"), nil)), nil
	case "commit":
		return versionLine(tab.commit(t, "COMMIT", arg("add"), arg("remove"))), nil
	case "tick":
		by, err := time.ParseDuration(arg("by")[0])
		if err != nil {
			return "", err
		}
		tab.clock.tick(by)
		return "ok\n", nil
	case "checkpoint":
		s, err := tab.log.Checkpoint(t.Context())
		if err != nil {
			return "", err
		}
		return versionLine(s.Version()), nil
	case "pin":
		var v int64
		d.ScanArgs(t, "version", &v)
		putPin(t, tab.store, arg("id")[0], action.Version(v))
		return "ok\n", nil
	case "plan", "execute":
		opts, err := scriptOptions(d)
		if err != nil {
			return "", err
		}
		p, err := NewPlan(t.Context(), tab.log, opts)
		if err != nil {
			return "", err
		}
		if d.Cmd == "plan" {
			return printPlan(p), nil
		}
		r, err := p.Execute(t.Context())
		if err != nil {
			return "", err
		}
		return printReport(r), nil
	case "ls":
		var out strings.Builder
		for _, k := range keys(t, tab.store, strings.Join(arg("under"), "")) {
			out.WriteString(k + "\n")
		}
		return out.String(), nil
	}
	return "", fmt.Errorf("no command %q", d.Cmd)
}

func scriptOptions(d *datadriven.TestData) (opts Options, err error) {
	for _, a := range d.CmdArgs {
		switch a.Key {
		case "retain":
			if opts.Retain, err = time.ParseDuration(a.Vals[0]); err != nil {
				return opts, err
			}
			if opts.Retain == 0 {
				opts.Retain = NoRetention
			}
		case "full":
			opts.Full = true
		case "short":
			opts.AllowShortRetention = true
		case "max-files":
			if _, err = fmt.Sscan(a.Vals[0], &opts.MaxFiles); err != nil {
				return opts, err
			}
		default:
			return opts, fmt.Errorf("no option %q", a.Key)
		}
	}
	return opts, nil
}

func versionLine(v action.Version) string { return fmt.Sprintf("version %d\n", int64(v)) }

func printPlan(p *Plan) string {
	var out strings.Builder
	fmt.Fprintf(&out, "version %d horizon %d watermark %d earliest %d settled %d reaches %d\n",
		p.Version, p.Horizon, p.Watermark, p.Earliest, p.Settled, p.Reaches)
	for _, pin := range p.Pins {
		state := "lives"
		if pin.Expired() {
			state = "expired"
		}
		if pin.Revoked {
			state = "revoked"
		}
		fmt.Fprintf(&out, "pin %s at %d %s\n", pin.Holder, pin.MinVersion, state)
	}
	section := func(name string, objects []Object) {
		for _, o := range objects {
			fmt.Fprintf(&out, "%s %s (%d bytes, version %d)\n", name, strings.TrimPrefix(o.Key, root+"/"), o.Bytes, int64(o.Version))
		}
	}
	section("file", p.Files)
	section("orphan", p.Orphans)
	for _, o := range p.LogObjects { // sizes of log objects are not ours to pin
		fmt.Fprintf(&out, "log %s (version %d)\n", strings.TrimPrefix(o.Key, root+"/"), int64(o.Version))
	}
	return out.String()
}

func printReport(r Report) string {
	return fmt.Sprintf("start %d end %d earliest %d reached %d: %d files, %d orphans, %d log objects; pins: %d revoked, %d deleted\n",
		r.Start, r.End, r.Earliest, r.Reached, r.Files, r.Orphans, r.LogObjects, r.PinsRevoked, r.PinsDeleted)
}
