package ensemble

import "github.com/prometheus/client_golang/prometheus"

// Metrics of a Client. All methods work on nil.
type Metrics struct {
	ack       prometheus.Histogram
	inFlight  prometheus.Gauge
	changes   prometheus.Counter
	short     prometheus.Counter
	repaired  prometheus.Counter
	recovered prometheus.Counter
	hedged    prometheus.Counter
	retried   prometheus.Counter
}

// NewMetrics registers the metrics with r; nil r registers them nowhere.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		ack: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "magnetar_ensemble_ack_seconds",
			Help:    "Time from an append to its acknowledgement by an ack quorum.",
			Buckets: prometheus.ExponentialBuckets(0.00025, 2, 16),
		}),
		inFlight:  prometheus.NewGauge(prometheus.GaugeOpts{Name: "magnetar_ensemble_in_flight_bytes", Help: "Bodies held for writers."}),
		changes:   counter("magnetar_ensemble_changes_total", "Ensemble changes written."),
		short:     counter("magnetar_ensemble_short_entries_total", "Entries noted with fewer than write quorum copies."),
		repaired:  counter("magnetar_ensemble_repaired_entries_total", "Entries brought back to write quorum copies by their writer."),
		recovered: counter("magnetar_ensemble_recoveries_total", "Ledgers closed by recovery."),
		hedged:    counter("magnetar_ensemble_hedged_reads_total", "Reads sent to a second bookie because the first was slow."),
		retried:   counter("magnetar_ensemble_retried_reads_total", "Reads sent to another bookie because one failed or lacked the entry."),
	}
	if r != nil {
		r.MustRegister(m.ack, m.inFlight, m.changes, m.short, m.repaired, m.recovered, m.hedged, m.retried)
	}
	return m
}

func counter(name, help string) prometheus.Counter {
	return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
}
