package hotlog

import (
	"errors"
	"testing"

	"pgregory.net/rapid"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// oracle says what the log holds: where each entry is and which copy it is.
type oracle struct {
	mem      *vfs.Mem
	log      *Log
	versions map[key]int
	places   map[key]Place
	records  map[uint32]int // by segment
}

func (o *oracle) append(t *rapid.T) {
	var records []Record
	var keys []key
	for range rapid.IntRange(1, 12).Draw(t, "burst") {
		k := key{ledger.ID(rapid.IntRange(1, 4).Draw(t, "ledger")), ledger.EntryID(rapid.IntRange(0, 40).Draw(t, "entry"))}
		o.versions[k]++
		keys = append(keys, k)
		records = append(records, entry(k.id, k.e, o.versions[k], rapid.IntRange(24, 6000).Draw(t, "bytes")))
	}
	records = append(records, Record{Kind: KindTombstone, Data: make([]byte, rapid.IntRange(0, 300).Draw(t, "data"))})
	for i, p := range mustAppend(t, o.log, records...) {
		o.records[p.Segment]++
		if i < len(keys) {
			o.places[keys[i]] = p
		}
	}
}

func (o *oracle) open(t *rapid.T) {
	o.log = mustOpen(t, small(o.mem))
}

func (o *oracle) check(t *rapid.T) {
	live, liveBytes := map[uint32]int64{}, map[uint32]int64{}
	for k, p := range o.places {
		if got, ok := o.log.Lookup(k.id, k.e); !ok || got != p {
			t.Fatalf("entry %v at %v, %v; want %v", k, got, ok, p)
		}
		if v := mustRead(t, o.log, k.id, k.e); v != o.versions[k] {
			t.Fatalf("entry %v: copy %d, want %d", k, v, o.versions[k])
		}
		live[p.Segment]++
		liveBytes[p.Segment] += int64(p.Length)
	}
	total := 0
	for _, id := range o.log.Ledgers() {
		for _, r := range o.log.Ranges(id) {
			total += int(r.Last - r.First + 1)
		}
	}
	if total != len(o.places) {
		t.Fatalf("%d entries in ranges, want %d", total, len(o.places))
	}
	for _, s := range o.log.Segments() {
		if s.LiveEntries != live[s.ID] || s.LiveBytes != liveBytes[s.ID] || s.Records != o.records[s.ID] {
			t.Fatalf("%+v; want %d live entries of %d bytes and %d records", s, live[s.ID], liveBytes[s.ID], o.records[s.ID])
		}
	}
	if d := o.log.Damages(); len(d) > 0 {
		t.Fatalf("damages %v", d)
	}
}

// Any sequence of appends, restarts, crashes and recycling leaves the log as the
// oracle says; survivors are the live entries of the segment, in order, and records all it has.
func TestLogAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		o := &oracle{mem: vfs.NewMem(), versions: map[key]int{}, places: map[key]Place{}, records: map[uint32]int{}}
		o.open(t)
		defer func() { _ = o.log.Close() }()
		t.Repeat(map[string]func(*rapid.T){
			"append": o.append,
			"restart": func(t *rapid.T) {
				mustClose(t, o.log)
				o.open(t)
			},
			"crash": func(t *rapid.T) {
				disk := snapshot(o.mem)
				o.mem.Crash()
				_ = o.log.Close()
				o.mem = disk
				o.open(t)
			},
			"recycle": func(t *rapid.T) {
				list := sealed(t, o.log)
				if len(list) == 0 {
					t.Skip("nothing is sealed")
				}
				id := list[0].ID
				var last key
				n := int64(0)
				err := survivors(o.log, id, func(at located, e ledger.Entry, err error) error {
					if err != nil {
						return err
					}
					k, p := key{at.id, at.entry}, at.place
					if n > 0 && (k.id < last.id || k.id == last.id && k.e <= last.e) {
						t.Fatalf("survivor %v after %v", k, last)
					}
					if o.places[k] != p || versionOf(t, k.id, k.e, e.Body) != o.versions[k] {
						t.Fatalf("survivor %v at %v, want %v", k, p, o.places[k])
					}
					last, n = k, n+1
					return nil
				})
				if err != nil || n != list[0].LiveEntries {
					t.Fatalf("%d survivors of %d, %v", n, list[0].LiveEntries, err)
				}
				if list[0].Records != o.records[id] {
					t.Fatalf("%d records of %d", list[0].Records, o.records[id])
				}
				if err := o.log.Recycle(id); err != nil {
					t.Fatal(err)
				}
				for k, p := range o.places {
					if p.Segment == id {
						delete(o.places, k)
					}
				}
			},
			"not sealed": func(t *rapid.T) {
				list := o.log.Segments()
				active := list[len(list)-1].ID
				if err := o.log.Recycle(active); !errors.Is(err, ErrNotSealed) {
					t.Fatalf("recycled the active segment: %v", err)
				}
			},
			"": o.check,
		})
	})
}

// A ledger that is forgotten is gone from all answers, and its bytes are dead.
func TestForget(t *testing.T) {
	l := mustOpen(t, small(vfs.NewMem()))
	var records []Record
	for e := range ledger.EntryID(60) {
		records = append(records, entry(1, e, 0, 900), entry(2, e, 0, 800))
	}
	mustAppend(t, l, records...)
	before := l.Usage().IndexBytes
	l.Forget(1)
	l.Forget(77)
	if _, ok := l.Lookup(1, 3); ok || len(l.Ranges(1)) > 0 {
		t.Error("the ledger is still there")
	}
	if _, ok := l.LastEntry(1); ok {
		t.Error("the ledger still has a last entry")
	}
	if after := l.Usage().IndexBytes; after >= before {
		t.Errorf("index of %d bytes, %d before", after, before)
	}
	for _, s := range sealed(t, l) {
		err := survivors(l, s.ID, func(at located, _ ledger.Entry, err error) error {
			if at.id != 2 {
				t.Errorf("survivor of ledger %d", at.id)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	}
	live := int64(0)
	for _, s := range l.Segments() {
		live += s.LiveEntries
	}
	if live != 60 {
		t.Errorf("%d live entries, want 60", live)
	}
	mustClose(t, l)
}
