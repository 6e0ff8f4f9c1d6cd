package hotlog

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// SegmentReport is what Inspect found in one segment.
type SegmentReport struct {
	ID        uint32
	FileBytes int64
	UsedBytes int64 // up to the end of the last good group
	Records   map[Kind]int
	Ledgers   []ledger.ID // of entries, in order
	Ended     bool        // its end is marked: nothing can be missing behind it
	Damages   []Damage
	TailBytes int64       // up to the last byte behind UsedBytes that is not zero, when no end is marked
	TailOurs  bool        // among these is a frame of this segment, not of a former life of its file
	Corrupt   []EntryName // whose bytes do not match their checksums
	Index     error       // of its index file; fs.ErrNotExist: there is none, nil: it matches
	Err       error       // the segment could not be read at all
}

// EntryName names an entry.
type EntryName struct {
	Ledger ledger.ID
	Entry  ledger.EntryID
}

// Inspect reads every segment in dir whole, and its index file, and checks every
// checksum. It alters nothing; no Log may have dir open.
func Inspect(files vfs.FS, dir string) ([]SegmentReport, error) {
	d := folder{fs: files, dir: dir, noSync: true}
	listed, err := d.list()
	if err != nil {
		return nil, err
	}
	inspections := make([]*inspection, len(listed.logs))
	for i, id := range listed.logs {
		n := &inspection{report: SegmentReport{ID: id, Records: make(map[Kind]int)}}
		inspections[i] = n
		n.report.Err = n.scan(&d)
		if n.file != nil {
			defer n.file.Close()
		}
	}
	reports := make([]SegmentReport, len(inspections))
	for i, n := range inspections {
		if n.report.Err == nil {
			later := slices.ContainsFunc(inspections[i+1:], func(m *inspection) bool { return m.scanner != nil && !m.scanner.empty() })
			n.report.Err = n.finish(&d, later)
		}
		reports[i] = n.report
	}
	return reports, nil
}

// inspection is a segment being read.
type inspection struct {
	report  SegmentReport
	file    vfs.File
	seed    uint32
	scanner *scanner
}

func (n *inspection) scan(d *folder) (err error) {
	id := n.report.ID
	if n.file, err = d.fs.Open(d.name(id, logSuffix)); err != nil {
		return err
	}
	if n.report.FileBytes, err = n.file.Size(); err != nil {
		return err
	}
	block := make([]byte, min(n.report.FileBytes, blockBytes))
	if m, err := n.file.ReadAt(block, 0); m < len(block) {
		return fmt.Errorf("hotlog: header of segment %d: %w", id, err)
	}
	if n.seed, err = decodeHeader(block, id); err != nil {
		return err
	}
	n.scanner, err = scan(n.file, id, n.seed)
	return err
}

// finish judges the end of the segment as Open does, and reads each entry on its own.
func (n *inspection) finish(d *folder, later bool) error {
	sc, r := n.scanner, &n.report
	if later && !sc.ended && sc.s.end < r.FileBytes {
		if err := sc.salvage(sc.w.size); err != nil {
			return err
		}
	}
	r.UsedBytes, r.Ended, r.Damages = sc.s.end, sc.ended, sc.s.damages
	var err error
	if r.TailBytes, r.TailOurs, err = sc.tail(); err != nil {
		return err
	}
	s := newSegment(r.ID, n.seed, n.file, r.FileBytes)
	err = sc.s.each(r.ID, func(rec Record, p Place) error {
		r.Records[rec.Kind]++
		if rec.Kind != KindEntry {
			return nil
		}
		r.Ledgers = append(r.Ledgers, rec.Ledger)
		b, err := s.read(p.Offset, int(p.Length))
		if err == nil {
			_, err = decodeEntry(b, r.ID, n.seed, false)
		}
		if errors.Is(err, ledger.ErrCorrupt) {
			r.Corrupt = append(r.Corrupt, EntryName{rec.Ledger, rec.Entry})
			return nil
		}
		return err
	})
	r.Ledgers = uniqueIDs(r.Ledgers)
	if err != nil {
		return err
	}
	r.Index = n.compareIndex(d)
	return nil
}

// compareIndex checks the index file, if there is one, and that it says what the
// segment does.
func (n *inspection) compareIndex(d *folder) error {
	seed, content, _, err := d.readSidecar(n.report.ID)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fs.ErrNotExist
	case err != nil:
		return err
	case seed != n.seed || content.end != n.scanner.s.end || content.records != n.scanner.s.records ||
		!slices.Equal(content.stream, n.scanner.s.stream):
		return fmt.Errorf("hotlog: index of segment %d does not match the segment: %w", n.report.ID, ledger.ErrCorrupt)
	}
	return nil
}
