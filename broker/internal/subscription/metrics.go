package subscription

import "github.com/prometheus/client_golang/prometheus"

// Metrics of all subscriptions of a broker.
type Metrics struct {
	entries  prometheus.Counter
	acks     prometheus.Counter
	returned prometheus.Counter
}

// NewMetrics registers the metrics; reg may be nil.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	m := &Metrics{
		entries: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_subscription_delivered_entries_total",
			Help: "Entries handed to consumers, those delivered again included.",
		}),
		acks: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_subscription_ack_requests_total",
			Help: "Acknowledgements taken from consumers.",
		}),
		returned: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_subscription_returned_entries_total",
			Help: "Entries that consumers asked to have delivered again, one by one or all they held.",
		}),
	}
	if reg != nil {
		reg.MustRegister(m.entries, m.acks, m.returned)
	}
	return m
}
