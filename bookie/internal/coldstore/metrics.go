package coldstore

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one store.
type metrics struct {
	reads        prometheus.Counter
	readBytes    prometheus.Counter
	readEntries  prometheus.Counter
	cacheHits    prometheus.Counter
	writtenBytes prometheus.Counter
	copiedBytes  prometheus.Counter
	removedBytes prometheus.Counter
}

// newMetrics registers with r, which may be nil.
func newMetrics(r prometheus.Registerer) (*metrics, error) {
	var errs []error
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "magnetar_bookie_cold_" + name, Help: help})
		if r != nil {
			errs = append(errs, r.Register(c))
		}
		return c
	}
	m := &metrics{
		reads:        counter("reads_total", "Reads from disk that served entries of cold segments."),
		readBytes:    counter("read_bytes_total", "Bytes read from disk to serve entries of cold segments."),
		readEntries:  counter("read_entries_total", "Entries served from cold segments."),
		cacheHits:    counter("cache_hits_total", "Blocks of cold segments served from memory."),
		writtenBytes: counter("written_bytes_total", "Bytes of cold segments written, copies by compaction included."),
		copiedBytes:  counter("copied_bytes_total", "Bytes of cold segments written by compaction."),
		removedBytes: counter("removed_bytes_total", "Bytes of cold segments removed."),
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("coldstore: register metrics: %w", err)
	}
	return m, nil
}
