// Package vfs is the seam between the code and the disk. Everything that
// touches files does it through an FS, so that a test can cut the power, tear a
// sector, fill the disk or fail one fsync.
//
// OS is the real one. Mem keeps files in memory and can say what a disk would
// hold after a power cut. Faults wraps either and injects errors and latency.
package vfs

import (
	"errors"
	"io"
	"io/fs"
)

// Errors a caller can act on, besides fs.ErrNotExist and fs.ErrExist. All
// implementations wrap them so that errors.Is works.
var (
	// ErrNoSpace reports a full disk (ENOSPC).
	ErrNoSpace = errors.New("vfs: no space left on device")
	// ErrLocked reports that another process holds the lock.
	ErrLocked = errors.New("vfs: locked by another process")
	// ErrCrashed is what every call on a Mem file system returns after its
	// power was cut.
	ErrCrashed = errors.New("vfs: power was cut")
)

// FS is a tree of files. Names use the host's separator. Safe for concurrent
// use.
//
// What a crash keeps: a file's bytes only up to its last Sync (or Write through
// a Synced file); a name (created, renamed, removed) only once SyncDir of its
// folder returned. Anything else may or may not survive, in any order.
type FS interface {
	// Create makes an empty file for reading and writing, replacing an old one.
	Create(name string) (File, error)
	// Open opens a file for reading.
	Open(name string) (File, error)
	// OpenReadWrite opens an existing file for reading and writing.
	OpenReadWrite(name string) (File, error)
	// OpenSynced opens an existing file for reading and writing, where WriteAt
	// returns only once its bytes are on the disk. With direct true the page cache
	// is bypassed where the file system can: offset, length and memory of each
	// WriteAt must then be multiples of Alignment (AlignedBuffer makes such
	// memory). Reads need no alignment. Where direct is not possible it falls back
	// to write and fdatasync.
	OpenSynced(name string, direct bool) (File, error)

	Remove(name string) error
	RemoveAll(name string) error
	Rename(oldName, newName string) error
	Link(oldName, newName string) error
	MkdirAll(dir string) error
	// SyncDir makes the names in dir durable.
	SyncDir(dir string) error
	// ReadDir lists the names in dir, sorted.
	ReadDir(dir string) ([]string, error)
	Stat(name string) (fs.FileInfo, error)
	// Lock takes name, made if absent, as a lock of this process until the
	// returned Closer is closed or the process ends. ErrLocked if taken.
	Lock(name string) (io.Closer, error)
	// Usage tells the size and the free bytes of the disk that holds path.
	Usage(path string) (Usage, error)
}

// Usage of a disk, in bytes.
type Usage struct {
	TotalBytes uint64
	FreeBytes  uint64
}

// File is an open file. ReadAt and WriteAt may be used concurrently; two writes
// that overlap may not.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync makes all bytes written so far durable (fdatasync). After it failed,
	// nothing may be assumed of any unsynced byte, and a later success means
	// nothing: the process has to stop.
	Sync() error
	Truncate(size int64) error
	Size() (int64, error)
	Name() string
}

// Alignment of offset, length and memory for a file opened direct, in bytes.
const Alignment = 4096
