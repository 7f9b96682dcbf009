package prom

import (
	"context"
	"errors"
	"net/url"

	"github.com/prometheus/prometheus/config"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/rules"
	"github.com/prometheus/prometheus/scrape"
	"github.com/prometheus/prometheus/tsdb"
	"github.com/prometheus/prometheus/util/notifications"
)

// errNotHere is the answer of what a table does not have.
var errNotHere = errors.New("a table has no TSDB: not available")

// nothing is a Prometheus without targets, rules, alertmanagers and TSDB.
type nothing struct{}

func (nothing) ScrapePools() []string                       { return []string{} }
func (nothing) TargetsActive() map[string][]*scrape.Target  { return nil }
func (nothing) TargetsDropped() map[string][]*scrape.Target { return nil }
func (nothing) TargetsDroppedCounts() map[string]int        { return nil }
func (nothing) ScrapePoolConfig(string) (*config.ScrapeConfig, error) {
	return nil, errNotHere
}
func (nothing) Alertmanagers() []*url.URL            { return nil }
func (nothing) DroppedAlertmanagers() []*url.URL     { return nil }
func (nothing) RuleGroups() []*rules.Group           { return nil }
func (nothing) AlertingRules() []*rules.AlertingRule { return nil }

func (nothing) notifications() []notifications.Notification { return []notifications.Notification{} }
func (nothing) subscribe() (<-chan notifications.Notification, func(), bool) {
	return nil, nil, false
}

func (nothing) CleanTombstones() error                                         { return errNotHere }
func (nothing) Delete(context.Context, int64, int64, ...*labels.Matcher) error { return errNotHere }
func (nothing) Snapshot(string, bool) error                                    { return errNotHere }
func (nothing) Stats(string, int) (*tsdb.Stats, error)                         { return nil, errNotHere }
func (nothing) WALReplayStatus() (tsdb.WALReplayStatus, error) {
	return tsdb.WALReplayStatus{}, errNotHere
}
func (nothing) BlockMetas() ([]tsdb.BlockMeta, error) { return nil, errNotHere }
