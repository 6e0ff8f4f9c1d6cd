package ensemble

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of a Client. Its methods work on nil, which measures nothing.
type Metrics struct {
	ack       prometheus.Histogram
	changes   prometheus.Counter
	repaired  prometheus.Counter
	recovered prometheus.Counter
	hedged    prometheus.Counter
	retried   prometheus.Counter
}

// NewMetrics returns metrics registered with r, nil: nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		ack: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "magnetar_ensemble_ack_seconds",
			Help:    "Time from an append to its acknowledgement by an ack quorum.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
		}),
		changes:   counter("magnetar_ensemble_changes_total", "Ensemble changes written."),
		repaired:  counter("magnetar_ensemble_repaired_entries_total", "Entries copied again by their writer to a bookie that lacked them."),
		recovered: counter("magnetar_ensemble_recoveries_total", "Ledgers closed by recovery."),
		hedged:    counter("magnetar_ensemble_hedged_reads_total", "Reads sent to a further bookie because the first was slow."),
		retried:   counter("magnetar_ensemble_retried_reads_total", "Reads sent to a further bookie because one failed or lacked the entry."),
	}
	if r != nil {
		r.MustRegister(m.ack, m.changes, m.repaired, m.recovered, m.hedged, m.retried)
	}
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}

func (m *Metrics) acked(took time.Duration) {
	if m != nil {
		m.ack.Observe(took.Seconds())
	}
}

func (m *Metrics) changed() {
	if m != nil {
		m.changes.Inc()
	}
}

func (m *Metrics) copied(entries int) {
	if m != nil {
		m.repaired.Add(float64(entries))
	}
}

func (m *Metrics) closedByRecovery() {
	if m != nil {
		m.recovered.Inc()
	}
}

func (m *Metrics) readAgain(hedged bool) {
	switch {
	case m == nil:
	case hedged:
		m.hedged.Inc()
	default:
		m.retried.Inc()
	}
}
