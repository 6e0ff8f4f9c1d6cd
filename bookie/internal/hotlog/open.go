package hotlog

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"sync"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Open opens the log in opts.Dir, or begins one. It calls replay (nil: nobody) with
// every record in the log, oldest first, before it returns: entries with their
// envelope but without Body, other kinds with Data, which replay may keep. Entries
// of a ledger that was forgotten come back, for Forget is not recorded here; the
// caller forgets again what it knows to be deleted.
//
// What is damaged is reported by Damages, not as an error. Errors are: a disk that
// fails, a file of a newer version (ErrVersion), or what replay returned.
func Open(opts Options, replay func(Record, Place) error) (*Log, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	if replay == nil {
		replay = func(Record, Place) error { return nil }
	}
	m, err := newMetrics(opts.Metrics)
	if err != nil {
		return nil, err
	}
	l := &Log{
		opts: opts, folder: folder{fs: opts.FS, dir: opts.Dir, noSync: opts.NoSync}, metrics: m,
		segments: newSegments(), end: vfs.AlignedBuffer(blockBytes), stopped: make(chan struct{}),
	}
	l.wake = sync.NewCond(&l.mu)
	l.tail = tail{pool: &l.pool, budget: max(opts.TailCacheBytes, 0)}
	if err := l.start(replay); err != nil {
		return nil, errors.Join(err, l.segments.close())
	}
	return l, nil
}

// start reads what is there, makes the segment to write to, and starts the goroutines.
func (l *Log) start(replay func(Record, Place) error) error {
	mkdir := func() error { return vfs.MkdirAllSync(l.opts.FS, l.opts.Dir) }
	if l.opts.NoSync {
		l.opts.Log.Warn("syncing is off: a crash of the machine loses acknowledged data")
		mkdir = func() error { return l.opts.FS.MkdirAll(l.opts.Dir) }
	}
	if err := mkdir(); err != nil {
		return fmt.Errorf("hotlog: make folder: %w", err)
	}
	listed, err := l.folder.list()
	if err != nil {
		return err
	}
	if err := l.tidy(&listed); err != nil {
		return err
	}
	r := recovery{log: l, listed: listed}
	if err := r.run(replay); err != nil {
		return err
	}

	l.plan = plan{segment: listed.highest + 1, offset: blockBytes, secret: l.opts.Rand()}
	seeds := l.plan // a copy, for the plan is Log.mu's
	k := &keeper{
		folder: &l.folder, opts: &l.opts, metrics: l.metrics, segments: l.segments, seed: seeds.seed, fail: l.fail,
		toSeal: r.toSeal, spares: r.spares, zeros: vfs.AlignedBuffer(int(min(maxZeroBytes, l.opts.SegmentBytes/16)) &^ (blockBytes - 1)), stopped: make(chan struct{}),
	}
	k.changed = sync.NewCond(&k.mu)
	if l.active, err = k.makeSegment(l.plan.segment); err != nil {
		return err
	}
	l.segments.add(l.active)
	k.active, k.point, l.keeper = l.active, blockBytes, k
	go l.loop()
	go k.run()
	return nil
}

// tidy removes what a crash left half done and nobody needs.
func (l *Log) tidy(listed *listing) error {
	remove := func(id uint32, suffix string) error {
		err := l.opts.FS.Remove(l.folder.name(id, suffix))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("hotlog: tidy up: %w", err)
		}
		return nil
	}
	for _, id := range listed.temps {
		if err := remove(id, tmpSuffix); err != nil {
			return err
		}
	}
	for _, id := range listed.sidecars {
		if _, ok := slices.BinarySearch(listed.logs, id); !ok {
			if err := remove(id, sidecarSuffix); err != nil {
				return err
			}
		}
	}
	return nil
}

// recovery reads the segments of earlier runs.
type recovery struct {
	log    *Log
	listed listing
	found  []*found
	toSeal []*segmentFile
	spares []spare
}

// found is a segment of an earlier run. Either its index file was whole, or it was scanned.
type found struct {
	*segmentFile
	scanned *scanner // nil: the index file was read
}

// used reports that at least one group was ever written to the segment.
func (f *found) used() bool { return f.content.end > blockBytes || len(f.content.damages) > 0 }

func (r *recovery) run(replay func(Record, Place) error) error {
	for _, id := range r.listed.logs {
		f, err := r.read(id)
		if err != nil {
			return err
		}
		r.log.segments.add(f.segmentFile) // from here on closed with the others
		r.found = append(r.found, f)
	}
	for i, f := range r.found {
		later := slices.ContainsFunc(r.found[i+1:], (*found).used)
		if err := r.settleEnd(f, later); err != nil {
			return err
		}
	}
	for _, f := range r.found {
		if err := r.keepOrRetire(f, replay); err != nil {
			return err
		}
	}
	for _, id := range r.listed.spares {
		info, err := r.log.opts.FS.Stat(r.log.folder.name(id, spareSuffix))
		if err != nil {
			return fmt.Errorf("hotlog: spare %d: %w", id, err)
		}
		r.spares = append(r.spares, spare{number: id, bytes: info.Size()})
	}
	return nil
}

// read finds out what is in a segment, by its index file if there is a good one.
func (r *recovery) read(id uint32) (*found, error) {
	d := &r.log.folder
	file, err := d.fs.Open(d.name(id, logSuffix))
	if err != nil {
		return nil, fmt.Errorf("hotlog: open segment %d: %w", id, err)
	}
	f, err := r.readFile(id, file)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return f, nil
}

func (r *recovery) readFile(id uint32, file vfs.File) (*found, error) {
	d, log := &r.log.folder, r.log.opts.Log
	size, err := file.Size()
	if err != nil {
		return nil, fmt.Errorf("hotlog: segment %d: %w", id, err)
	}
	block := make([]byte, min(size, blockBytes))
	if n, err := file.ReadAt(block, 0); err != nil && !(errors.Is(err, io.EOF) && n == len(block)) {
		return nil, fmt.Errorf("hotlog: segment %d: %w", id, err)
	}
	seed, headerErr := decodeHeader(block, id)
	if errors.Is(headerErr, ErrVersion) {
		return nil, headerErr
	}
	f := &found{segmentFile: newSegment(id, seed, file, size)}
	if _, ok := slices.BinarySearch(r.listed.sidecars, id); ok {
		seed, content, bytes, err := d.readSidecar(id)
		if err == nil {
			f.seed, f.content, f.sealed = seed, content, true
			f.sidecarBytes.Store(bytes)
			return f, nil
		}
		if !errors.Is(err, ledger.ErrCorrupt) {
			return nil, fmt.Errorf("hotlog: index of segment %d: %w", id, err)
		}
		log.Warn("index file is corrupt, reading the segment instead", "segment", id, "error", err)
	}
	if headerErr != nil {
		// Without its seed no frame can be told from any other bytes.
		log.Error("segment has lost its header and its index file: all of it is unknown", "segment", id, "error", headerErr)
		f.content.damages = []Damage{{Segment: id, Length: uint32(min(size, maxSegmentBytes))}}
		return f, nil
	}
	if f.scanned, err = scan(file, id, seed); err != nil {
		return nil, fmt.Errorf("hotlog: segment %d: %w", id, err)
	}
	f.content = f.scanned.s
	return f, nil
}

// settleEnd decides what the bytes after the last good group of a scanned segment
// are. Was a later segment written to, then this one had its end group synced
// before, and if that is not what stands last, something after it is lost. Else it
// is a torn group, which nobody was told of; it is cut off durably, so that
// it is never judged again when later segments exist.
func (r *recovery) settleEnd(f *found, later bool) error {
	sc := f.scanned
	if sc == nil || sc.ended || f.content.end >= f.fileBytes.Load() {
		return nil
	}
	if later {
		if err := sc.salvage(sc.w.size); err != nil {
			return fmt.Errorf("hotlog: segment %d: %w", f.id, err)
		}
		f.content = sc.s
		return nil
	}
	if sc.empty() {
		return nil // about to be retired whole
	}
	if err := r.log.folder.truncate(f.id, f.content.end); err != nil {
		return fmt.Errorf("hotlog: cut the tail of segment %d: %w", f.id, err)
	}
	f.fileBytes.Store(f.content.end)
	return nil
}

// keepOrRetire replays a segment that holds something, and makes a spare of one that
// does not.
func (r *recovery) keepOrRetire(f *found, replay func(Record, Place) error) error {
	t := r.log.segments
	if f.content.records == 0 && len(f.content.damages) == 0 {
		hasSidecar := f.sealed
		f.sealed = true // there is nothing to seal
		if _, err := t.remove(f.id); err != nil {
			return err
		}
		if err := f.file.Close(); err != nil {
			return err
		}
		if err := r.log.folder.retire(f.id, hasSidecar); err != nil {
			return fmt.Errorf("hotlog: retire segment %d: %w", f.id, err)
		}
		r.spares = append(r.spares, spare{number: f.id, bytes: f.fileBytes.Load()})
		return nil
	}
	for _, d := range f.content.damages {
		r.log.opts.Log.Error("segment is damaged", "segment", f.id, "offset", d.Offset, "bytes", d.Length, "ledger", d.Ledger)
	}
	err := f.content.each(f.id, func(rec Record, p Place) error {
		t.mu.Lock()
		t.enterLocked(&rec, p)
		t.mu.Unlock()
		return replay(rec, p)
	})
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	f.damages, f.usedBytes = f.content.damages, f.content.end
	if f.sealed {
		f.content = summary{}
	} else {
		r.toSeal = append(r.toSeal, f.segmentFile)
	}
	return nil
}
