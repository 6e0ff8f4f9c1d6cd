// Package index holds what a bookie must look up and cannot keep in memory
// whole: where the entries of a ledger rest in cold segments (extents), what the
// bookie knows of each ledger (records), which ledgers were deleted (tombstones)
// and which entries are known to be damaged.
//
// It is a key-value store without a log of its own: the bookie's hot log is the
// log. Apply changes what readers see at once; Flush makes all that was applied
// durable. After a crash the index holds a prefix of the applied batches, each
// whole, that reaches at least to the last Flush that returned.
//
// Everything here can be built again from elsewhere: extents from the footers of
// the cold segments, records and tombstones from the hot log's checkpoint frames.
package index

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	magvfs "github.com/magnetar-io/magnetar/internal/vfs"
)

// Options of an Index. FS and Dir must be set.
type Options struct {
	FS  magvfs.FS
	Dir string // made if absent; used by one Index at a time
	Log hclog.Logger
	// CacheBytes bounds the blocks kept in memory. 0: 4 MiB.
	CacheBytes int64
	// MemtableBytes bounds what is gathered between flushes before the engine
	// flushes by itself. 0: 2 MiB.
	MemtableBytes uint64
	// ReadOnly opens an index that exists and alters nothing; for looking at the
	// files of a bookie that does not run. Apply fails.
	ReadOnly bool
	// Fatal is told of a failed sync. It must end the process: nothing applied since
	// the last Flush can be promised any more. nil: log and exit with status 1.
	Fatal func(error)
}

// Validate reports every fault of the options.
func (o *Options) Validate() error {
	var errs []error
	if o.FS == nil {
		errs = append(errs, errors.New("index: no file system"))
	}
	if o.Dir == "" {
		errs = append(errs, errors.New("index: no folder"))
	}
	if o.CacheBytes < 0 {
		errs = append(errs, fmt.Errorf("index: cache of %d bytes", o.CacheBytes))
	}
	return errors.Join(errs...)
}

func (o *Options) setDefaults() {
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = 4 << 20
	}
	if o.MemtableBytes == 0 {
		o.MemtableBytes = 2 << 20
	}
	if o.Fatal == nil {
		log := o.Log
		o.Fatal = func(err error) {
			log.Error("index cannot be made durable, stopping", "error", err)
			os.Exit(1)
		}
	}
}

// Index is safe for concurrent use. Close may be called once, when no other
// call is running.
//
// Lookups read the engine and take no lock of ours; Apply is one at a time.
type Index struct {
	opts Options
	db   *pebble.DB

	apply sync.Mutex // serialises Apply; taken before mu

	mu         sync.RWMutex // guards the rest; no disk access under it
	tombstones tombstones
	segments   map[uint32]Segment // registered cold segments
	live       map[uint32]Live    // of all extents, by segment
	damaged    map[ledger.ID][]ledger.EntryRange

	flush flushState
}

// Open opens the index in opts.Dir, or makes an empty one. An index that cannot
// be read is ledger.ErrCorrupt; the caller may Destroy it and build a new one,
// after it has put every ledger whose record it cannot rebuild in limbo.
func Open(opts Options) (*Index, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.setDefaults()
	x := &Index{
		opts:       opts,
		tombstones: make(tombstones),
		segments:   make(map[uint32]Segment),
		live:       make(map[uint32]Live),
		damaged:    make(map[ledger.ID][]ledger.EntryRange),
	}
	x.flush.init()
	cache := pebble.NewCache(opts.CacheBytes)
	defer cache.Unref() // the DB holds its own reference
	engine := &pebble.Options{
		Cache:                       cache,
		DisableWAL:                  true, // the hot log is the log
		FS:                          engineFS{fs: opts.FS, fatal: x.fatal},
		FormatMajorVersion:          pebble.FormatValueSeparation,
		MemTableSize:                opts.MemtableBytes,
		MemTableStopWritesThreshold: 4,
		MaxOpenFiles:                64,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },
		Logger:                      engineLog{x},
		EventListener:               x.events(),
		DisableTableStats:           true,
		ReadOnly:                    opts.ReadOnly,
	}
	compactions := newCompactions()
	engine.Experimental.CompactionScheduler = compactions
	db, err := pebble.Open(opts.Dir, engine)
	if err != nil {
		return nil, x.wrap("open", err)
	}
	x.db = db
	if !opts.ReadOnly {
		compactions.begin()
	}
	if err := errors.Join(x.flush.failure(), x.load()); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return x, nil
}

// Destroy removes an index that cannot be read, with all it held.
func Destroy(fsys magvfs.FS, dir string) error {
	if err := fsys.RemoveAll(dir); err != nil {
		return fmt.Errorf("index: remove %s: %w", dir, err)
	}
	return fsys.SyncDir(filepath.Dir(dir))
}

// Close flushes and closes the index.
func (x *Index) Close() error {
	if x.opts.ReadOnly {
		return x.wrap("close", x.db.Close())
	}
	err := x.Flush()
	return errors.Join(err, x.wrap("close", x.db.Close()))
}

// wrap names the operation and turns the engine's corruption into ErrCorrupt.
// Any other error means that the answer is unknown.
func (x *Index) wrap(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case pebble.IsCorruptionError(err):
		return fmt.Errorf("index: %s: %w: %w", what, ledger.ErrCorrupt, err)
	}
	return fmt.Errorf("index: %s: %w", what, err)
}

// load checks the version and reads what is kept in memory: tombstones,
// segments, damage, and the live bytes of each segment.
func (x *Index) load() error {
	if err := x.checkVersion(); err != nil {
		return err
	}
	return errors.Join(
		x.scan(prefixTombstones, func(key, value []byte) error { return x.tombstones.load(key, value) }),
		x.scan(prefixSegment, func(key, value []byte) error {
			s, err := decodeSegment(key, value)
			x.segments[s.ID] = s
			return err
		}),
		x.scan(prefixDamage, func(key, value []byte) error {
			id, r, err := decodeDamage(key, value)
			x.damaged[id] = append(x.damaged[id], r)
			return err
		}),
		x.scan(prefixExtent, func(key, value []byte) error {
			e, err := decodeExtent(key, value)
			x.live[e.Segment] = x.live[e.Segment].plus(e.live(), 1)
			return err
		}),
	)
}

func (x *Index) checkVersion() error {
	value, closer, err := x.db.Get(keyVersion)
	if errors.Is(err, pebble.ErrNotFound) && !x.opts.ReadOnly {
		return x.wrap("write version", x.db.Set(keyVersion, []byte{formatVersion}, pebble.NoSync))
	}
	if err != nil {
		return x.wrap("read version", err)
	}
	version := append([]byte(nil), value...)
	if err := closer.Close(); err != nil {
		return x.wrap("read version", err)
	}
	if len(version) != 1 || version[0] == 0 {
		return fmt.Errorf("index: version record % x: %w", version, ledger.ErrCorrupt)
	}
	if version[0] > formatVersion {
		return fmt.Errorf("index: version %d, this build reads up to %d", version[0], formatVersion)
	}
	return nil
}

// scan calls fn for every pair under a one-byte prefix, in key order. key and
// value are valid during the call only.
func (x *Index) scan(prefix byte, fn func(key, value []byte) error) error {
	return x.scanRange([]byte{prefix}, []byte{prefix + 1}, fn)
}

func (x *Index) scanRange(start, end []byte, fn func(key, value []byte) error) error {
	it, err := x.db.NewIter(&pebble.IterOptions{LowerBound: start, UpperBound: end})
	if err != nil {
		return x.wrap("scan", err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		value, err := it.ValueAndErr()
		if err == nil {
			err = fn(it.Key(), value)
		}
		if err != nil {
			return errors.Join(x.wrap("scan", err), it.Close())
		}
	}
	return x.wrap("scan", it.Close())
}
