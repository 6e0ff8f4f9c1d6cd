package vfs

import (
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, base, err := m.walkLocked("create", name)
	if err != nil {
		return nil, err
	}
	if old, ok := d.names[base]; ok || base == "" {
		if _, isFile := old.(*memInode); !isFile {
			return nil, pathError("create", name, fmt.Errorf("%w: is a folder", fs.ErrInvalid))
		}
		m.changeLocked(&dirOp{remove: dirEntry{d, base, old}})
	}
	in := &memInode{fs: m, dirty: make(map[int64]struct{})}
	m.changeLocked(&dirOp{add: dirEntry{d, base, in}})
	return in.open(name, writable), nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) { return m.open(name, 0) }

// OpenReadWrite implements FS.
func (m *Mem) OpenReadWrite(name string) (File, error) { return m.open(name, writable) }

// OpenSynced implements FS.
func (m *Mem) OpenSynced(name string, direct bool) (File, error) {
	if direct {
		return m.open(name, writable|synced|aligned)
	}
	return m.open(name, writable|synced)
}

func (m *Mem) open(name string, mode openMode) (File, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	n, err := m.findLocked("open", name)
	if err != nil {
		return nil, err
	}
	in, ok := n.(*memInode)
	if !ok {
		return nil, pathError("open", name, fmt.Errorf("%w: is a folder", fs.ErrInvalid))
	}
	return in.open(name, mode), nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d, base, err := m.walkLocked("remove", name)
	if err != nil {
		return err
	}
	n, ok := d.names[base]
	if !ok {
		return pathError("remove", name, fs.ErrNotExist)
	}
	if sub, ok := n.(*memDir); ok && len(sub.names) > 0 {
		return pathError("remove", name, fmt.Errorf("%w: folder is not empty", fs.ErrInvalid))
	}
	m.changeLocked(&dirOp{remove: dirEntry{d, base, n}})
	return nil
}

// RemoveAll implements FS.
func (m *Mem) RemoveAll(name string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d, base, err := m.walkLocked("removeall", name)
	if err != nil || d.names[base] == nil {
		return nil // as os.RemoveAll: nothing there is fine
	}
	m.removeAllLocked(d, base)
	return nil
}

func (m *Mem) removeAllLocked(d *memDir, base string) {
	n := d.names[base]
	if sub, ok := n.(*memDir); ok {
		for _, name := range sortedNames(sub.names) {
			m.removeAllLocked(sub, name)
		}
	}
	m.changeLocked(&dirOp{remove: dirEntry{d, base, n}})
}

// Rename implements FS.
func (m *Mem) Rename(oldName, newName string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	from, fromBase, err := m.walkLocked("rename", oldName)
	if err != nil {
		return err
	}
	to, toBase, err := m.walkLocked("rename", newName)
	if err != nil {
		return err
	}
	n, ok := from.names[fromBase]
	if !ok {
		return pathError("rename", oldName, fs.ErrNotExist)
	}
	if to.names[toBase] == n {
		return nil
	}
	if sub, ok := to.names[toBase].(*memDir); ok && len(sub.names) > 0 || toBase == "" {
		return pathError("rename", newName, fs.ErrExist)
	}
	m.changeLocked(&dirOp{remove: dirEntry{from, fromBase, n}, add: dirEntry{to, toBase, n}})
	return nil
}

// Link implements FS.
func (m *Mem) Link(oldName, newName string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	n, err := m.findLocked("link", oldName)
	if err != nil {
		return err
	}
	to, base, err := m.walkLocked("link", newName)
	if err != nil {
		return err
	}
	if _, ok := n.(*memInode); !ok {
		return pathError("link", oldName, fmt.Errorf("%w: is a folder", fs.ErrInvalid))
	}
	if _, ok := to.names[base]; ok || base == "" {
		return pathError("link", newName, fs.ErrExist)
	}
	m.changeLocked(&dirOp{add: dirEntry{to, base, n}})
	return nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(dir string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d := m.root
	for _, p := range strings.Split(filepath.Clean(dir), string(filepath.Separator)) {
		if p == "" || p == "." {
			continue
		}
		switch n := d.names[p].(type) {
		case *memDir:
			d = n
		case nil:
			sub := newMemDir()
			m.changeLocked(&dirOp{add: dirEntry{d, p, sub}})
			d = sub
		default:
			return pathError("mkdir", dir, fmt.Errorf("%w: %s is not a folder", fs.ErrInvalid, p))
		}
	}
	return nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(dir string) error {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return err
	}
	d, err := m.dirLocked("syncdir", dir)
	if err != nil {
		return err
	}
	for _, op := range d.pending {
		op.makeDurable() // in the other folder of a rename too
	}
	// An earlier operation may just have been put over one that came through
	// another folder first; what counts is what the process sees.
	d.durable, d.pending = maps.Clone(d.names), nil
	return nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(dir string) ([]string, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, err := m.dirLocked("readdir", dir)
	if err != nil {
		return nil, err
	}
	return sortedNames(d.names), nil
}

func sortedNames(names map[string]node) []string {
	list := make([]string, 0, len(names))
	for name := range names {
		list = append(list, name)
	}
	sort.Strings(list)
	return list
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	n, err := m.findLocked("stat", name)
	if err != nil {
		return nil, err
	}
	info := memInfo{name: filepath.Base(name)}
	if in, ok := n.(*memInode); ok {
		info.size = int64(len(in.data))
	} else {
		info.dir = true
	}
	return info, nil
}

type memInfo struct {
	name string
	size int64
	dir  bool
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return time.Time{} }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return nil }
func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o755
	}
	return 0o644
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return nil, err
	}
	d, base, err := m.walkLocked("lock", name)
	if err != nil {
		return nil, err
	}
	if d.names[base] == nil {
		in := &memInode{fs: m, dirty: make(map[int64]struct{})}
		m.changeLocked(&dirOp{add: dirEntry{d, base, in}})
	}
	key := filepath.Clean(string(filepath.Separator) + name)
	if m.locks[key] != nil {
		return nil, fmt.Errorf("lock %s: %w", name, ErrLocked)
	}
	l := &memLock{fs: m, key: key}
	m.locks[key] = l
	return l, nil
}

type memLock struct {
	fs  *Mem
	key string
}

func (l *memLock) Close() error {
	err := l.fs.lock()
	defer l.fs.mu.Unlock()
	if err != nil {
		return err
	}
	if l.fs.locks[l.key] != l {
		return fmt.Errorf("unlock %s: %w", l.key, fs.ErrClosed)
	}
	delete(l.fs.locks, l.key)
	return nil
}

// Usage implements FS. Without a capacity the disk is a TiB.
func (m *Mem) Usage(path string) (Usage, error) {
	err := m.lock()
	defer m.mu.Unlock()
	if err != nil {
		return Usage{}, err
	}
	if _, err := m.findLocked("usage", path); err != nil {
		return Usage{}, err
	}
	total := m.capacity
	if total == 0 {
		total = 1 << 40
	}
	return Usage{TotalBytes: uint64(total), FreeBytes: uint64(max(0, total-m.used))}, nil
}
