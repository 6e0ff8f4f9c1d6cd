package hotlog

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Files in the folder of a log, N being a segment number in ten digits:
//
//	N.log    segment N
//	N.idx    its index file, once it is sealed
//	N.spare  a file for reuse; what was segment N, or a file made to become it
//	N.tmp    an index file being written; Open removes it
//
// No file has a frame of a number above the highest in any name of the folder,
// so the next number is fresh even to the bytes of the oldest spare.
const (
	logSuffix     = ".log"
	sidecarSuffix = ".idx"
	spareSuffix   = ".spare"
	tmpSuffix     = ".tmp"
)

// folder names and opens the files of a log, and syncs them unless it was told not to.
type folder struct {
	fs     vfs.FS
	dir    string
	noSync bool
}

func (d *folder) name(segment uint32, suffix string) string {
	return filepath.Join(d.dir, fmt.Sprintf("%010d%s", segment, suffix))
}

// listing is the content of the folder, each list in order of number.
type listing struct {
	logs, sidecars, spares, temps []uint32
	highest                       uint32
}

func (d *folder) list() (l listing, err error) {
	names, err := d.fs.ReadDir(d.dir)
	if err != nil {
		return l, fmt.Errorf("hotlog: list folder: %w", err)
	}
	for _, name := range names {
		suffix := filepath.Ext(name)
		n, err := strconv.ParseUint(strings.TrimSuffix(name, suffix), 10, 32)
		if err != nil || len(name) != 10+len(suffix) {
			continue // not ours
		}
		id := uint32(n)
		switch suffix {
		case logSuffix:
			l.logs = append(l.logs, id)
		case sidecarSuffix:
			l.sidecars = append(l.sidecars, id)
		case spareSuffix:
			l.spares = append(l.spares, id)
		case tmpSuffix:
			l.temps = append(l.temps, id)
		default:
			continue
		}
		l.highest = max(l.highest, id)
	}
	for _, ids := range [][]uint32{l.logs, l.sidecars, l.spares, l.temps} {
		slices.Sort(ids)
	}
	return l, nil
}

// openWritten opens a segment file for the groups to come.
func (d *folder) openWritten(name string) (vfs.File, error) {
	if d.noSync {
		return d.fs.OpenReadWrite(name)
	}
	return d.fs.OpenSynced(name, true)
}

func (d *folder) syncDir() error {
	if d.noSync {
		return nil
	}
	return d.fs.SyncDir(d.dir)
}

// writeSidecar makes the index file of a segment durable under its name.
func (d *folder) writeSidecar(segment uint32, content []byte) error {
	tmp := d.name(segment, tmpSuffix)
	f, err := d.fs.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(content, 0)
	if err == nil && !d.noSync {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := d.fs.Rename(tmp, d.name(segment, sidecarSuffix)); err != nil {
		return err
	}
	return d.syncDir()
}

// readSidecar reads the index file of a segment.
func (d *folder) readSidecar(segment uint32) (seed uint32, s summary, size int64, err error) {
	f, err := d.fs.Open(d.name(segment, sidecarSuffix))
	if err != nil {
		return 0, s, 0, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if size, err = f.Size(); err != nil {
		return 0, s, 0, err
	}
	if size > maxSidecarBytes {
		return 0, s, size, fmt.Errorf("hotlog: index of segment %d has %d bytes: %w", segment, size, ledger.ErrCorrupt)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		return 0, s, size, err
	}
	seed, s, err = decodeSidecar(b, segment)
	return seed, s, size, err
}

// truncate cuts a segment file behind its last group, durably.
func (d *folder) truncate(segment uint32, size int64) error {
	f, err := d.fs.OpenReadWrite(d.name(segment, logSuffix))
	if err != nil {
		return err
	}
	err = f.Truncate(size)
	if err == nil && !d.noSync {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// spare is a file that waits to become a segment.
type spare struct {
	number uint32
	bytes  int64
}

// create makes an empty file that can become segment number.
func (d *folder) create(number uint32) (spare, error) {
	f, err := d.fs.Create(d.name(number, spareSuffix))
	if err != nil {
		return spare{}, err
	}
	return spare{number: number}, f.Close()
}

// adopt turns a spare into segment, without groups. Only when adopt has returned may a
// group be written: before, a crash may leave the file under either name, but with
// a header that is whole, and without a frame of this number.
func (d *folder) adopt(sp spare, segment, seed uint32) (*segmentFile, error) {
	f, err := d.openWritten(d.name(sp.number, spareSuffix))
	if err != nil {
		return nil, err
	}
	block := vfs.AlignedBuffer(blockBytes)
	encodeHeader(block, segment, seed)
	_, err = f.WriteAt(block, 0)
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	if err := d.fs.Rename(d.name(sp.number, spareSuffix), d.name(segment, logSuffix)); err != nil {
		return nil, err
	}
	if err := d.syncDir(); err != nil {
		return nil, err
	}
	if f, err = d.openWritten(d.name(segment, logSuffix)); err != nil {
		return nil, err
	}
	s := newSegment(segment, seed, f, max(sp.bytes, blockBytes))
	return s, nil
}

// retire turns segment into a spare, durably. The order keeps a crash harmless: an
// index file without its segment means nothing, a segment without its index
// file would be scanned.
func (d *folder) retire(segment uint32, hasSidecar bool) error {
	if err := d.fs.Rename(d.name(segment, logSuffix), d.name(segment, spareSuffix)); err != nil {
		return err
	}
	if err := d.syncDir(); err != nil {
		return err
	}
	if !hasSidecar {
		return nil
	}
	return d.fs.Remove(d.name(segment, sidecarSuffix))
}
