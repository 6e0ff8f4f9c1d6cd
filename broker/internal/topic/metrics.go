package topic

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all topics of a broker.
type Metrics struct {
	published      prometheus.Counter
	publishedBytes prometheus.Counter
	refused        prometheus.Counter
	duplicates     prometheus.Counter
	producers      prometheus.Gauge
	forgotten      prometheus.Counter
}

// NewMetrics registers the metrics with r; nil: with nothing.
func NewMetrics(r prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		published:      counter("magnetar_topic_published_messages_total", "Messages stored."),
		publishedBytes: counter("magnetar_topic_published_bytes_total", "Bytes of batches stored, as the producers sent them."),
		refused:        counter("magnetar_topic_refused_batches_total", "Batches refused before they had an id."),
		duplicates:     counter("magnetar_topic_duplicate_batches_total", "Batches that were stored already, answered with success."),
		forgotten:      counter("magnetar_topic_forgotten_producers_total", "Producers forgotten because a topic remembers only so many."),
		producers:      prometheus.NewGauge(prometheus.GaugeOpts{Name: "magnetar_topic_producers", Help: "Producers connected."}),
	}
	if r != nil {
		r.MustRegister(m.published, m.publishedBytes, m.refused, m.duplicates, m.producers, m.forgotten)
	}
	return m
}
