package vfs

import (
	"math/rand/v2"
	"slices"
	"sort"
)

// ImageOptions say how much of what was not synced a power cut leaves behind.
type ImageOptions struct {
	// Rand is the source of chance; nil: math/rand/v2.
	Rand func() uint64
	// KeepUnsynced is the probability with which each sector of unsynced data, each
	// unsynced size and each unsynced change of a name survives. 0: the disk holds
	// exactly what was synced; 1: all that was written.
	KeepUnsynced float64
	// OrderedNames keeps changes of names in their order, over all folders: one that
	// survives is preceded by all before it, as on ext4 and XFS, which write them to
	// one log. Code that leans on it (the key-value engine does: it renames a marker
	// before it syncs the folder with the file the marker names) works only there.
	OrderedNames bool
	// TornSectors lets a sector that survives have old bytes in its front or back part.
	TornSectors bool
}

// Image returns what the disk holds if the power is cut now (or was cut by
// Crash): a new, usable file system without locks. m is not changed, and several
// images may be taken of it. A rename survives whole or not at all; apart from
// that, and unless OrderedNames is set, changes of names survive independently of
// each other, and in any case of the data.
func (m *Mem) Image(opts ImageOptions) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	if opts.Rand == nil {
		opts.Rand = rand.Uint64
	}
	c := imager{ImageOptions: opts, to: NewMem(), copied: make(map[node]node)}
	c.to.capacity = m.capacity
	if opts.OrderedNames {
		c.chooseLast(m.root)
	}
	c.to.root = c.dir(m.root)
	return c.to
}

// imager copies one tree. A node with several names is copied once.
type imager struct {
	ImageOptions
	to     *Mem
	copied map[node]node
	kept   map[*dirOp]bool
	last   int64 // with OrderedNames: the last change of names that survives
}

// chooseLast draws the last change of names that survives.
func (c *imager) chooseLast(root *memDir) {
	var numbers []int64
	seen := make(map[*memDir]bool)
	var walk func(d *memDir)
	walk = func(d *memDir) {
		if seen[d] {
			return
		}
		seen[d] = true
		for _, op := range d.pending {
			if !op.done {
				numbers = append(numbers, op.number)
			}
		}
		for _, names := range []map[string]node{d.names, d.durable} {
			for _, n := range names {
				if sub, ok := n.(*memDir); ok {
					walk(sub)
				}
			}
		}
	}
	walk(root)
	slices.Sort(numbers)
	switch n := int64(len(numbers)); {
	case n == 0 || c.KeepUnsynced <= 0:
	case c.KeepUnsynced >= 1:
		c.last = numbers[n-1]
	default:
		if i := c.below(n + 1); i > 0 {
			c.last = numbers[i-1]
		}
	}
}

func (c *imager) chance(p float64) bool {
	if p <= 0 {
		return false
	}
	return float64(c.Rand()>>11)/(1<<53) < p
}

func (c *imager) below(n int64) int64 { return int64(c.Rand() % uint64(n)) }

// keep decides once for each operation, also if it stands in two folders.
func (c *imager) keep(op *dirOp) bool {
	if op.done {
		return false // the durable names have it
	}
	if c.OrderedNames {
		return op.number <= c.last
	}
	k, decided := c.kept[op]
	if !decided {
		k = c.chance(c.KeepUnsynced)
		if c.kept == nil {
			c.kept = make(map[*dirOp]bool)
		}
		c.kept[op] = k
	}
	return k
}

func (c *imager) dir(d *memDir) *memDir {
	if done, ok := c.copied[d]; ok {
		return done.(*memDir)
	}
	names := make(map[string]node, len(d.durable))
	for name, n := range d.durable {
		names[name] = n
	}
	for _, op := range d.pending {
		if !c.keep(op) {
			continue
		}
		if r := op.remove; r.dir == d && names[r.name] == r.node {
			delete(names, r.name)
		}
		if a := op.add; a.dir == d {
			names[a.name] = a.node
		}
	}
	out := newMemDir()
	c.copied[d] = out
	for _, name := range sortedNames(names) {
		var n node
		switch from := names[name].(type) {
		case *memDir:
			n = c.dir(from)
		case *memInode:
			in := c.inode(from)
			in.links++
			n = in
		}
		out.names[name], out.durable[name] = n, n
	}
	return out
}

func (c *imager) inode(in *memInode) *memInode {
	if done, ok := c.copied[in]; ok {
		return done.(*memInode)
	}
	data := resized(append([]byte(nil), in.durable...), int(c.size(in)))
	dirty := make([]int64, 0, len(in.dirty))
	for s := range in.dirty {
		dirty = append(dirty, s)
	}
	sort.Slice(dirty, func(i, j int) bool { return dirty[i] < dirty[j] })
	for _, s := range dirty {
		if !c.chance(c.KeepUnsynced) {
			continue
		}
		start, end := s*SectorBytes, (s+1)*SectorBytes
		if c.TornSectors && c.chance(0.25) {
			if cut := start + c.below(SectorBytes); c.chance(0.5) {
				start = cut
			} else {
				end = cut
			}
		}
		end = min(end, int64(len(data)), int64(len(in.data)))
		if start < end {
			copy(data[start:end], in.data[start:end])
		}
	}
	out := &memInode{fs: c.to, data: data, durable: append([]byte(nil), data...), dirty: make(map[int64]struct{})}
	c.to.used += int64(len(data))
	c.copied[in] = out
	return out
}

// size chooses the size of a file whose size may not have been synced: the new
// one, the old one, or, as file systems grow a file while they write it back, one
// in between.
func (c *imager) size(in *memInode) int64 {
	was, is := int64(len(in.durable)), int64(len(in.data))
	switch {
	case was == is || c.chance(c.KeepUnsynced):
		return is
	case is > was && c.chance(c.KeepUnsynced):
		return min(is, was+c.below((is-was)/SectorBytes+1)*SectorBytes)
	}
	return was
}
