package index

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	magvfs "github.com/magnetar-io/magnetar/internal/vfs"
)

// engineFS lets the key-value engine work on our file system, so that a crash
// test covers it too.
type engineFS struct {
	fs magvfs.FS
	// fatal is told of the first change that the disk refused for another reason
	// than being full. The engine cannot live with that, it panics or asks for the end
	// of the process on goroutines of its own. Where fatal returns, as in tests, it is
	// told that all is well from then on, so that it can be closed; nothing is promised
	// any more, and the index answers every call with its error.
	fatal func(error)
}

// fullDiskPause slows the engine down on a full disk: it repeats a failed flush
// at once and for ever.
const fullDiskPause = 50 * time.Millisecond

// changed is what the engine hears of a change of the disk that ended with err.
func (e engineFS) changed(err error) error {
	switch {
	case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, fs.ErrExist):
		return err
	case errors.Is(err, magvfs.ErrNoSpace):
		time.Sleep(fullDiskPause)
		return err
	}
	e.fatal(err)
	return nil
}

// written wraps a file opened for writing.
func (e engineFS) written(f magvfs.File, err error, opts []vfs.OpenOption) (vfs.File, error) {
	if err = e.changed(err); err != nil {
		return nil, err
	}
	if f == nil {
		f = noFile{}
	}
	return e.open(f, opts), nil
}

func (e engineFS) open(f magvfs.File, opts []vfs.OpenOption) vfs.File {
	file := &engineFile{File: f, fs: e}
	for _, o := range opts {
		o.Apply(file)
	}
	return file
}

func (e engineFS) Create(name string, _ vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := e.fs.Create(name)
	return e.written(f, err, nil)
}

func (e engineFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := e.fs.Open(name)
	if err != nil {
		return nil, err
	}
	return e.open(f, opts), nil
}

// OpenReadWrite makes the file if it is absent, as the engine expects.
func (e engineFS) OpenReadWrite(name string, _ vfs.DiskWriteCategory, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := e.fs.OpenReadWrite(name)
	if errors.Is(err, fs.ErrNotExist) {
		f, err = e.fs.Create(name)
	}
	return e.written(f, err, opts)
}

func (e engineFS) OpenDir(name string) (vfs.File, error) {
	fi, err := e.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	if !fi.IsDir() {
		return nil, &fs.PathError{Op: "opendir", Path: name, Err: fs.ErrInvalid}
	}
	return &engineDir{fs: e, name: name}, nil
}

// ReuseForWrite keeps the old bytes until they are overwritten.
func (e engineFS) ReuseForWrite(oldName, newName string, category vfs.DiskWriteCategory) (vfs.File, error) {
	if err := e.Rename(oldName, newName); err != nil {
		return nil, err
	}
	return e.OpenReadWrite(newName, category)
}

func (e engineFS) List(dir string) ([]string, error) { return e.fs.ReadDir(dir) }

func (e engineFS) Stat(name string) (vfs.FileInfo, error) {
	fi, err := e.fs.Stat(name)
	if err != nil {
		return nil, err
	}
	return engineFileInfo{fi}, nil
}

func (e engineFS) GetDiskUsage(path string) (vfs.DiskUsage, error) {
	u, err := e.fs.Usage(path)
	return vfs.DiskUsage{AvailBytes: u.FreeBytes, TotalBytes: u.TotalBytes, UsedBytes: u.TotalBytes - u.FreeBytes}, err
}

func (e engineFS) Link(oldName, newName string) error { return e.changed(e.fs.Link(oldName, newName)) }
func (e engineFS) Remove(name string) error           { return e.fs.Remove(name) }
func (e engineFS) RemoveAll(name string) error        { return e.fs.RemoveAll(name) }
func (e engineFS) Rename(oldName, newName string) error {
	return e.changed(e.fs.Rename(oldName, newName))
}
func (e engineFS) MkdirAll(dir string, _ os.FileMode) error { return e.changed(e.fs.MkdirAll(dir)) }
func (e engineFS) Lock(name string) (io.Closer, error)      { return e.fs.Lock(name) }
func (e engineFS) PathBase(path string) string              { return filepath.Base(path) }
func (e engineFS) PathJoin(elem ...string) string           { return filepath.Join(elem...) }
func (e engineFS) PathDir(path string) string               { return filepath.Dir(path) }
func (e engineFS) Unwrap() vfs.FS                           { return nil }

// engineFileInfo adds the device, which we do not tell.
type engineFileInfo struct{ fs.FileInfo }

func (engineFileInfo) DeviceID() vfs.DeviceID { return vfs.DeviceID{} }

// engineFile adds a position to a file. The engine reads or writes a file in
// order, from one goroutine, and does not mix the two.
type engineFile struct {
	magvfs.File
	fs       engineFS
	position int64
}

func (f *engineFile) Read(p []byte) (int, error) {
	n, err := f.ReadAt(p, f.position)
	f.position += int64(n)
	if n > 0 && errors.Is(err, io.EOF) {
		err = nil // the next call says so
	}
	return n, err
}

func (f *engineFile) Write(p []byte) (int, error) {
	n, err := f.WriteAt(p, f.position)
	f.position += int64(n)
	return n, err
}

func (f *engineFile) WriteAt(p []byte, off int64) (int, error) {
	n, err := f.File.WriteAt(p, off)
	if err == nil {
		return n, nil
	}
	if err = f.fs.changed(err); err == nil {
		n = len(p)
	}
	return n, err
}

func (f *engineFile) Sync() error { return f.fs.changed(f.File.Sync()) }

func (f *engineFile) Stat() (vfs.FileInfo, error) {
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	return engineFileInfo{fileSize{name: filepath.Base(f.Name()), size: size}}, nil
}

// Preallocate is advice; a file system without it works the same.
func (f *engineFile) Preallocate(_, _ int64) error { return nil }

// Prefetch is advice.
func (f *engineFile) Prefetch(_, _ int64) error { return nil }

func (f *engineFile) Fd() uintptr     { return vfs.InvalidFd }
func (f *engineFile) SyncData() error { return f.Sync() }

func (f *engineFile) SyncTo(int64) (bool, error) {
	err := f.Sync()
	return err == nil, err
}

// fileSize is what can be told of an open file.
type fileSize struct {
	name string
	size int64
}

func (s fileSize) Name() string       { return s.name }
func (s fileSize) Size() int64        { return s.size }
func (s fileSize) Mode() fs.FileMode  { return 0o644 }
func (s fileSize) ModTime() time.Time { return time.Time{} }
func (s fileSize) IsDir() bool        { return false }
func (s fileSize) Sys() any           { return nil }

// engineDir is a folder opened to be synced.
type engineDir struct {
	fs   engineFS
	name string
}

func (d *engineDir) Sync() error { return d.fs.changed(d.fs.fs.SyncDir(d.name)) }

func (d *engineDir) fault(op string) error {
	return &fs.PathError{Op: op, Path: d.name, Err: fs.ErrInvalid}
}

func (d *engineDir) SyncData() error                    { return d.Sync() }
func (d *engineDir) SyncTo(int64) (bool, error)         { return false, nil }
func (d *engineDir) Close() error                       { return nil }
func (d *engineDir) Read([]byte) (int, error)           { return 0, d.fault("read") }
func (d *engineDir) ReadAt([]byte, int64) (int, error)  { return 0, d.fault("read") }
func (d *engineDir) Write([]byte) (int, error)          { return 0, d.fault("write") }
func (d *engineDir) WriteAt([]byte, int64) (int, error) { return 0, d.fault("write") }
func (d *engineDir) Preallocate(int64, int64) error     { return nil }
func (d *engineDir) Prefetch(int64, int64) error        { return nil }
func (d *engineDir) Fd() uintptr                        { return vfs.InvalidFd }
func (d *engineDir) Stat() (vfs.FileInfo, error)        { return d.fs.Stat(d.name) }

// noFile stands for a file that the disk refused to make.
type noFile struct{}

func (noFile) ReadAt([]byte, int64) (int, error)      { return 0, io.EOF }
func (noFile) WriteAt(p []byte, _ int64) (int, error) { return len(p), nil }
func (noFile) Close() error                           { return nil }
func (noFile) Sync() error                            { return nil }
func (noFile) Truncate(int64) error                   { return nil }
func (noFile) Size() (int64, error)                   { return 0, nil }
func (noFile) Name() string                           { return "" }
