package hotlog

import (
	"errors"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics of one log.
type metrics struct {
	syncSeconds  prometheus.Histogram
	groupBytes   prometheus.Histogram
	appendBytes  prometheus.Counter
	writtenBytes prometheus.Counter
	zeroBytes    prometheus.Counter
	tooBusy      prometheus.Counter
	queueBytes   prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: "magnetar_bookie_log_" + name, Help: help})
	}
	m := &metrics{
		syncSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "magnetar_bookie_log_sync_seconds", Help: "Time to write and sync one group of the log.",
			Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16),
		}),
		groupBytes: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "magnetar_bookie_log_group_bytes", Help: "Bytes written by one sync of the log, padding included.",
			Buckets: prometheus.ExponentialBuckets(4096, 2, 12),
		}),
		appendBytes:  counter("append_bytes_total", "Bytes of records that are on disk in the log."),
		writtenBytes: counter("written_bytes_total", "Bytes written to the log, frames and padding included, pre-writing not."),
		zeroBytes:    counter("prewritten_bytes_total", "Zeros written ahead so that syncs need not extend files."),
		tooBusy:      counter("too_busy_total", "Appends refused because too many bytes were waiting."),
		queueBytes: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "magnetar_bookie_log_queue_bytes", Help: "Bytes appended and not yet answered.",
		}),
	}
	if r == nil {
		return m, nil
	}
	var errs []error
	for _, c := range []prometheus.Collector{m.syncSeconds, m.groupBytes, m.appendBytes, m.writtenBytes, m.zeroBytes, m.tooBusy, m.queueBytes} {
		errs = append(errs, r.Register(c))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("hotlog: register metrics: %w", err)
	}
	return m, nil
}
