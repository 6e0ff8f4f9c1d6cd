package bookie

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/magnetar-io/magnetar/bookie/internal/coldstore"
	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/internal/ledgertable"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// What the node writes to the log besides entries:
//
//	fence      ledger, its term as 8 bytes little-endian
//	tombstone  ledger, no data: it is deleted
//	tombstone  ledger 0, an encoded chunk of the set of deleted ledgers
//	ledger     ledger, its record as the index stores it
//	ledger     ledger 0, a record in limbo: the whole bookie is in limbo
//
// The last three are whole copies of what older segments said piece by piece.
// They are repeated before those segments are recycled, so that the log alone
// always holds every record and every tombstone (M27).

const (
	hotFolder   = "hot"
	coldFolder  = "cold"
	indexFolder = "index"

	// backgroundBytes is how much a second compaction and scrub may read.
	backgroundBytes = 100 << 20
)

// openStorage opens what lies in the node's directory and takes in what it says:
// the index, then the log, which knows better, then the cold segments, for which
// the index has to know all deletions.
func (n *Node) openStorage() (err error) {
	if err := n.openIndex(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, n.closeStorage())
		}
	}()
	if err := n.openHot(); err != nil {
		return err
	}
	n.table.DropDeleted()
	n.table.DeletedLedgers(func(id ledger.ID) {
		if !n.index.Deleted(id) {
			n.upkeep.noteDeleted(id)
		}
	})
	for _, id := range n.hot.Ledgers() {
		if n.table.Deleted(id) {
			n.hot.Forget(id)
		}
	}
	if err := n.applyDeleted(context.Background()); err != nil {
		return err
	}
	if err := n.openCold(); err != nil {
		return err
	}
	return n.completeIndex()
}

// closeStorage closes what is open, in reverse order.
func (n *Node) closeStorage() error {
	var errs []error
	if n.hot != nil {
		errs = append(errs, n.hot.Close())
	}
	if n.cold != nil {
		errs = append(errs, n.cold.Close())
	}
	return errors.Join(append(errs, n.index.Close())...)
}

// openIndex opens the index. One that cannot be read is thrown away: what it held
// is in the log and in the footers of the cold segments too.
func (n *Node) openIndex() error {
	o := &n.opts
	dir := filepath.Join(o.Dir, indexFolder)
	options := index.Options{
		FS:         o.FS,
		Dir:        dir,
		Log:        o.Log.Named("index").With("bookie", o.ID),
		CacheBytes: o.MemoryBytes / 32,
		Fatal:      o.Fatal,
	}
	x, err := index.Open(options)
	if errors.Is(err, ledger.ErrCorrupt) || errors.Is(err, fs.ErrNotExist) {
		n.log.Error("the index cannot be read and is built anew", "dir", dir, "error", err)
		if err := index.Destroy(o.FS, dir); err != nil {
			return fmt.Errorf("remove %s: %w", dir, err)
		}
		x, err = index.Open(options)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	n.index = x
	x.DeletedLedgers(n.table.MergeDeleted)
	err = x.Records(func(r index.Record) error {
		n.table.MergeRecord(r.Ledger, fromIndex(r), 0)
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("read %s: %w", dir, err), x.Close())
	}
	return nil
}

func (n *Node) openCold() error {
	o := &n.opts
	dir := filepath.Join(o.Dir, coldFolder)
	cold, err := coldstore.Open(coldstore.Options{
		FS:                       o.FS,
		Dir:                      dir,
		Index:                    n.index,
		SegmentBytes:             min(256<<20, o.HotBytes/8),
		CacheBytes:               o.MemoryBytes / 8,
		BackgroundBytesPerSecond: backgroundBytes,
		Log:                      o.Log.Named("coldstore").With("bookie", o.ID),
		Metrics:                  o.Metrics,
		Fatal:                    o.Fatal,
	})
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	n.cold = cold
	return nil
}

// noteComplete is the note in an index that has all there is to know. One that is new,
// because the directory is or because it was lost, does not have it.
const noteComplete = "complete"

// completeIndex ends the building of a new index.
func (n *Node) completeIndex() error {
	note, err := n.index.Note(noteComplete)
	if err != nil {
		return fmt.Errorf("read the index: %w", err)
	}
	if note != nil {
		return nil
	}
	if err := n.limboUnrecorded(); err != nil {
		return err
	}
	// The note says that nobody has to look again, so what was found goes before it.
	if err := n.checkpoint(0); err != nil {
		return err
	}
	var b index.Batch
	b.SetNote(noteComplete, []byte{1})
	return errors.Join(n.index.Apply(&b), n.index.Flush())
}

// limboUnrecorded puts ledgers in limbo whose entries were found while the index was
// built anew, but whose records were not (M27): they may have been fenced.
func (n *Node) limboUnrecorded() error {
	for _, name := range n.cold.Unreadable() {
		n.log.Error("a cold segment cannot be read and the index is lost: absences are answered unknown, adds refused; replace this bookie's storage", "file", name)
		n.table.SetLimbo()
	}
	dir := filepath.Join(n.opts.Dir, coldFolder)
	names, err := n.opts.FS.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list %s: %w", dir, err)
	}
	for _, name := range names {
		f, err := coldstore.OpenFile(n.opts.FS, filepath.Join(dir, name))
		if errors.Is(err, ledger.ErrCorrupt) {
			continue // counted above
		}
		if err != nil {
			return fmt.Errorf("read the extents of a cold segment: %w", err)
		}
		for _, e := range f.Extents() {
			n.limboUnlessRecorded(e)
		}
		if err := f.Close(); err != nil {
			return fmt.Errorf("close %s: %w", name, err)
		}
	}
	return nil
}

func (n *Node) limboUnlessRecorded(e index.Extent) {
	g := n.table.Lock(e.Ledger)
	defer g.Unlock()
	if r, known := g.Record(); known && e.Last <= r.LastEntry {
		return
	}
	g.SetLimbo()
	g.Found(e.Last)
}

func (n *Node) openHot() error {
	o := &n.opts
	dir := filepath.Join(o.Dir, hotFolder)
	var err error
	n.hot, err = hotlog.Open(hotlog.Options{
		FS:             o.FS,
		Dir:            dir,
		SegmentBytes:   o.SegmentBytes,
		GroupBytes:     int(min(1<<20, o.SegmentBytes/4)),
		QueueBytes:     o.MemoryBytes / 4,
		TailCacheBytes: o.MemoryBytes / 4,
		SpareSegments:  int(max(2, o.HotBytes/o.SegmentBytes/4)),
		MaxDiskBytes:   o.HotBytes,
		MaxIndexBytes:  o.MemoryBytes / 8,
		NoSync:         o.NoSync,
		Fatal:          o.Fatal,
		Log:            o.Log.Named("hotlog").With("bookie", o.ID),
		Metrics:        o.Metrics,
		Rand:           o.Rand,
	}, n.replay)
	if err != nil {
		return fmt.Errorf("open %s: %w", dir, err)
	}
	for _, d := range n.hot.Damages() {
		if d.Ledger == 0 {
			n.log.Error("the log lost records and it cannot be told of which ledgers: absences are answered unknown, adds refused; replace this bookie's storage",
				"segment", d.Segment, "offset", d.Offset, "bytes", d.Length)
			n.table.SetLimbo()
			continue
		}
		g := n.table.Lock(d.Ledger)
		g.SetLimbo()
		g.Unlock()
	}
	return nil
}

// replay takes in one record of the log.
func (n *Node) replay(r hotlog.Record, p hotlog.Place) error {
	switch {
	case r.Kind == hotlog.KindTombstone && r.Ledger == 0:
		return n.table.MergeTombstones(r.Data, p.Segment)
	case r.Kind == hotlog.KindLedger && r.Ledger == 0:
		n.table.SetLimbo()
		return nil
	case r.Kind == hotlog.KindLedger:
		record, err := index.DecodeRecord(r.Ledger, r.Data)
		if err == nil {
			n.table.MergeRecord(r.Ledger, fromIndex(record), p.Segment)
		}
		return err
	}
	g := n.table.Lock(r.Ledger)
	defer g.Unlock()
	switch r.Kind {
	case hotlog.KindEntry:
		g.Added(&r.Envelope)
	case hotlog.KindFence:
		term, err := decodeTerm(r.Data)
		if err != nil {
			return fmt.Errorf("fence of ledger %d: %w", r.Ledger, err)
		}
		g.FenceDurable(term)
	case hotlog.KindTombstone:
		g.Delete()
	}
	return nil
}

func encodeTerm(term int64) []byte { return binary.LittleEndian.AppendUint64(nil, uint64(term)) }

func decodeTerm(b []byte) (int64, error) {
	if len(b) != 8 || int64(binary.LittleEndian.Uint64(b)) < 1 {
		return 0, fmt.Errorf("term % x: %w", b, ledger.ErrCorrupt)
	}
	return int64(binary.LittleEndian.Uint64(b)), nil
}

func fromIndex(r index.Record) ledgertable.Record {
	return ledgertable.Record{Term: r.Term, LastEntry: r.LastEntry, LAC: r.LAC, Class: r.Class, Limbo: r.Limbo, Created: r.Created}
}

func toIndex(id ledger.ID, r ledgertable.Record) index.Record {
	return index.Record{Ledger: id, Term: r.Term, LastEntry: r.LastEntry, LAC: r.LAC, Class: r.Class, Limbo: r.Limbo, Created: r.Created}
}
