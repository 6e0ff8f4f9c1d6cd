package hotlog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Options of a log. FS and Dir are required; the zero value of all else is the
// default named.
type Options struct {
	FS  vfs.FS
	Dir string // made if absent; the caller holds the lock on it

	// SegmentBytes is the size of a segment file: 256 MiB. Bounds the largest record.
	SegmentBytes int64
	// GroupBytes bounds what one sync covers: 1 MiB. A larger record is a group of its own.
	GroupBytes int
	// QueueBytes bounds what is appended and not answered: 32 MiB. Beyond it Append
	// answers ledger.ErrTooBusy. One record of any size is taken when nothing waits.
	QueueBytes int64
	// TailCacheBytes is how much of what was written last stays in memory: 64 MiB.
	// Negative: nothing.
	TailCacheBytes int64
	// SpareSegments is how many recycled files are kept for reuse: 8. More are removed,
	// one after the other. Negative: none are kept.
	SpareSegments int
	// MaxDiskBytes and MaxIndexBytes are when the caller should move survivors away
	// and recycle: 8 GiB and 256 MiB. The log reports them in Usage and takes no action.
	MaxDiskBytes  int64
	MaxIndexBytes int64

	// NoSync gives durability up: records are answered once they are handed to the
	// operating system, and nothing is ever synced.
	NoSync bool

	// Fatal is called once, from a goroutine of the log, after a write or sync failed
	// and all waiting appends were answered. The process must end: what the disk holds
	// is unknown. Default: log and exit.
	Fatal func(error)

	Log     hclog.Logger
	Metrics prometheus.Registerer // nil: not registered
	Rand    func() uint64         // seeds of segments; default math/rand/v2
}

const (
	minSegmentBytes = 16 * blockBytes
	maxSegmentBytes = 2 << 30
)

// withDefaults fills in the zero fields.
func (o Options) withDefaults() Options {
	def := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	def(&o.SegmentBytes, 256<<20)
	def(&o.QueueBytes, 32<<20)
	def(&o.TailCacheBytes, 64<<20)
	def(&o.MaxDiskBytes, 8<<30)
	def(&o.MaxIndexBytes, 256<<20)
	if o.GroupBytes == 0 {
		o.GroupBytes = 1 << 20
	}
	if o.SpareSegments == 0 {
		o.SpareSegments = 8
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	if o.Fatal == nil {
		log := o.Log
		o.Fatal = func(err error) {
			log.Error("log failed, nothing more can be stored: the process ends", "error", err)
			os.Exit(1)
		}
	}
	return o
}

// Validate reports all faults at once.
func (o Options) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf("hotlog: "+format, args...)) }
	o = o.withDefaults()
	if o.FS == nil {
		fault("FS is missing")
	}
	if o.Dir == "" {
		fault("Dir is missing")
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxSegmentBytes || o.SegmentBytes%blockBytes != 0 {
		fault("SegmentBytes %d: want a multiple of %d from %d to %d", o.SegmentBytes, blockBytes, minSegmentBytes, maxSegmentBytes)
	}
	if o.GroupBytes < blockBytes || o.GroupBytes%blockBytes != 0 || int64(o.GroupBytes) > o.SegmentBytes-2*blockBytes {
		fault("GroupBytes %d: want a multiple of %d, smaller than a segment", o.GroupBytes, blockBytes)
	}
	if o.QueueBytes < 0 {
		fault("QueueBytes %d is negative", o.QueueBytes)
	}
	if o.MaxDiskBytes < 0 || o.MaxIndexBytes < 0 {
		fault("MaxDiskBytes %d, MaxIndexBytes %d: one is negative", o.MaxDiskBytes, o.MaxIndexBytes)
	}
	return errors.Join(errs...)
}
