package vfs

import (
	"fmt"
	"io"
	"io/fs"
)

// SectorBytes is the unit in which a disk loses what was not synced.
const SectorBytes = 512

// memInode is a file as the process sees it (data), as the disk surely has it
// (durable), and the sectors in which the two may differ. Guarded by fs.mu.
//
// Invariant: outside dirty sectors, data and durable are equal as far as both reach.
type memInode struct {
	fs      *Mem
	data    []byte
	durable []byte
	dirty   map[int64]struct{} // by sector number
	links   int                // names that lead here
	opens   int                // open handles
}

type openMode uint8

const (
	writable openMode = 1 << iota
	synced
	aligned
)

func (in *memInode) open(name string, mode openMode) *memFile {
	in.opens++
	return &memFile{in: in, name: name, mode: mode}
}

// releaseLocked gives the space back once no name and no handle is left.
func (m *Mem) releaseLocked(in *memInode) {
	if in.links == 0 && in.opens == 0 {
		m.used -= int64(len(in.data))
	}
}

// resizeLocked sets the size as the process sees it; new bytes are zero.
func (in *memInode) resizeLocked(size int64) error {
	old := int64(len(in.data))
	if grow := size - old; grow > 0 && in.fs.capacity > 0 && in.fs.used+grow > in.fs.capacity {
		return ErrNoSpace
	}
	in.fs.used += size - old
	if size <= old {
		clear(in.data[size:])
		in.data = in.data[:size]
	} else if size <= int64(cap(in.data)) {
		in.data = in.data[:size]
	} else {
		bigger := make([]byte, size, max(size, 2*old))
		copy(bigger, in.data)
		in.data = bigger
	}
	in.touchLocked(min(size, old), max(size, old))
	return nil
}

// touchLocked marks the sectors of [start, end) as differing from the disk.
func (in *memInode) touchLocked(start, end int64) {
	if start >= end {
		return
	}
	for s := start / SectorBytes; s*SectorBytes < end; s++ {
		in.dirty[s] = struct{}{}
	}
}

func (in *memInode) writeLocked(p []byte, off int64) (int, error) {
	end := off + int64(len(p))
	if end > int64(len(in.data)) {
		if err := in.resizeLocked(end); err != nil {
			return 0, err
		}
	}
	copy(in.data[off:], p)
	in.touchLocked(off, end)
	return len(p), nil
}

// syncLocked makes the dirty sectors of [start, end), and the size, durable.
func (in *memInode) syncLocked(start, end int64) {
	in.durable = resized(in.durable, len(in.data))
	size := int64(len(in.data))
	for s := range in.dirty {
		first, last := s*SectorBytes, (s+1)*SectorBytes
		if last <= start || first >= end {
			continue
		}
		if first < size {
			copy(in.durable[first:], in.data[first:min(last, size)])
		}
		delete(in.dirty, s)
	}
}

// resized returns b with n bytes; those past the old end are zero.
func resized(b []byte, n int) []byte {
	if n <= cap(b) {
		if n > len(b) {
			clear(b[len(b):n])
		}
		return b[:n]
	}
	bigger := make([]byte, n, max(n, 2*len(b)))
	copy(bigger, b)
	return bigger
}

// memFile is an open handle.
type memFile struct {
	in     *memInode
	name   string
	mode   openMode
	closed bool
}

// begin locks the file system for one call; the caller unlocks in any case.
func (f *memFile) begin(op string, need openMode) error {
	if err := f.in.fs.lock(); err != nil {
		return err
	}
	switch {
	case f.closed:
		return pathError(op, f.name, fs.ErrClosed)
	case f.mode&need != need:
		return pathError(op, f.name, fs.ErrPermission)
	}
	return nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	err := f.begin("read", 0)
	defer f.in.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, pathError("read", f.name, fs.ErrInvalid)
	}
	if off >= int64(len(f.in.data)) {
		if len(p) == 0 {
			return 0, nil
		}
		return 0, io.EOF
	}
	n := copy(p, f.in.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	if f.mode&aligned != 0 {
		if err := checkAligned(f.name, p, off); err != nil {
			return 0, err
		}
	}
	n, err := f.write(p, off)
	if err != nil || f.mode&synced == 0 {
		return n, err
	}
	err = f.begin("write", writable)
	defer f.in.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	f.in.syncLocked(off, off+int64(len(p)))
	return n, nil
}

// write puts p into the file without making it durable, also in a file opened
// synced. Faults uses it for a write that the power cut interrupts.
func (f *memFile) write(p []byte, off int64) (int, error) {
	err := f.begin("write", writable)
	defer f.in.fs.mu.Unlock()
	switch {
	case err != nil:
		return 0, err
	case off < 0:
		return 0, pathError("write", f.name, fs.ErrInvalid)
	}
	n, err := f.in.writeLocked(p, off)
	if err != nil {
		return n, fmt.Errorf("write %s: %w", f.name, err)
	}
	return n, nil
}

func (f *memFile) Sync() error {
	err := f.begin("sync", 0)
	defer f.in.fs.mu.Unlock()
	if err != nil {
		return err
	}
	f.in.syncLocked(0, int64(max(len(f.in.data), len(f.in.durable)))+SectorBytes)
	return nil
}

func (f *memFile) Truncate(size int64) error {
	err := f.begin("truncate", writable)
	defer f.in.fs.mu.Unlock()
	switch {
	case err != nil:
		return err
	case size < 0:
		return pathError("truncate", f.name, fs.ErrInvalid)
	}
	return f.in.resizeLocked(size)
}

func (f *memFile) Size() (int64, error) {
	err := f.begin("size", 0)
	defer f.in.fs.mu.Unlock()
	if err != nil {
		return 0, err
	}
	return int64(len(f.in.data)), nil
}

func (f *memFile) Close() error {
	err := f.begin("close", 0)
	defer f.in.fs.mu.Unlock()
	if err != nil {
		return err
	}
	f.closed = true
	f.in.opens--
	f.in.fs.releaseLocked(f.in)
	return nil
}

func (f *memFile) Name() string { return f.name }
