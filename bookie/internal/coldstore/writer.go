package coldstore

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

const (
	fileSuffix = ".cold"
	tempSuffix = ".cold.tmp"

	// writeBytes is how much is gathered for one write.
	writeBytes = 1 << 20
	// syncBytes is how much may be written before it is synced: a large pile of
	// unwritten pages would hold up the hot log's syncs.
	syncBytes = 8 << 20
)

func fileName(dir string, id uint32) string {
	return filepath.Join(dir, fmt.Sprintf("%08d%s", id, fileSuffix))
}

// writer writes one segment. Owned by one goroutine; end with finish or abort.
//
// buf holds whole blocks that are not in the file yet and then the block being
// filled, which starts at blockStart. The first byte of buf goes to offset at.
type writer struct {
	fs       vfs.FS
	dir      string
	id       uint32
	lifetime index.Lifetime
	maxBlock int

	file     vfs.File
	buf      []byte
	at       int64
	unsynced int

	blockStart int
	filling    block // count and skip of the block being filled; count 0: none
	table      table
}

func newWriter(fsys vfs.FS, dir string, id uint32, lifetime index.Lifetime, maxBlock int) (*writer, error) {
	f, err := fsys.Create(filepath.Join(dir, fmt.Sprintf("%08d%s", id, tempSuffix)))
	if err != nil {
		return nil, fmt.Errorf("coldstore: create segment %d: %w", id, err)
	}
	return &writer{fs: fsys, dir: dir, id: id, lifetime: lifetime, maxBlock: maxBlock, file: f, buf: encodeHeader(id, lifetime)}, nil
}

// size is how long the file is so far, without its footer.
func (w *writer) size() int64 { return w.at + int64(len(w.buf)) }

// fullOfRuns reports whether the next run belongs in another segment.
func (w *writer) fullOfRuns() bool { return len(w.table.runs) == maxRuns }

// add appends an entry; entries come in rising order of (ledger, entry), without
// doubles. It refuses one that does not match its checksums.
func (w *writer) add(e *ledger.Entry) error {
	id, n := e.Envelope.Ledger, e.Envelope.Entry
	if err := e.Check(id, n); err != nil {
		return err
	}
	var r *run
	if len(w.table.runs) > 0 {
		r = &w.table.runs[len(w.table.runs)-1]
		if id < r.ledger || id == r.ledger && n <= r.last() {
			return fmt.Errorf("coldstore: entry %d of ledger %d comes after entry %d of ledger %d", n, id, r.last(), r.ledger)
		}
	}
	size := ledger.EnvelopeBytes + len(e.Body)
	newRun := r == nil || r.ledger != id || r.last()+1 != n
	if newRun || w.filling.count > 0 && len(w.buf)-w.blockStart+size > w.maxBlock {
		if err := w.endBlock(); err != nil {
			return err
		}
	}
	if newRun {
		w.table.runs = append(w.table.runs, run{ledger: id, first: n, offset: uint32(w.size()), firstBlock: uint32(len(w.table.blocks))})
		r = &w.table.runs[len(w.table.runs)-1]
	}
	if w.filling.count == 0 {
		w.blockStart = len(w.buf)
		w.filling = block{offset: uint32(w.size()), skip: r.count}
		w.buf = append(w.buf, make([]byte, blockHeaderBytes)...)
	}
	var env [ledger.EnvelopeBytes]byte
	e.Envelope.Encode(env[:])
	w.buf = append(append(w.buf, env[:]...), e.Body...)
	w.filling.count++
	w.table.entries++
	r.count++
	return nil
}

// endBlock closes the block being filled, and writes when enough has gathered.
func (w *writer) endBlock() error {
	if w.filling.count == 0 {
		return nil
	}
	r := &w.table.runs[len(w.table.runs)-1]
	k := w.filling
	k.bytes = uint32(len(w.buf) - w.blockStart)
	k.crc = encodeBlockHeader(w.buf[w.blockStart:], w.id, r, k)
	w.table.blocks = append(w.table.blocks, k)
	r.blocks++
	r.length += k.bytes
	w.filling = block{}
	if len(w.buf) < writeBytes {
		return nil
	}
	return w.write()
}

// write puts buf, which holds whole blocks, into the file.
func (w *writer) write() error {
	if _, err := w.file.WriteAt(w.buf, w.at); err != nil {
		return fmt.Errorf("coldstore: write segment %d: %w", w.id, err)
	}
	w.at += int64(len(w.buf))
	w.unsynced += len(w.buf)
	if cap(w.buf) > 4*writeBytes {
		w.buf = nil // one huge entry
	}
	w.buf = w.buf[:0]
	if w.unsynced < syncBytes {
		return nil
	}
	return w.sync()
}

// errSync marks an error after which no sync can be trusted.
var errSync = errors.New("coldstore: sync failed")

func (w *writer) sync() error {
	w.unsynced = 0
	if err := w.file.Sync(); err != nil {
		return fmt.Errorf("%w: segment %d: %w", errSync, w.id, err)
	}
	return nil
}

// finish writes the footer and gives the segment its name, durably: when it
// returns without error the segment is complete and stays.
func (w *writer) finish() (err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, w.abort())
		}
	}()
	if err := w.endBlock(); err != nil {
		return err
	}
	footer := w.table.encode()
	w.buf = append(w.buf, footer...)
	w.buf = trailer{segment: w.id, lifetime: w.lifetime, footerBytes: uint32(len(footer)), footerCRC: checksum(footer)}.appendTo(w.buf)
	if err := w.write(); err != nil {
		return err
	}
	if err := w.sync(); err != nil {
		return err
	}
	temp := w.file.Name()
	if err := w.file.Close(); err != nil {
		return fmt.Errorf("coldstore: close segment %d: %w", w.id, err)
	}
	if err := w.fs.Rename(temp, fileName(w.dir, w.id)); err != nil {
		return fmt.Errorf("coldstore: name segment %d: %w", w.id, err)
	}
	if err := w.fs.SyncDir(w.dir); err != nil {
		return fmt.Errorf("%w: name of segment %d: %w", errSync, w.id, err)
	}
	return nil // the segment is durable
}

// abort removes what was written, as far as it can; the next Open does the rest.
func (w *writer) abort() error {
	name := w.file.Name()
	return errors.Join(w.file.Close(), w.fs.Remove(name))
}

// extents of the finished segment, for the index.
func (w *writer) extents() []index.Extent { return w.table.extents(w.id) }

func (t *table) extents(segment uint32) []index.Extent {
	list := make([]index.Extent, len(t.runs))
	for i := range t.runs {
		r := &t.runs[i]
		list[i] = index.Extent{Ledger: r.ledger, First: r.first, Last: r.last(),
			Segment: segment, Offset: r.offset, Length: r.length, Count: r.count}
	}
	return list
}
