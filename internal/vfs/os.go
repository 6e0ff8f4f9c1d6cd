package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// OS is the file system of the machine.
func OS() FS { return osFS{} }

type osFS struct{}

// wrap maps the system's errors to those of this package.
func wrap(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	return err
}

const openFlags = os.O_RDWR | unix.O_CLOEXEC

func (osFS) Create(name string) (File, error) {
	// A new inode, not a truncated old one: who has the old file open, or linked
	// under another name, keeps it.
	for {
		f, err := os.OpenFile(name, openFlags|os.O_CREATE|os.O_EXCL, 0o644)
		if errors.Is(err, fs.ErrExist) {
			if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, wrap(err)
			}
			continue
		}
		if err != nil {
			return nil, wrap(err)
		}
		return &osFile{f: f}, nil
	}
}

func (osFS) Open(name string) (File, error) { return openOS(name, os.O_RDONLY|unix.O_CLOEXEC) }

func (osFS) OpenReadWrite(name string) (File, error) { return openOS(name, openFlags) }

func openOS(name string, flags int) (File, error) {
	f, err := os.OpenFile(name, flags, 0)
	if err != nil {
		return nil, wrap(err)
	}
	return &osFile{f: f}, nil
}

func (osFS) OpenSynced(name string, direct bool) (File, error) {
	plain, err := os.OpenFile(name, openFlags|syncedFlag, 0)
	if err != nil {
		return nil, wrap(err)
	}
	s := &syncedFile{osFile: osFile{f: plain}, aligned: direct}
	if !direct {
		return s, nil
	}
	d, err := os.OpenFile(name, openFlags|syncedFlag|directFlag, 0)
	switch {
	case err == nil && directFlag != 0:
		s.direct = d
	case err == nil:
		return s, wrap(d.Close())
	case !errors.Is(err, unix.EINVAL): // EINVAL: this file system has no O_DIRECT
		return nil, errors.Join(wrap(err), plain.Close())
	}
	return s, nil
}

func (osFS) Remove(name string) error             { return wrap(os.Remove(name)) }
func (osFS) RemoveAll(name string) error          { return wrap(os.RemoveAll(name)) }
func (osFS) Rename(oldName, newName string) error { return wrap(os.Rename(oldName, newName)) }
func (osFS) Link(oldName, newName string) error   { return wrap(os.Link(oldName, newName)) }
func (osFS) MkdirAll(dir string) error            { return wrap(os.MkdirAll(dir, 0o755)) }

func (osFS) SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return wrap(err)
	}
	return wrap(errors.Join(d.Sync(), d.Close()))
}

func (osFS) ReadDir(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, wrap(err)
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name()
	}
	return names, nil
}

func (osFS) Stat(name string) (fs.FileInfo, error) {
	fi, err := os.Stat(name)
	return fi, wrap(err)
}

func (osFS) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(name, openFlags|os.O_CREATE, 0o644)
	if err != nil {
		return nil, wrap(err)
	}
	// The lock belongs to the open file: it goes with Close, or with the process,
	// and a second Lock within this process is refused too.
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR {
			break
		}
	}
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, unix.EWOULDBLOCK):
		err = ErrLocked
	}
	return nil, errors.Join(fmt.Errorf("lock %s: %w", name, err), f.Close())
}

func (osFS) Usage(path string) (Usage, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Usage{}, &fs.PathError{Op: "statfs", Path: path, Err: err}
	}
	return Usage{TotalBytes: st.Blocks * uint64(st.Bsize), FreeBytes: st.Bavail * uint64(st.Bsize)}, nil
}

// osFile is a file through the page cache.
type osFile struct{ f *os.File }

func (o *osFile) ReadAt(p []byte, off int64) (int, error) { return o.f.ReadAt(p, off) }

func (o *osFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := o.f.WriteAt(p, off)
	return n, wrap(err)
}

func (o *osFile) Close() error              { return wrap(o.f.Close()) }
func (o *osFile) Sync() error               { return wrap(fdatasync(o.f)) }
func (o *osFile) Truncate(size int64) error { return wrap(o.f.Truncate(size)) }
func (o *osFile) Name() string              { return o.f.Name() }

func (o *osFile) Size() (int64, error) {
	fi, err := o.f.Stat()
	if err != nil {
		return 0, wrap(err)
	}
	return fi.Size(), nil
}

// syncedFile is a file whose WriteAt returns once the bytes are on the disk. It
// has a second, buffered descriptor for reads, which need no alignment, and for
// writes on a file system without O_DIRECT. A direct write drops the pages it
// covers from the page cache, so reads see it.
type syncedFile struct {
	osFile              // opened O_DSYNC
	aligned bool        // opened direct: the caller keeps to Alignment
	direct  *os.File    // nil: not direct
	refused atomic.Bool // the file system took O_DIRECT at open, but refuses the write
}

func (s *syncedFile) WriteAt(p []byte, off int64) (int, error) {
	if s.aligned {
		if err := checkAligned(s.Name(), p, off); err != nil {
			return 0, err
		}
	}
	if s.direct != nil && !s.refused.Load() {
		n, err := s.direct.WriteAt(p, off)
		if !errors.Is(err, unix.EINVAL) {
			return n, wrap(err)
		}
		s.refused.Store(true)
	}
	return s.osFile.WriteAt(p, off)
}

func (s *syncedFile) Close() error {
	err := s.osFile.Close()
	if s.direct != nil {
		err = errors.Join(err, wrap(s.direct.Close()))
	}
	return err
}

// checkAligned refuses a write that a direct file could not do. It is asked on
// every file system alike, so that tests on Mem find what only a disk would.
func checkAligned(name string, p []byte, off int64) error {
	if off%Alignment != 0 || len(p)%Alignment != 0 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%Alignment != 0 {
		return &fs.PathError{Op: "write", Path: name, Err: fmt.Errorf(
			"%w: direct write of %d bytes at %d is not aligned to %d", fs.ErrInvalid, len(p), off, Alignment)}
	}
	return nil
}

// AlignedBuffer returns n zero bytes whose address is a multiple of Alignment.
func AlignedBuffer(n int) []byte {
	b := make([]byte, n+Alignment)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (Alignment - 1)
	return b[skip : skip+n : skip+n]
}

// MkdirAllSync makes dir with its parents and makes their names durable.
func MkdirAllSync(fsys FS, dir string) error {
	dir = filepath.Clean(dir)
	var missing []string // innermost first
	for d := dir; ; d = filepath.Dir(d) {
		if _, err := fsys.Stat(d); err == nil || d == filepath.Dir(d) {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		missing = append(missing, d)
	}
	if err := fsys.MkdirAll(dir); err != nil {
		return err
	}
	for i := len(missing) - 1; i >= 0; i-- {
		if err := fsys.SyncDir(filepath.Dir(missing[i])); err != nil {
			return err
		}
	}
	return nil
}
