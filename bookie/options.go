package bookie

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Options of a node. Dir, ID and Cluster are required; the zero value of all
// else is the default named.
type Options struct {
	FS      vfs.FS // the host's files
	Dir     string // made if absent, locked while open
	ID      string // of the bookie, unique in the cluster
	Cluster string // id of the cluster

	// MemoryBytes is what caches, entries and reads in flight, and the index of the
	// hot log may take together: 512 MiB.
	MemoryBytes int64
	// HotBytes is how much disk the hot log may fill before survivors move to cold
	// segments: 8 GiB, at most a quarter of DiskBytes, at least 32 MiB.
	HotBytes int64
	// SegmentBytes is the size of a hot segment, which bounds an entry: 256 MiB, at
	// most a sixteenth of HotBytes, at least 8 MiB, for the largest message of 5 MiB.
	SegmentBytes int64
	// DiskBytes is how much disk the node may take: all of it. At least 128 MiB, or 16
	// segments and twice HotBytes where these are given: the reserve has to hold
	// several segments, for one gives nothing back before it is full.
	DiskBytes int64
	// ReserveBytes is kept back for control when data is refused (M28). Fixed when
	// the directory is formatted: a twentieth of the disk, from 4 hot segments to a
	// quarter of the disk.
	ReserveBytes int64
	// NoSync gives durability up: what was answered may be lost in a power cut.
	NoSync bool

	Log     hclog.Logger
	Metrics prometheus.Registerer // labelled with the bookie's id; not registered
	// Fatal is called when the node may not go on: a write or sync failed, and what
	// the disk holds is unknown. Log and exit.
	Fatal func(error)
	Now   func() time.Time
	Rand  func() uint64 // safe for concurrent use; math/rand/v2
}

func (o Options) withDefaults() Options {
	if o.FS == nil {
		o.FS = vfs.OS()
	}
	if o.MemoryBytes == 0 {
		o.MemoryBytes = 512 << 20
	}
	if o.HotBytes == 0 {
		o.HotBytes = 8 << 30
		if o.DiskBytes > 0 {
			o.HotBytes = max(min(o.HotBytes, o.DiskBytes/hotShare), 4*leastSegmentBytes)
		}
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = max(min(256<<20, o.HotBytes/segmentShare), leastSegmentBytes) >> 20 << 20
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Fatal == nil {
		log := o.Log
		o.Fatal = func(err error) {
			log.Error("the node cannot go on", "error", err)
			os.Exit(1)
		}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	return o
}

// MaxEntryBytes is the largest body of an entry that a node opened with o takes: the
// log keeps each entry within one segment.
func (o Options) MaxEntryBytes() int64 { return hotlog.LargestBody(o.withDefaults().SegmentBytes) }

// LeastDiskBytes is the least DiskBytes, above 0, with which a node takes bodies of so
// many bytes, at most ledger.MaxBodyBytes.
func LeastDiskBytes(bodyBytes int64) int64 {
	around := leastSegmentBytes - hotlog.LargestBody(leastSegmentBytes)
	segment := (bodyBytes + around + 1<<20 - 1) >> 20 << 20
	if segment <= leastSegmentBytes {
		return 16 * leastSegmentBytes
	}
	return hotShare * segmentShare * segment
}

const (
	hotShare     = 4  // the hot log is so much of the disk, by default
	segmentShare = 16 // a segment is so much of the hot log, by default

	minSegmentBytes   = 128 << 10
	leastSegmentBytes = 8 << 20 // of the default
	minMemoryBytes    = 16 << 20
)

// name is what a bookie and a cluster may be called: it becomes part of keys,
// file names and metrics.
var name = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// Validate reports all faults at once.
func (o Options) Validate() error {
	var errs []error
	fault := func(format string, args ...any) {
		errs = append(errs, fmt.Errorf("bookie: "+format, args...))
	}
	if o.Dir == "" {
		fault("data directory is missing")
	}
	if !name.MatchString(o.ID) {
		fault("id %q: want 1 to 64 letters, digits, '.', '_' or '-'", o.ID)
	}
	if !name.MatchString(o.Cluster) {
		fault("cluster id %q: want 1 to 64 letters, digits, '.', '_' or '-'", o.Cluster)
	}
	o = o.withDefaults()
	if o.MemoryBytes < minMemoryBytes {
		fault("memory of %d bytes: want at least %d", o.MemoryBytes, minMemoryBytes)
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes%4096 != 0 {
		fault("hot segments of %d bytes: want a multiple of 4096, at least %d", o.SegmentBytes, minSegmentBytes)
	}
	if o.HotBytes < 4*o.SegmentBytes {
		fault("hot log of %d bytes: want at least 4 segments of %d", o.HotBytes, o.SegmentBytes)
	}
	if least := max(2*o.HotBytes, 16*o.SegmentBytes); o.DiskBytes < 0 || o.DiskBytes > 0 && o.DiskBytes < least {
		fault("disk limit of %d bytes: want at least %d, for a hot log of %d in segments of %d", o.DiskBytes, least, o.HotBytes, o.SegmentBytes)
	}
	if o.ReserveBytes < 0 {
		fault("reserve of %d bytes is negative", o.ReserveBytes)
	}
	return errors.Join(errs...)
}
