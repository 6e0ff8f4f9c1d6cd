package coldstore

import (
	"errors"
	"fmt"
	"io"
	"iter"

	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// maxPreadBytes bounds one read from disk, but for a single block that is larger.
const maxPreadBytes = 1 << 20

// File is a segment file open for reading. Safe for concurrent use.
type File struct {
	file     vfs.File
	id       uint32
	lifetime index.Lifetime
	size     int64
	table    *table
}

// OpenFile opens a segment file, reads its footer and checks it; ErrCorrupt if
// it is damaged. Blocks are checked when they are read.
func OpenFile(fsys vfs.FS, name string) (*File, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, fmt.Errorf("coldstore: %w", err)
	}
	file, err := readFooter(f)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("segment file %s: %w", name, err), f.Close())
	}
	return file, nil
}

func readFooter(f vfs.File) (*File, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size < headerBytes+trailerBytes {
		return nil, corrupt("file of %d bytes", size)
	}
	header, end := make([]byte, headerBytes), make([]byte, trailerBytes)
	if err := errors.Join(pread(f, header, 0), pread(f, end, size-trailerBytes)); err != nil {
		return nil, err
	}
	id, lifetime, err := decodeHeader(header)
	if err != nil {
		return nil, err
	}
	t, err := decodeTrailer(end)
	if err != nil {
		return nil, err
	}
	dataBytes := size - headerBytes - trailerBytes - int64(t.footerBytes)
	if t.segment != id || t.lifetime != lifetime || dataBytes < 0 {
		return nil, corrupt("header of segment %d and trailer of segment %d do not match", id, t.segment)
	}
	footer := make([]byte, t.footerBytes)
	if err := pread(f, footer, size-trailerBytes-int64(t.footerBytes)); err != nil {
		return nil, err
	}
	if checksum(footer) != t.footerCRC {
		return nil, corrupt("footer checksum")
	}
	table, err := decodeTable(footer, dataBytes)
	if err != nil {
		return nil, err
	}
	return &File{file: f, id: id, lifetime: lifetime, size: size, table: table}, nil
}

// pread fills p. A file that ends too early is damaged; it never was shorter. What the
// disk does not give is ErrUnknown.
func pread(f vfs.File, p []byte, off int64) error {
	n, err := f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case errors.Is(err, io.EOF):
		return corrupt("%s ends at %d, want %d", f.Name(), off+int64(n), off+int64(len(p)))
	}
	return fmt.Errorf("coldstore: read %s: %w: %w", f.Name(), ledger.ErrUnknown, err)
}

// Close closes the file.
func (f *File) Close() error { return f.file.Close() }

// ID is the number of the segment.
func (f *File) ID() uint32 { return f.id }

// Segment is how the index registers the file.
func (f *File) Segment() index.Segment {
	return index.Segment{ID: f.id, Lifetime: f.lifetime, FileBytes: f.size, DataBytes: int64(f.table.dataBytes())}
}

// Extents lists what the file holds, by (ledger, entry).
func (f *File) Extents() []index.Extent { return f.table.extents(f.id) }

// Entries yields every entry of the file in order, read a MiB at a time and
// checked. Damage is yielded as an error, and the sequence goes on with the next
// block. A body may share memory with its neighbours.
func (f *File) Entries() iter.Seq2[ledger.Entry, error] {
	return func(yield func(ledger.Entry, error) bool) {
		for i := range f.table.runs {
			r := &f.table.runs[i]
			err := f.scan(r, r.first, r.last(), nil, func(first, last ledger.EntryID, b []byte, err error) error {
				if err != nil {
					if !yield(ledger.Entry{}, fmt.Errorf("entries %d to %d of ledger %d: %w", first, last, r.ledger, err)) {
						return errStop
					}
					return nil
				}
				return eachEntry(b, r.ledger, first, last, func(e ledger.Entry, err error) error {
					if !yield(e, err) {
						return errStop
					}
					return nil
				})
			})
			if err != nil {
				return
			}
		}
	}
}

// errStop ends a scan early.
var errStop = errors.New("coldstore: stop")

// scan reads the blocks of r that hold first to last, in order, up to
// maxPreadBytes at a time, and gives each to fn, checked: b holds the entries from
// first to last of this call, its header cut off. A block that cannot be read is
// given as an error with the entries it should hold. before, if set, is asked
// before each read, with its bytes.
func (f *File) scan(r *run, first, last ledger.EntryID, before func(int) error,
	fn func(first, last ledger.EntryID, b []byte, err error) error) error {
	end := f.table.blockOf(r, last) + 1
	for i := f.table.blockOf(r, first); i < end; {
		n := f.neighbours(i, end, maxPreadBytes)
		if before != nil {
			if err := before(f.span(i, i+n)); err != nil {
				return err
			}
		}
		b, err := f.read(i, i+n)
		if err != nil && n > 1 { // perhaps what is behind is at fault
			n = 1
			b, err = f.read(i, i+1)
		}
		for ; n > 0; i, n = i+1, n-1 {
			k := f.table.blocks[i]
			from := r.first + ledger.EntryID(k.skip)
			to := from + ledger.EntryID(k.count) - 1
			if err != nil {
				if err := fn(from, to, nil, err); err != nil {
					return err
				}
				continue
			}
			data := b[:k.bytes:k.bytes]
			b = b[k.bytes:]
			if err := checkBlock(data, f.id, r, k); err != nil {
				if err := fn(from, to, nil, err); err != nil {
					return err
				}
				continue
			}
			if err := fn(from, to, data[blockHeaderBytes:], nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// neighbours is how many blocks from i on, below end, one read of about want
// bytes should take: at least one.
func (f *File) neighbours(i, end, want int) int {
	n, bytes := 1, int(f.table.blocks[i].bytes)
	for i+n < end && bytes < want && bytes+int(f.table.blocks[i+n].bytes) <= maxPreadBytes {
		bytes += int(f.table.blocks[i+n].bytes)
		n++
	}
	return n
}

// span is the length of the blocks [start, end).
func (f *File) span(start, end int) int {
	last := f.table.blocks[end-1]
	return int(last.offset + last.bytes - f.table.blocks[start].offset)
}

// read returns the blocks [start, end) as they are on disk, with one pread.
func (f *File) read(start, end int) ([]byte, error) {
	b := make([]byte, f.span(start, end))
	return b, pread(f.file, b, int64(f.table.blocks[start].offset))
}

// eachEntry gives entries first to last, which b holds one after the other, to
// fn: each checked, or the error that says why it cannot be used.
func eachEntry(b []byte, id ledger.ID, first, last ledger.EntryID, fn func(ledger.Entry, error) error) error {
	for e := first; e <= last; e++ {
		stored, rest, err := splitEntry(b)
		var entry ledger.Entry
		if err == nil {
			b = rest // else b stays, and all that follow are lost too
			entry, err = decodeEntry(stored, id, e)
		}
		if err := fn(entry, err); err != nil {
			return err
		}
	}
	return nil
}
