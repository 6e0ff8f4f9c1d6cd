// Package coldstore is where entries come to rest that outlive the hot log:
// immutable segment files, sorted by (ledger, entry), made of checksummed blocks
// and a footer that tells what is where. Which entry rests in which segment is in
// package index, and can be built again from the footers.
//
// Promises:
//   - When Write returns without error, its entries are in synced segments and
//     their extents are durable in the index: the hot log may forget them.
//   - A read gives the entry, checked against its checksums and its identity, or
//     ErrNoEntry when the index surely has none, or ErrCorrupt, or an error that
//     means unknown. Damage is never "absent".
//   - A segment goes only after all that lives in it is durable elsewhere. A read
//     that meets a segment just removed looks the entry up again.
//
// It leaves to the bookie which entries to write when, which ledgers are deleted
// (index.Batch.Delete), and when to call Compact and Scrub: it has no goroutine of
// its own.
package coldstore

import (
	"container/list"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Options of a Store. FS, Dir and Index must be set.
type Options struct {
	FS    vfs.FS
	Dir   string // made if absent; used by one Store at a time
	Index *index.Index

	// SegmentBytes is where a segment ends; it may go beyond by one entry. 0: 256 MiB.
	SegmentBytes int64
	// BlockBytes is what is read and checked at once; a larger entry has a block of
	// its own. 0: 128 KiB.
	BlockBytes int
	// CacheBytes bounds the blocks kept in memory. 0: 16 MiB; below 0: none.
	CacheBytes int64
	// MaxOpen bounds the segments kept open, each with its footer in memory (some
	// 50 KiB); those being read come on top. 0: 64.
	MaxOpen int
	// MaxLive is the share of live bytes below which Compact copies a segment. 0: 0.5.
	MaxLive float64
	// BackgroundBytesPerSecond bounds what Compact and Scrub read. 0: no bound.
	BackgroundBytesPerSecond int

	Log     hclog.Logger
	Metrics prometheus.Registerer
	// Fatal is told of a failed sync and must end the process. nil: log and exit
	// with status 1.
	Fatal func(error)
}

// maxSegmentBytes keeps every offset in a segment within 32 bits.
const maxSegmentBytes = 2 << 30

// Validate reports every fault of the options.
func (o *Options) Validate() error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf("coldstore: "+format, args...))
		}
	}
	fault(o.FS == nil, "no file system")
	fault(o.Dir == "", "no folder")
	fault(o.Index == nil, "no index")
	fault(o.SegmentBytes < 0 || o.SegmentBytes > maxSegmentBytes, "segments of %d bytes, want up to %d", o.SegmentBytes, maxSegmentBytes)
	fault(o.BlockBytes < 0 || o.BlockBytes > 16<<20, "blocks of %d bytes, want up to 16 MiB", o.BlockBytes)
	fault(o.MaxOpen < 0, "%d open segments", o.MaxOpen)
	fault(o.MaxLive < 0 || o.MaxLive > 1, "live share %v, want 0 to 1", o.MaxLive)
	fault(o.BackgroundBytesPerSecond < 0, "background rate of %d bytes", o.BackgroundBytesPerSecond)
	return errors.Join(errs...)
}

func (o *Options) setDefaults() {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	def(&o.BlockBytes, 128<<10)
	def(&o.MaxOpen, 64)
	if o.SegmentBytes == 0 {
		o.SegmentBytes = 256 << 20
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 16 << 20
	}
	if o.MaxLive == 0 {
		o.MaxLive = 0.5
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Fatal == nil {
		log := o.Log
		o.Fatal = func(err error) {
			log.Error("cold segment cannot be synced, stopping", "error", err)
			os.Exit(1)
		}
	}
}

// Store is safe for concurrent use. Writes, compaction and reads run beside each
// other; compactions one at a time.
//
// Lock order: compacting, then index (its own), then mu. No disk access under mu.
type Store struct {
	opts    Options
	fs      vfs.FS
	index   *index.Index
	log     hclog.Logger
	cache   *blockCache
	metrics *metrics
	limit   *rate.Limiter // nil: none

	compacting sync.Mutex

	mu         sync.Mutex
	set        map[uint32]*segment
	open       *list.List // of *segment, the last used in front
	next       uint32     // id of the next segment; ids start at 1 and are not used again
	unreadable []string
	failed     error // after a failed sync, sticky
}

// Open opens the store in opts.Dir. It removes what an interrupted write left,
// and enters segments that the index does not know into it, as far as no other
// segment has their entries (the index was lost, or lacks the last write). The
// index must have its tombstones by then.
func Open(opts Options) (*Store, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.setDefaults()
	m, err := newMetrics(opts.Metrics)
	if err != nil {
		return nil, err
	}
	s := &Store{
		opts: opts, fs: opts.FS, index: opts.Index, log: opts.Log, metrics: m,
		cache: newBlockCache(opts.CacheBytes),
		set:   make(map[uint32]*segment),
		open:  list.New(),
	}
	if n := opts.BackgroundBytesPerSecond; n > 0 {
		s.limit = rate.NewLimiter(rate.Limit(n), max(n, maxPreadBytes))
	}
	if err := s.recover(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// Close closes the files. No other call may be running. Nothing is lost without it.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for e := s.open.Front(); e != nil; e = e.Next() {
		errs = append(errs, e.Value.(*segment).file.Close())
	}
	s.open.Init()
	clear(s.set)
	return errors.Join(errs...)
}

// Info describes a segment.
type Info struct {
	ID          uint32
	Lifetime    index.Lifetime
	FileBytes   int64
	DataBytes   int64 // of all blocks
	LiveBytes   int64 // of blocks whose ledger lives, boundaries in proportion
	LiveExtents int   // 0: the segment can go without a copy
	Damaged     bool  // a block could not be read; Compact leaves it alone
}

// LiveRatio is the share of the data that still counts.
func (i Info) LiveRatio() float64 { return float64(i.LiveBytes) / float64(max(i.DataBytes, 1)) }

// Segments lists the segments by rising id.
func (s *Store) Segments() []Info {
	s.mu.Lock()
	infos := make([]Info, 0, len(s.set))
	for _, seg := range s.set {
		if seg.ready {
			infos = append(infos, Info{ID: seg.id, Lifetime: seg.lifetime, FileBytes: seg.fileBytes,
				DataBytes: seg.dataBytes, Damaged: seg.damaged})
		}
	}
	s.mu.Unlock()
	for i := range infos {
		live := s.index.Live(infos[i].ID)
		infos[i].LiveBytes, infos[i].LiveExtents = live.Bytes, live.Extents
	}
	slices.SortFunc(infos, func(a, b Info) int { return int(int64(a.ID) - int64(b.ID)) })
	return infos
}

// Usage is what the store takes, in bytes.
type Usage struct {
	Segments  int
	FileBytes int64
	LiveBytes int64
}

// Usage sums up Segments.
func (s *Store) Usage() Usage {
	var u Usage
	for _, i := range s.Segments() {
		u.Segments++
		u.FileBytes += i.FileBytes
		u.LiveBytes += i.LiveBytes
	}
	return u
}

// Unreadable lists files in the folder that look like segments, that the index
// does not know, and that cannot be read. What they held is unknown: unless the
// index was intact, ledgers whose entries may be there belong in limbo.
func (s *Store) Unreadable() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.unreadable)
}

// fatal stops the process after a failed sync.
func (s *Store) fatal(err error) error {
	s.mu.Lock()
	first := s.failed == nil
	if first {
		s.failed = fmt.Errorf("coldstore: not durable: %w", err)
	}
	err = s.failed
	s.mu.Unlock()
	if first {
		s.opts.Fatal(err)
	}
	return err
}

func (s *Store) failure() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}
