package managedledger

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics of all managed ledgers of a broker and their cache.
type Metrics struct {
	cacheHits    prometheus.Counter
	cacheMisses  prometheus.Counter
	cacheEvicted prometheus.Counter
	cacheBytes   prometheus.Gauge
	readBytes    prometheus.Counter
	trimmed      prometheus.Counter
	fenced       prometheus.Counter
}

// NewMetrics registers the metrics with reg; nil: they are counted and not
// shown.
func NewMetrics(reg prometheus.Registerer) *Metrics {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	m := &Metrics{
		cacheHits:    counter("magnetar_entry_cache_hits_total", "Entries read from the entry cache."),
		cacheMisses:  counter("magnetar_entry_cache_misses_total", "Entries read from bookies."),
		cacheEvicted: counter("magnetar_entry_cache_evicted_total", "Entries that left the entry cache."),
		cacheBytes:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "magnetar_entry_cache_bytes", Help: "Bytes in the entry cache."}),
		readBytes:    counter("magnetar_managed_ledger_read_bytes_total", "Bytes of bodies read from bookies."),
		trimmed:      counter("magnetar_managed_ledger_trimmed_ledgers_total", "Ledgers trimmed away."),
		fenced:       counter("magnetar_managed_ledger_fenced_total", "Times a topic was lost to another owner."),
	}
	if reg != nil {
		reg.MustRegister(m.cacheHits, m.cacheMisses, m.cacheEvicted, m.cacheBytes, m.readBytes, m.trimmed, m.fenced)
	}
	return m
}

// unshown is what managed ledgers without metrics of their own count in: there
// may be a hundred thousand of them.
var unshown = sync.OnceValue(func() *Metrics { return NewMetrics(nil) })
