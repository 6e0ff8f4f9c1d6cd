package bookie

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// metrics of a node; those of the log under it are its own.
type metrics struct {
	refusedAdds *prometheus.CounterVec
	fences      prometheus.Counter
	readEntries *prometheus.CounterVec
	deleted     prometheus.Counter
	movedBytes  prometheus.Counter
	recycled    prometheus.Counter
	damaged     prometheus.Counter
	writtenOff  prometheus.Counter
}

func newMetrics(r prometheus.Registerer, n *Node) (*metrics, error) {
	m := &metrics{
		refusedAdds: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "magnetar_bookie_refused_adds_total",
			Help: "Adds that were not let in, by status.",
		}, []string{"status"}),
		fences: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_fences_total",
			Help: "Fences written to the log.",
		}),
		readEntries: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "magnetar_bookie_read_entries_total",
			Help: "Entries asked for, by answer.",
		}, []string{"answer"}),
		deleted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_deleted_ledgers_total",
			Help: "Ledgers deleted since the start.",
		}),
		movedBytes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_moved_bytes_total",
			Help: "Bytes of surviving entries moved from the log to cold segments.",
		}),
		recycled: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_recycled_segments_total",
			Help: "Segments of the log given back for reuse.",
		}),
		damaged: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_damaged_entries_total",
			Help: "Entries that the background check found damaged.",
		}),
		writtenOff: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "magnetar_bookie_written_off_entries_total",
			Help: "Entries given up since the start because the disk does not give them any more; their ledgers are in limbo.",
		}),
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, f)
	}
	var errs []error
	for _, c := range []prometheus.Collector{
		m.refusedAdds, m.fences, m.readEntries, m.deleted, m.movedBytes, m.recycled, m.damaged, m.writtenOff,
		gauge("magnetar_bookie_in_flight_bytes", "Bytes of adds taken and not answered.",
			func() float64 { return float64(n.inFlight.bytes.Load()) }),
		gauge("magnetar_bookie_ledgers", "Ledgers with something on this bookie.",
			func() float64 { return float64(n.table.Len()) }),
		gauge("magnetar_bookie_disk_free_bytes", "Bytes this bookie may still write.",
			func() float64 { return float64(n.disk.state().freeBytes) }),
		gauge("magnetar_bookie_disk_level", "0: open; 1: data is refused; 2: all but fences and deletions is refused.",
			func() float64 { return float64(n.disk.state().level) }),
	} {
		errs = append(errs, r.Register(c))
	}
	return m, errors.Join(errs...)
}

// refused counts an add that was not let in.
func (m *metrics) refused(err error) {
	if status, ok := wire.StatusOf(err); ok {
		m.refusedAdds.WithLabelValues(status.String()).Inc()
	}
}

// count counts the answers of a read.
func (m *metrics) count(entries []ledger.ReadEntry) {
	var n [3]int
	for i := range entries {
		n[entries[i].Status]++
	}
	for status, name := range []string{ledger.Found: "found", ledger.Absent: "absent", ledger.Unknown: "unknown"} {
		if n[status] > 0 {
			m.readEntries.WithLabelValues(name).Add(float64(n[status]))
		}
	}
}
