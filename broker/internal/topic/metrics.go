package topic

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of all topics of a broker.
type Metrics struct {
	published      prometheus.Counter
	publishedBytes prometheus.Counter
	refused        prometheus.Counter
	duplicates     prometheus.Counter
	forgotten      prometheus.Counter

	// Stages of a publish that was stored, see publishLatency.
	queue, store, total prometheus.Observer
}

// publishBuckets are those of publish latencies, in seconds.
var publishBuckets = []float64{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10}

// NewMetrics registers the metrics with r; nil: with nothing.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	latency := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "magnetar_publish_latency_seconds",
		Help: "Time of a stored batch: queue, until the ledger's writer has it; store, from then until its receipt; total, both.",

		Buckets: publishBuckets,
	}, []string{"stage"})
	m := &Metrics{
		published:      counter("magnetar_topic_published_messages_total", "Messages stored."),
		publishedBytes: counter("magnetar_topic_published_bytes_total", "Bytes of batches stored, as the producers sent them."),
		refused:        counter("magnetar_topic_refused_batches_total", "Batches refused before they had an id."),
		duplicates:     counter("magnetar_topic_duplicate_batches_total", "Batches that were stored already, answered with success."),
		forgotten:      counter("magnetar_topic_forgotten_producers_total", "Producers forgotten because a topic remembers only so many."),

		queue: latency.WithLabelValues("queue"), store: latency.WithLabelValues("store"), total: latency.WithLabelValues("total"),
	}
	if r != nil {
		r.MustRegister(m.published, m.publishedBytes, m.refused, m.duplicates, m.forgotten, latency)
	}
	return m
}

// publishLatency counts a batch that came at received, went to the ledger's
// writer at appended, and was stored at stored.
func (m *Metrics) publishLatency(received, appended, stored time.Time) {
	m.queue.Observe(max(0, appended.Sub(received).Seconds()))
	m.store.Observe(max(0, stored.Sub(appended).Seconds()))
	m.total.Observe(max(0, stored.Sub(received).Seconds()))
}
