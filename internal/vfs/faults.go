package vfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"sync/atomic"
)

// Kind of an operation on a file system.
type Kind uint8

// The kinds, first those that change something.
const (
	OpCreate Kind = iota
	OpWrite
	OpSync
	OpTruncate
	OpRemove
	OpRemoveAll
	OpRename
	OpLink
	OpMkdirAll
	OpSyncDir
	OpLock
	OpOpen
	OpOpenReadWrite
	OpOpenSynced
	OpRead
	OpSize
	OpReadDir
	OpStat
	OpUsage
	OpClose
)

var kindNames = [...]string{"create", "write", "sync", "truncate", "remove", "removeall", "rename", "link", "mkdirall",
	"syncdir", "lock", "open", "openreadwrite", "opensynced", "read", "size", "readdir", "stat", "usage", "close"}

func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return fmt.Sprintf("Kind(%d)", uint8(k))
}

// Op is one operation about to happen.
type Op struct {
	Kind    Kind
	Name    string
	NewName string // of a rename or link
	Offset  int64  // of a read or write; the size of a truncate
	Len     int    // bytes of a read or write
	N       int64  // how many operations came before, all files together
	// Change is how many operations came before that change the disk, reads and the
	// like not counted; -1 when this one does not change it. It numbers the points at
	// which a crash can be told from the one before.
	Change int64
}

// Hook sees each operation before it happens and may block to make it slow. nil
// lets it happen; an error is returned in its place, a *Fault besides may let a
// part of it happen. It is called from many goroutines at once.
type Hook func(Op) error

// Fault is an error for a Hook to return when the operation is not simply left
// undone.
type Fault struct {
	Err error
	// Bytes of a write that happen before Err. They are not durable, whatever the
	// file was opened for.
	Bytes int
	// Done lets any other operation happen, and only reports that it failed.
	Done bool
	// Then, if set, is called after that part has happened and before the caller
	// hears of it.
	Then func()
}

func (f *Fault) Error() string { return f.Err.Error() }
func (f *Fault) Unwrap() error { return f.Err }

// CrashAt returns a hook that cuts the power of m while the change numbered k
// is under way: of a write or a change of names, all is still in the air (an
// Image with KeepUnsynced above 0 may have it or parts of it), a sync has not
// returned. A hook whose k is beyond the last change does nothing: m.Crashed
// tells.
func CrashAt(m *Mem, k int64) Hook {
	return func(op Op) error {
		if op.Change != k {
			return nil
		}
		inFlight := op.Kind != OpSync && op.Kind != OpSyncDir
		return &Fault{Err: ErrCrashed, Bytes: op.Len, Done: inFlight, Then: m.Crash}
	}
}

// Crashed reports whether Crash was called.
func (m *Mem) Crashed() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.crashed
}

// Faults is a file system that asks a hook before each operation.
type Faults struct {
	inner   FS
	hook    Hook
	ops     atomic.Int64
	changes atomic.Int64
}

// NewFaults wraps inner; hook may be nil, then operations are counted only.
func NewFaults(inner FS, hook Hook) *Faults { return &Faults{inner: inner, hook: hook} }

// Ops tells how many operations there were so far.
func (f *Faults) Ops() int64 { return f.ops.Load() }

// Changes tells how many operations so far changed the disk.
func (f *Faults) Changes() int64 { return f.changes.Load() }

// ask numbers op and asks the hook. With a nil fault and error the operation
// shall happen.
func (f *Faults) ask(op Op) (*Fault, error) {
	op.N, op.Change = f.ops.Add(1)-1, -1
	if op.Kind <= OpSyncDir {
		op.Change = f.changes.Add(1) - 1
	}
	if f.hook == nil {
		return nil, nil
	}
	err := f.hook(op)
	if err == nil {
		return nil, nil
	}
	var fault *Fault
	if !errors.As(err, &fault) {
		fault = &Fault{Err: err}
	}
	return fault, fmt.Errorf("%s %s: %w", op.Kind, op.Name, err)
}

// do asks the hook and does what it lets happen.
func (f *Faults) do(op Op, fn func() error) error {
	fault, err := f.ask(op)
	if fault == nil {
		return fn()
	}
	if fault.Done {
		err = errors.Join(err, fn())
	}
	if fault.Then != nil {
		fault.Then()
	}
	return err
}

func (f *Faults) open(kind Kind, name string, fn func(string) (File, error)) (File, error) {
	var file File
	err := f.do(Op{Kind: kind, Name: name}, func() (err error) {
		file, err = fn(name)
		return err
	})
	if err != nil {
		if file != nil { // opened, but reported failed
			err = errors.Join(err, file.Close())
		}
		return nil, err
	}
	return &faultFile{File: file, fs: f}, nil
}

// Create implements FS.
func (f *Faults) Create(name string) (File, error) { return f.open(OpCreate, name, f.inner.Create) }

// Open implements FS.
func (f *Faults) Open(name string) (File, error) { return f.open(OpOpen, name, f.inner.Open) }

// OpenReadWrite implements FS.
func (f *Faults) OpenReadWrite(name string) (File, error) {
	return f.open(OpOpenReadWrite, name, f.inner.OpenReadWrite)
}

// OpenSynced implements FS.
func (f *Faults) OpenSynced(name string, direct bool) (File, error) {
	return f.open(OpOpenSynced, name, func(name string) (File, error) { return f.inner.OpenSynced(name, direct) })
}

// Remove implements FS.
func (f *Faults) Remove(name string) error {
	return f.do(Op{Kind: OpRemove, Name: name}, func() error { return f.inner.Remove(name) })
}

// RemoveAll implements FS.
func (f *Faults) RemoveAll(name string) error {
	return f.do(Op{Kind: OpRemoveAll, Name: name}, func() error { return f.inner.RemoveAll(name) })
}

// Rename implements FS.
func (f *Faults) Rename(oldName, newName string) error {
	return f.do(Op{Kind: OpRename, Name: oldName, NewName: newName}, func() error { return f.inner.Rename(oldName, newName) })
}

// Link implements FS.
func (f *Faults) Link(oldName, newName string) error {
	return f.do(Op{Kind: OpLink, Name: oldName, NewName: newName}, func() error { return f.inner.Link(oldName, newName) })
}

// MkdirAll implements FS.
func (f *Faults) MkdirAll(dir string) error {
	return f.do(Op{Kind: OpMkdirAll, Name: dir}, func() error { return f.inner.MkdirAll(dir) })
}

// SyncDir implements FS.
func (f *Faults) SyncDir(dir string) error {
	return f.do(Op{Kind: OpSyncDir, Name: dir}, func() error { return f.inner.SyncDir(dir) })
}

// ReadDir implements FS.
func (f *Faults) ReadDir(dir string) (names []string, err error) {
	err = f.do(Op{Kind: OpReadDir, Name: dir}, func() (err error) { names, err = f.inner.ReadDir(dir); return err })
	return names, err
}

// Stat implements FS.
func (f *Faults) Stat(name string) (fi fs.FileInfo, err error) {
	err = f.do(Op{Kind: OpStat, Name: name}, func() (err error) { fi, err = f.inner.Stat(name); return err })
	return fi, err
}

// Lock implements FS.
func (f *Faults) Lock(name string) (l io.Closer, err error) {
	err = f.do(Op{Kind: OpLock, Name: name}, func() (err error) { l, err = f.inner.Lock(name); return err })
	return l, err
}

// Usage implements FS.
func (f *Faults) Usage(path string) (u Usage, err error) {
	err = f.do(Op{Kind: OpUsage, Name: path}, func() (err error) { u, err = f.inner.Usage(path); return err })
	return u, err
}

// faultFile is an open file that asks the hook. Name is not asked for.
type faultFile struct {
	File
	fs *Faults
}

// unsyncedWriter is a file that can write without making durable, although it
// was opened synced.
type unsyncedWriter interface {
	write(p []byte, off int64) (int, error)
}

func (f *faultFile) WriteAt(p []byte, off int64) (int, error) {
	fault, err := f.fs.ask(Op{Kind: OpWrite, Name: f.Name(), Offset: off, Len: len(p)})
	if fault == nil {
		return f.File.WriteAt(p, off)
	}
	n := 0
	if part := p[:min(max(fault.Bytes, 0), len(p))]; len(part) > 0 {
		write := f.File.WriteAt
		if u, ok := f.File.(unsyncedWriter); ok {
			write = u.write
		}
		var werr error
		n, werr = write(part, off)
		err = errors.Join(err, werr)
	}
	if fault.Then != nil {
		fault.Then()
	}
	return n, err
}

func (f *faultFile) ReadAt(p []byte, off int64) (n int, err error) {
	err = f.fs.do(Op{Kind: OpRead, Name: f.Name(), Offset: off, Len: len(p)}, func() (err error) {
		n, err = f.File.ReadAt(p, off)
		return err
	})
	return n, err
}

func (f *faultFile) Sync() error {
	return f.fs.do(Op{Kind: OpSync, Name: f.Name()}, f.File.Sync)
}

func (f *faultFile) Truncate(size int64) error {
	return f.fs.do(Op{Kind: OpTruncate, Name: f.Name(), Offset: size}, func() error { return f.File.Truncate(size) })
}

func (f *faultFile) Size() (n int64, err error) {
	err = f.fs.do(Op{Kind: OpSize, Name: f.Name()}, func() (err error) { n, err = f.File.Size(); return err })
	return n, err
}

func (f *faultFile) Close() error {
	return f.fs.do(Op{Kind: OpClose, Name: f.Name()}, f.File.Close)
}
