package bundlelog

import (
	"bytes"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

var update = flag.Bool("update", false, "write the golden files anew")

// sample is a group with an item of every type.
func sample() []byte {
	g := group{}
	g.add(Record{Topic: 7, Hash: 0x80000001, Kind: 3, Data: []byte("ack")}.item())
	g.add(item{kind: itemBegin})
	parked := Parked{Base: []byte("base"), Records: []Record{{Topic: 7, Hash: 0x80000001, Kind: 4, Data: []byte("since")}}}
	data := parked.Encode()
	g.add(item{kind: itemPart, tag: tagMore, topic: 7, hash: 0x80000001, data: data[:10]})
	g.add(Record{Topic: 9, Hash: 5}.item())
	g.add(item{kind: itemPart, topic: 7, hash: 0x80000001, data: data[10:]})
	g.add(item{kind: itemEnd, data: []byte{1, 2, 0, 0, 0, 0, 0, 0}})
	putGroupHeader(g.body, g.flags, g.items)
	return g.body
}

// Shows that the bytes of a group and of the log key are those of every release
// of this format, and still read.
func TestGoldenFiles(t *testing.T) {
	for name, b := range map[string][]byte{
		"group-v1":   sample(),
		"segments-1": Encode([]Segment{{Ledger: 5, First: 0, Last: 0x7fffffff}, {Ledger: 300, First: 0x100, Last: 0xffffffff}}),
	} {
		path := filepath.Join("testdata", name+".hex")
		if *update {
			if err := os.WriteFile(path, []byte(hex.Dump(b)), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := hex.Dump(b); got != string(want) {
			t.Errorf("%s: bytes have changed:\n%s\nwant:\n%s", name, got, want)
		}
	}
	items, err := parseGroup(sample())
	if err != nil || len(items) != 6 {
		t.Fatalf("%d items, %v", len(items), err)
	}
	if got := items[0].record(); !reflect.DeepEqual(got, Record{Topic: 7, Hash: 0x80000001, Kind: 3, Data: []byte("ack")}) {
		t.Errorf("first record %+v", got)
	}
	parked, err := DecodeParked(append(bytes.Clone(items[2].data), items[4].data...))
	if err != nil || string(parked.Base) != "base" || len(parked.Records) != 1 || string(parked.Records[0].Data) != "since" {
		t.Errorf("snapshot %+v, %v", parked, err)
	}
}

// Shows that a group cut off anywhere, or with any one byte of its structure
// changed to a value it cannot have, is refused; and that a newer version is told
// from damage.
func TestBrokenGroupsAreRefused(t *testing.T) {
	whole := sample()
	for n := range whole {
		if _, err := parseGroup(whole[:n]); err == nil {
			t.Errorf("accepted the first %d of %d bytes", n, len(whole))
		}
	}
	newer := bytes.Clone(whole)
	newer[0] = 2
	if _, err := parseGroup(newer); err == nil || !strings.Contains(err.Error(), "version 2, this build reads 1") {
		t.Errorf("newer version: %v", err)
	}
	for _, at := range []int{1, 2, 3, 4, 8, 10, 11, 12} {
		broken := bytes.Clone(whole)
		broken[at] ^= 0x40
		if _, err := parseGroup(broken); err == nil {
			t.Errorf("accepted a flipped bit in byte %d", at)
		}
	}
}

// FuzzGroup shows that hostile groups are refused without reading past them, and
// that what is accepted is written back as the same bytes.
func FuzzGroup(f *testing.F) {
	f.Add(sample())
	f.Add([]byte{1, 0, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := parseGroup(b)
		if err != nil {
			return
		}
		g := group{body: make([]byte, groupHeaderBytes)}
		for _, it := range items {
			g.add(it)
		}
		putGroupHeader(g.body, g.flags, g.items)
		if !bytes.Equal(g.body, b) {
			t.Errorf("% x reads as %+v, which writes % x", b, items, g.body)
		}
	})
}

// FuzzParked shows the same for the snapshot of a topic.
func FuzzParked(f *testing.F) {
	f.Add((&Parked{Base: []byte("base"), Records: []Record{{Topic: 1, Hash: 2, Kind: 3, Data: []byte("x")}}}).Encode())
	f.Add((&Parked{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := DecodeParked(b); err == nil && !bytes.Equal(p.Encode(), b) {
			t.Errorf("% x reads as %+v, which writes % x", b, p, p.Encode())
		}
	})
}

// FuzzSegments shows that what is accepted as a log key is in order and reads
// back.
func FuzzSegments(f *testing.F) {
	f.Add(Encode([]Segment{{Ledger: 1, First: 0, Last: 9}, {Ledger: 2, First: 3, Last: 4}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		segments, err := Decode(b)
		if err != nil {
			return
		}
		for i, s := range segments {
			if s.Ledger < 1 || s.First > s.Last || i > 0 && s.Ledger < segments[i-1].Ledger {
				t.Errorf("accepted %+v", segments)
			}
		}
		if again, err := Decode(Encode(segments)); err != nil || !reflect.DeepEqual(again, segments) {
			t.Errorf("%+v reads back as %+v, %v", segments, again, err)
		}
	})
}

// Shows that a child of a split replays each ledger only for its own hashes, that
// both children together replay everything once, and that merging them back gives
// the log of the parent.
func TestRuleM24_SplitAndMergeKeepEveryHashOnce(t *testing.T) {
	parent := []Segment{{Ledger: 5, First: 0, Last: 99}, {Ledger: 9, First: 0, Last: 99}}
	low, high := Inherit(parent, 0, 49), Inherit(parent, 50, 99)
	low = append(low, Segment{Ledger: 12, First: 0, Last: 49})
	high = append(high, Segment{Ledger: 11, First: 50, Last: 99})
	merged := append(Union(low, high), Segment{Ledger: 20, First: 0, Last: 99})

	replayed := func(segments []Segment, hash uint32) (out []ledger.ID) {
		for _, li := range lineages(segments, 0, 99) {
			if li.first <= hash && hash <= li.last {
				out = append(out, li.ledgers...)
			}
		}
		return out
	}
	for hash := range uint32(100) {
		want := []ledger.ID{5, 9, 12, 20}
		if hash >= 50 {
			want = []ledger.ID{5, 9, 11, 20}
		}
		if got := replayed(merged, hash); !reflect.DeepEqual(got, want) {
			t.Fatalf("hash %d replays %v, want %v", hash, got, want)
		}
	}
	if got := lineages(low, 0, 49); len(got) != 1 {
		t.Errorf("a log that was never merged has %d lineages", len(got))
	}
	if segments, err := Decode(Encode(merged)); err != nil || !reflect.DeepEqual(segments, merged) {
		t.Errorf("merged log reads back as %+v, %v", segments, err)
	}
}

// FuzzPlay shows that the items of a log are played or refused, in any order and for
// any part of the hashes, and that nothing outside that part comes through.
func FuzzPlay(f *testing.F) {
	f.Add(sample(), uint32(0), uint32(1<<32-1), false)
	f.Add(sample(), uint32(5), uint32(5), true)
	g := group{body: make([]byte, groupHeaderBytes)}
	parked := (&Parked{Base: []byte("base")}).Encode()
	for _, it := range []item{
		{kind: itemBegin}, {kind: itemPart, tag: tagMore, topic: 1, hash: 2, data: parked[:3]},
		{kind: itemRecord, topic: 1, hash: 2, data: []byte("x")}, {kind: itemPart, topic: 1, hash: 2, data: parked[3:]},
		{kind: itemRecord, topic: 7, hash: 2}, {kind: itemEnd, data: make([]byte, 8)},
	} {
		g.add(it)
	}
	putGroupHeader(g.body, g.flags, g.items)
	f.Add(g.body, uint32(0), uint32(9), true)
	f.Fuzz(func(t *testing.T, b []byte, first, last uint32, skip bool) {
		items, err := parseGroup(b)
		if err != nil {
			return
		}
		shelf := NewShelf(func(r Record) bool { return r.Kind == 9 })
		p := player{state: shelf, first: first, last: last, skip: skip}
		for _, it := range items {
			if p.play(it) != nil {
				return
			}
		}
		for _, at := range shelf.Topics() {
			if at.Hash < first || at.Hash > last {
				t.Fatalf("topic %+v outside %08x to %08x", at, first, last)
			}
		}
	})
}
