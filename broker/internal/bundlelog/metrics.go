package bundlelog

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all bundle logs of a broker.
type Metrics struct {
	groups        prometheus.Counter
	groupBytes    prometheus.Counter
	passes        prometheus.Counter
	snapshotBytes prometheus.Counter
	trimmed       prometheus.Counter
	fenced        prometheus.Counter
}

// NewMetrics registers the metrics with reg; nil: they are counted and not
// shown.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		groups:        counter("magnetar_bundle_log_groups_total", "Groups appended to bundle logs."),
		groupBytes:    counter("magnetar_bundle_log_bytes_total", "Bytes appended to bundle logs."),
		passes:        counter("magnetar_bundle_log_passes_total", "Snapshot passes ended."),
		snapshotBytes: counter("magnetar_bundle_log_snapshot_bytes_total", "Bytes of snapshots appended to bundle logs."),
		trimmed:       counter("magnetar_bundle_log_trimmed_ledgers_total", "Ledgers trimmed away."),
		fenced:        counter("magnetar_bundle_log_fenced_total", "Times a bundle log was lost to another owner."),
	}
	if reg != nil {
		reg.MustRegister(m.groups, m.groupBytes, m.passes, m.snapshotBytes, m.trimmed, m.fenced)
	}
	return m
}
