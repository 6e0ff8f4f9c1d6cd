package meta

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// measured is a Store that times its requests.
type measured struct {
	Store
	get, rng, txn, session prometheus.Observer
}

// Measured returns s with the time of its requests told to r, failed ones
// included; r nil: s itself. Watches have no end worth timing and are passed
// through. One per registry.
func Measured(s Store, r prometheus.Registerer) Store {
	if r == nil {
		return s
	}
	seconds := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name:    "magnetar_metadata_request_seconds",
		Help:    "Time of a request to the metadata store, failed ones included.",
		Buckets: []float64{0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10},
	}, []string{"op"})
	r.MustRegister(seconds)
	return &measured{
		Store: s,
		get:   seconds.WithLabelValues("get"), rng: seconds.WithLabelValues("range"),
		txn: seconds.WithLabelValues("txn"), session: seconds.WithLabelValues("session"),
	}
}

func observe(o prometheus.Observer, since time.Time) { o.Observe(time.Since(since).Seconds()) }

// Get implements Store.
func (m *measured) Get(ctx context.Context, key string) (KV, error) {
	defer observe(m.get, time.Now())
	return m.Store.Get(ctx, key)
}

// Range implements Store.
func (m *measured) Range(ctx context.Context, start, end string, limit int) ([]KV, Revision, error) {
	defer observe(m.rng, time.Now())
	return m.Store.Range(ctx, start, end, limit)
}

// Txn implements Store.
func (m *measured) Txn(ctx context.Context, t Txn) (TxnResult, error) {
	defer observe(m.txn, time.Now())
	return m.Store.Txn(ctx, t)
}

// NewSession implements Store.
func (m *measured) NewSession(ctx context.Context, ttl time.Duration) (Session, error) {
	defer observe(m.session, time.Now())
	return m.Store.NewSession(ctx, ttl)
}
