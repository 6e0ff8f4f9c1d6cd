package sim

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// counts is how often each thing happened: faults by kind, and the counters of
// the nodes, summed over their lives. Safe for concurrent use.
type counts struct {
	mu sync.Mutex
	n  map[string]int
}

func newCounts() *counts { return &counts{n: make(map[string]int)} }

func (c *counts) add(what string, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n[what] += n
}

// gathered names the counters of nodes that tell what a run went through.
var gathered = map[string]string{
	"magnetar_bookie_fences_total":                  "fences",
	"magnetar_ensemble_recoveries_total":            "recoveries",
	"magnetar_ensemble_changes_total":               "ensemble changes",
	"magnetar_ensemble_repaired_entries_total":      "entries copied again",
	"magnetar_bookie_recycled_segments_total":       "segments recycled",
	"magnetar_bookie_moved_bytes_total":             "bytes moved to cold segments",
	"magnetar_bookie_deleted_ledgers_total":         "ledgers deleted on a bookie",
	"magnetar_managed_ledger_trimmed_ledgers_total": "ledgers trimmed",
	"magnetar_managed_ledger_fenced_total":          "topics lost to another owner",
	"magnetar_bundle_log_fenced_total":              "bundle logs lost to another owner",
	"magnetar_bundle_log_passes_total":              "snapshot passes",
	"magnetar_bookie_client_add_failures_total":     "adds failed",
	"magnetar_topic_duplicate_batches_total":        "duplicate batches",
	"magnetar_subscription_delivered_entries_total": "entries delivered",
	"magnetar_subscription_returned_entries_total":  "entries returned",
}

// gather adds the counters of a process that ends.
func (c *counts) gather(r *prometheus.Registry) {
	families, _ := r.Gather() // what a closed node does not tell is missing from it, not the rest
	for _, f := range families {
		what, ok := gathered[f.GetName()]
		if !ok {
			continue
		}
		for _, m := range f.GetMetric() {
			name := what
			for _, l := range m.GetLabel() {
				if l.GetName() == "reason" {
					name += ": " + l.GetValue()
				}
			}
			c.add(name, int(m.GetCounter().GetValue()))
		}
	}
}

// merge adds the counts of another run.
func (c *counts) merge(o *counts) {
	o.mu.Lock()
	n := maps.Clone(o.n)
	o.mu.Unlock()
	for what, k := range n {
		c.add(what, k)
	}
}

func (c *counts) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, what := range slices.Sorted(maps.Keys(c.n)) {
		fmt.Fprintf(&b, "%10d  %s\n", c.n[what], what)
	}
	return b.String()
}
