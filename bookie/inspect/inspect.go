// Package inspect reads the files of a bookie that does not run and checks every
// checksum, for people who want to know what a disk holds and whether it is whole.
// It alters nothing.
package inspect

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/magnetar-io/magnetar/bookie"
	"github.com/magnetar-io/magnetar/bookie/internal/coldstore"
	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// Report is what was found in a bookie's directory.
type Report struct {
	Dir          string        `json:"dir"`
	Bookie       string        `json:"bookie"`
	Cluster      string        `json:"cluster"`
	Incarnation  string        `json:"incarnation"`
	ReserveBytes int64         `json:"reserveBytes"`
	Hot          []HotSegment  `json:"hot"`
	Cold         []ColdSegment `json:"cold"`
	Index        Index         `json:"index"`
	// Problems are all that is wrong. None: every checksum matches, and everything
	// is where the index says.
	Problems []Problem `json:"problems"`
	// Notices are what may be as it should, and which the files alone cannot tell from
	// damage.
	Notices []Problem `json:"notices"`
}

// HotSegment is a segment of the log.
type HotSegment struct {
	Segment     uint32 `json:"segment"`
	FileBytes   int64  `json:"fileBytes"`
	UsedBytes   int64  `json:"usedBytes"`
	Entries     int    `json:"entries"`
	Fences      int    `json:"fences"`
	Tombstones  int    `json:"tombstones"`
	Checkpoints int    `json:"checkpoints"`
	Ledgers     int    `json:"ledgers"`
	Ended       bool   `json:"ended"`   // its end is marked
	Indexed     bool   `json:"indexed"` // it has an index file that matches
}

// ColdSegment is a segment of sorted entries.
type ColdSegment struct {
	Segment     uint32 `json:"segment"`
	FileBytes   int64  `json:"fileBytes"`
	Entries     int    `json:"entries"`
	Extents     int    `json:"extents"`
	LiveExtents int    `json:"liveExtents"`
	LiveBytes   int64  `json:"liveBytes"`
}

// Index is what the index holds.
type Index struct {
	Ledgers    int    `json:"ledgers"`
	Extents    int    `json:"extents"`
	Segments   int    `json:"segments"`
	Tombstones uint64 `json:"tombstones"`
}

// Problem is something wrong with a file, or in doubt.
type Problem struct {
	File string `json:"file"`
	What string `json:"what"`
}

// Dir inspects the directory of a bookie. The error says why it could not be
// inspected at all (fs.ErrNotExist: there is none; bookie.ErrForeign, ErrNewer and
// ErrLocked); what is wrong with its content is in Report.Problems.
func Dir(files vfs.FS, dir string) (*Report, error) {
	if st, err := files.Stat(dir); err != nil {
		return nil, fmt.Errorf("data directory of a bookie: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("%w: %s is a file; name the directory", bookie.ErrForeign, dir)
	}
	id, err := bookie.ReadIdentity(files, dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s is not the data directory of a bookie: it has no identity file", bookie.ErrForeign, dir)
	}
	if errors.Is(err, bookie.ErrNewer) || errors.Is(err, bookie.ErrForeign) {
		return nil, err
	}
	lock, lockErr := files.Lock(filepath.Join(dir, "lock"))
	if errors.Is(lockErr, vfs.ErrLocked) {
		return nil, fmt.Errorf("%w: a bookie has %s open; stop it first", bookie.ErrLocked, dir)
	}
	if lockErr != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, lockErr)
	}
	defer lock.Close()

	r := &inspection{files: files, report: &Report{Dir: dir, Bookie: id.Bookie, Cluster: id.Cluster, Incarnation: id.Incarnation, ReserveBytes: id.ReserveBytes}}
	if err != nil {
		r.problem("identity", "%v", err)
	}
	if err := bookie.CheckStarts(files, dir); err != nil {
		r.problem("starts", "%v", err)
	}
	if err := r.hot(); err != nil {
		return nil, err
	}
	cold, err := r.cold()
	if err != nil {
		return nil, err
	}
	r.index(cold)
	return r.report, nil
}

type inspection struct {
	files  vfs.FS
	report *Report
}

func (r *inspection) problem(file, format string, args ...any) {
	r.report.Problems = append(r.report.Problems, Problem{File: file, What: fmt.Sprintf(format, args...)})
}

func (r *inspection) hot() error {
	segments, err := hotlog.Inspect(r.files, filepath.Join(r.report.Dir, "hot"))
	if err != nil {
		return fmt.Errorf("inspect the log: %w", err)
	}
	for _, s := range segments {
		file := fmt.Sprintf("hot/%010d.log", s.ID)
		r.report.Hot = append(r.report.Hot, HotSegment{
			Segment: s.ID, FileBytes: s.FileBytes, UsedBytes: s.UsedBytes,
			Entries: s.Records[hotlog.KindEntry], Fences: s.Records[hotlog.KindFence],
			Tombstones: s.Records[hotlog.KindTombstone], Checkpoints: s.Records[hotlog.KindLedger],
			Ledgers: len(s.Ledgers), Ended: s.Ended, Indexed: s.Err == nil && s.Index == nil,
		})
		if s.Err != nil {
			r.problem(file, "cannot be read: %v", s.Err)
			continue
		}
		for _, d := range s.Damages {
			of := "of ledgers that cannot be told"
			if d.Ledger != 0 {
				of = fmt.Sprintf("of ledger %d", d.Ledger)
			}
			r.problem(file, "%d bytes from %d on are lost, records %s", d.Length, d.Offset, of)
		}
		r.tail(file, &s)
		for _, e := range s.Corrupt {
			r.problem(file, "entry %d of ledger %d does not match its checksums", e.Entry, e.Ledger)
		}
		if s.Index != nil && !errors.Is(s.Index, fs.ErrNotExist) {
			r.problem(strings.TrimSuffix(file, ".log")+".idx", "%v", s.Index)
		}
	}
	return nil
}

// tail takes note of what stands behind the last good group of a segment whose end is
// not marked. A segment without any group is one made ready ahead, in a file that may
// have been used before.
func (r *inspection) tail(file string, s *hotlog.SegmentReport) {
	var what string
	switch {
	case s.TailBytes == 0:
		return
	case s.TailOurs:
		what = "part of a write that a crash cut short and nobody was told of, or a last group that is damaged"
	case len(s.Records) > 0:
		what = "what a former use of the file left, or a last group that is damaged beyond recognition"
	default:
		return
	}
	r.report.Notices = append(r.report.Notices, Problem{File: file, What: fmt.Sprintf(
		"%d bytes behind its last good group, from %d on, are not zero: %s; a bookie that starts cuts them off", s.TailBytes, s.UsedBytes, what)})
}

// run is where a cold segment has entries of a ledger.
type run struct {
	segment, offset uint32
	ledger          ledger.ID
}

// coldRuns are all runs of the cold segments that could be read.
type coldRuns struct {
	readable map[uint32]bool
	runs     map[run]ledger.EntryRange
}

func (r *inspection) cold() (coldRuns, error) {
	found := coldRuns{readable: make(map[uint32]bool), runs: make(map[run]ledger.EntryRange)}
	dir := filepath.Join(r.report.Dir, "cold")
	names, err := r.files.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	if err != nil {
		return found, fmt.Errorf("list %s: %w", dir, err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".cold") {
			if err := r.coldSegment(filepath.Join(dir, name), "cold/"+name, &found); err != nil {
				return found, err
			}
		}
	}
	return found, nil
}

func (r *inspection) coldSegment(path, file string, found *coldRuns) error {
	f, err := coldstore.OpenFile(r.files, path)
	if err != nil {
		r.problem(file, "cannot be read: %v", err)
		return nil
	}
	s := ColdSegment{Segment: f.ID(), FileBytes: f.Segment().FileBytes}
	for _, e := range f.Extents() {
		s.Extents++
		found.runs[run{e.Segment, e.Offset, e.Ledger}] = ledger.EntryRange{First: e.First, Last: e.Last}
	}
	found.readable[f.ID()] = true
	for _, err := range f.Entries() {
		if err != nil {
			r.problem(file, "%v", err)
			continue
		}
		s.Entries++
	}
	r.report.Cold = append(r.report.Cold, s)
	return f.Close()
}

// index reads the index and checks that what it points to is there.
func (r *inspection) index(cold coldRuns) {
	x, err := index.Open(index.Options{FS: r.files, Dir: filepath.Join(r.report.Dir, "index"), ReadOnly: true, Fatal: func(error) {}})
	if err != nil {
		r.problem("index", "cannot be read: %v", err)
		return
	}
	contents, err := x.Check(func(e index.Extent) error {
		held, ok := cold.runs[run{e.Segment, e.Offset, e.Ledger}]
		if cold.readable[e.Segment] && (!ok || e.First < held.First || held.Last < e.Last) {
			r.problem("index", "entries %d to %d of ledger %d are not where it says, in segment %d at %d", e.First, e.Last, e.Ledger, e.Segment, e.Offset)
		}
		return nil
	})
	if err != nil {
		r.problem("index", "%v", err)
	}
	for _, s := range x.Segments() {
		if !cold.readable[s.ID] {
			r.problem("index", "names cold segment %d, which is missing or cannot be read", s.ID)
		}
	}
	for i := range r.report.Cold {
		c := &r.report.Cold[i]
		live := x.Live(c.Segment)
		c.LiveExtents, c.LiveBytes = live.Extents, live.Bytes
	}
	r.report.Index = Index{Ledgers: contents.Records, Extents: contents.Extents, Segments: contents.Segments, Tombstones: contents.Tombstones}
	if err := x.Close(); err != nil {
		r.problem("index", "%v", err)
	}
}
