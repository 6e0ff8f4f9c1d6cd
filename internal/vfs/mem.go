package vfs

import (
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"sync"
)

// Mem is a file system in memory that knows what a disk would hold after a
// power cut: see Image. It keeps to the crash semantics that FS states and to
// nothing stronger, so code that forgets a sync fails its tests here.
//
// Names are absolute or relative to the root, which is the same.
type Mem struct {
	mu       sync.Mutex // guards all below and all nodes
	root     *memDir
	locks    map[string]*memLock
	capacity int64 // 0: unlimited
	used     int64 // bytes of all files that have a name or are open
	dirOps   int64 // changes of names so far
	crashed  bool
}

// NewMem returns an empty file system. It holds the root folder only.
func NewMem() *Mem {
	return &Mem{root: newMemDir(), locks: make(map[string]*memLock)}
}

// node is a *memDir or a *memInode.
type node any

// memDir is a folder as the process sees it (names), as the disk has it
// (durable), and the operations that lead from one to the other.
type memDir struct {
	names   map[string]node
	durable map[string]node
	pending []*dirOp
}

func newMemDir() *memDir {
	return &memDir{names: make(map[string]node), durable: make(map[string]node)}
}

// dirOp is one change of names that no SyncDir has covered yet: add is entered
// under its name and remove taken away, together or not at all. A rename
// between two folders stands in the pending list of both.
type dirOp struct {
	add, remove dirEntry
	number      int64 // rises with every operation of the file system
	done        bool  // made durable through the other folder
}

type dirEntry struct {
	dir  *memDir // nil: none
	name string
	node node
}

func (op *dirOp) makeDurable() {
	if op.done {
		return
	}
	op.done = true
	if r := op.remove; r.dir != nil && r.dir.durable[r.name] == r.node {
		delete(r.dir.durable, r.name)
	}
	if a := op.add; a.dir != nil {
		a.dir.durable[a.name] = a.node
	}
}

// SetCapacity limits the bytes of all files together; writes beyond it fail
// with ErrNoSpace. 0 lifts the limit.
func (m *Mem) SetCapacity(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.capacity = bytes
}

// Crash cuts the power: from now on every call on m and its files fails with
// ErrCrashed. What the disk holds is for Image to say.
func (m *Mem) Crash() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.crashed = true
}

// lock takes the mutex and answers ErrCrashed after a power cut; unlock in any case.
func (m *Mem) lock() error {
	m.mu.Lock()
	if m.crashed {
		return ErrCrashed
	}
	return nil
}

func pathError(op, name string, err error) error {
	return &fs.PathError{Op: op, Path: name, Err: err}
}

// walkLocked returns the folder that holds name, and name's last element ("" for the root).
func (m *Mem) walkLocked(op, name string) (*memDir, string, error) {
	clean := filepath.Clean(string(filepath.Separator) + name)
	parts := strings.Split(strings.Trim(clean, string(filepath.Separator)), string(filepath.Separator))
	d := m.root
	for _, p := range parts[:len(parts)-1] {
		switch n := d.names[p].(type) {
		case *memDir:
			d = n
		case nil:
			return nil, "", pathError(op, name, fs.ErrNotExist)
		default:
			return nil, "", pathError(op, name, fmt.Errorf("%w: %s is not a folder", fs.ErrInvalid, p))
		}
	}
	return d, parts[len(parts)-1], nil
}

func (m *Mem) findLocked(op, name string) (node, error) {
	d, base, err := m.walkLocked(op, name)
	if err != nil {
		return nil, err
	}
	if base == "" {
		return m.root, nil
	}
	n, ok := d.names[base]
	if !ok {
		return nil, pathError(op, name, fs.ErrNotExist)
	}
	return n, nil
}

func (m *Mem) dirLocked(op, name string) (*memDir, error) {
	n, err := m.findLocked(op, name)
	if err != nil {
		return nil, err
	}
	d, ok := n.(*memDir)
	if !ok {
		return nil, pathError(op, name, fmt.Errorf("%w: not a folder", fs.ErrInvalid))
	}
	return d, nil
}

// changeLocked does op in memory and notes it as not yet durable.
func (m *Mem) changeLocked(op *dirOp) {
	m.dirOps++
	op.number = m.dirOps
	if r := op.remove; r.dir != nil {
		delete(r.dir.names, r.name)
		r.dir.pending = append(r.dir.pending, op)
		if in, ok := r.node.(*memInode); ok {
			in.links--
		}
	}
	if a := op.add; a.dir != nil {
		old := a.dir.names[a.name]
		a.dir.names[a.name] = a.node
		if a.dir != op.remove.dir {
			a.dir.pending = append(a.dir.pending, op)
		}
		if in, ok := a.node.(*memInode); ok {
			in.links++
		}
		if in, ok := old.(*memInode); ok {
			in.links--
			m.releaseLocked(in)
		}
	}
	if in, ok := op.remove.node.(*memInode); ok {
		m.releaseLocked(in)
	}
}
