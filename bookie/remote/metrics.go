package remote

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all connections to bookies of a process.
type Metrics struct {
	addSeconds  prometheus.Histogram
	addFailures *prometheus.CounterVec
	messages    prometheus.Counter
	sentBytes   prometheus.Counter
	unanswered  prometheus.Gauge
	corrupt     prometheus.Counter
}

// NewMetrics registers the metrics with r; nil registers nothing.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		addSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "magnetar_bookie_client_add_seconds",
			Help:    "Time from handing an entry over to the bookie's answer.",
			Buckets: prometheus.ExponentialBuckets(0.0001, 2, 16),
		}),
		addFailures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "magnetar_bookie_client_add_failures_total",
			Help: "Adds that were not answered with success, by reason.",
		}, []string{"reason"}),
		messages: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_client_write_messages_total",
			Help: "Messages sent that carry entries.",
		}),
		sentBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_client_sent_bytes_total",
			Help: "Bytes of entries sent.",
		}),
		unanswered: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "magnetar_bookie_client_unanswered_bytes",
			Help: "Bytes of entries that wait for a bookie's answer.",
		}),
		corrupt: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_client_corrupt_entries_total",
			Help: "Entries received whose checksum or identity did not match.",
		}),
	}
	if r != nil {
		r.MustRegister(m.addSeconds, m.addFailures, m.messages, m.sentBytes, m.unanswered, m.corrupt)
	}
	return m
}
