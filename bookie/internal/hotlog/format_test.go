package hotlog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

var update = flag.Bool("update", false, "write the golden files of the current version")

func goldenRecords() []Record {
	return []Record{
		entry(1, 0, 0, 24), entry(1, 1, 0, 4100), fence(1, 2), entry(7, 300, 1, 100),
		{Kind: KindTombstone, Data: []byte("ledgers 3 to 5")}, {Kind: KindLedger, Ledger: 1 << 60, Data: []byte{}},
		entry(1<<62, 1<<40, 2, 999),
	}
}

// The files of version 1 are read by this build, and it still writes the very same bytes.
func TestGoldenVersion1(t *testing.T) {
	mem := vfs.NewMem()
	l := mustOpen(t, small(mem))
	for _, r := range goldenRecords() {
		mustAppend(t, l, r) // a group each, so that the bytes are always the same
	}
	mustClose(t, l)
	golden := vfs.NewMem()
	if err := golden.MkdirAll(testDir); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{logSuffix, sidecarSuffix} {
		name := filepath.Join("testdata", "v1"+suffix)
		written := readFile(t, mem, filepath.Join(testDir, "0000000001"+suffix))
		if *update {
			if err := os.WriteFile(name, written, 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(written, want) {
			t.Errorf("this build writes another %s: a new format needs a new version", name)
		}
		f, err := golden.Create(filepath.Join(testDir, "0000000001"+suffix))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt(want, 0); err != nil {
			t.Fatal(err)
		}
	}
	for _, withIndex := range []bool{true, false} {
		disk := golden.Image(vfs.ImageOptions{KeepUnsynced: 1})
		if !withIndex {
			if err := disk.Remove(sidecarName(1)); err != nil {
				t.Fatal(err)
			}
		}
		var got []Record
		l, err := Open(small(disk), func(r Record, _ Place) error { got = append(got, r); return nil })
		if err != nil {
			t.Fatal(err)
		}
		want := goldenRecords()
		for i := range want {
			if r := &want[i]; r.Kind == KindEntry {
				r.Ledger, r.Entry, r.Body = r.Envelope.Ledger, r.Envelope.Entry, nil
				mustRead(t, l, r.Ledger, r.Entry)
			}
		}
		if d := cmp.Diff(want, got, cmp.Comparer(func(a, b []byte) bool { return bytes.Equal(a, b) })); d != "" {
			t.Errorf("with index file %v (-want +got):\n%s", withIndex, d)
		}
		mustClose(t, l)
	}
}

func readFile(t failer, fsys vfs.FS, name string) []byte {
	t.Helper()
	f, err := fsys.Open(name)
	if err != nil {
		t.Fatalf("%v", err)
	}
	size, err := f.Size()
	if err != nil {
		t.Fatalf("%v", err)
	}
	b := make([]byte, size)
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatalf("%v", err)
	}
	return b
}

// FuzzFrame: whatever stands in a frame, decoding neither panics nor reads beyond it, and what
// is accepted as an entry carries the right checksums.
func FuzzFrame(f *testing.F) {
	mem := vfs.AlignedBuffer(4 * blockBytes)
	for _, r := range goldenRecords() {
		g := group{segment: 1, seed: 9, sequence: 1, limit: len(mem), mem: mem}
		g.add(&r, nil, &pool{})
		f.Add(bytes.Clone(g.finish()), uint32(9))
	}
	try := func(t *testing.T, b []byte, seed uint32) {
		if h, ok := decodeFrameHeader(b, 1, seed); ok {
			h.payloadOK(b)
			if h.kind == kindCommit {
				h.commitOK(b, 0, 1, 0)
			}
		}
		for _, head := range []bool{false, true} {
			e, err := decodeEntry(b, 1, seed, head)
			if err == nil && !head && e.Check(e.Envelope.Ledger, e.Envelope.Entry) != nil {
				t.Fatal("a corrupt entry was accepted")
			}
		}
		_, _ = decodeHeader(b, 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, seed uint32) {
		try(t, b, seed)
		if len(b) < frameHeaderBytes {
			return
		}
		b = bytes.Clone(b) // and as if its checksums were right
		binary.LittleEndian.PutUint32(b[16:], 1)
		if len(b) >= entryHeadBytes {
			envelope := b[frameHeaderBytes:entryHeadBytes]
			binary.LittleEndian.PutUint32(envelope[44:], checksum(0, envelope[:44]))
		}
		binary.LittleEndian.PutUint32(b, checksum(seed, b[4:frameHeaderBytes]))
		try(t, b, seed)
	})
}

// FuzzSidecar: whatever stands in an index file, decoding neither panics nor takes much memory,
// and what is accepted is encoded to the same bytes. The checksum is made right, so that the
// fuzzer gets behind it.
func FuzzSidecar(f *testing.F) {
	s := newSummary()
	for i, r := range goldenRecords() {
		s.add(&r, Place{1, uint32(blockBytes * (i + 1)), uint32(frameHeaderBytes + r.payloadBytes())})
	}
	s.end = 1 << 20
	f.Add(encodeSidecar(1, 9, &s))
	s.damages = []Damage{{1, blockBytes, 8, 0}, {1, 0, 8, 5}}
	f.Add(encodeSidecar(1, 9, &s))
	empty := newSummary()
	f.Add(encodeSidecar(1, 0, &empty))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4 {
			return
		}
		b = bytes.Clone(b[:len(b)-4])
		crc := checksum(0, b)
		b = append(b, byte(crc), byte(crc>>8), byte(crc>>16), byte(crc>>24))
		seed, s, err := decodeSidecar(b, 1)
		if err != nil {
			return
		}
		again := newSummary()
		err = s.each(1, func(r Record, p Place) error {
			if int64(p.Offset)+int64(p.Length) > s.end || p.Offset < blockBytes {
				t.Fatalf("place %v beyond %d", p, s.end)
			}
			again.add(&r, p)
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		again.end, again.damages = s.end, s.damages
		_, twice, err := decodeSidecar(encodeSidecar(1, seed, &again), 1)
		if err != nil || !sameRecords(t, &s, &twice) {
			t.Fatalf("does not survive the way there and back: %v", err)
		}
	})
}

func sameRecords(t *testing.T, a, b *summary) bool {
	list := func(s *summary) (l []Record) {
		if err := s.each(1, func(r Record, _ Place) error { l = append(l, r); return nil }); err != nil {
			t.Fatal(err)
		}
		return l
	}
	return cmp.Equal(list(a), list(b))
}

// FuzzScan: whatever stands in a segment behind its header, scanning it, and taking its tail
// for damage, ends without an error, and what it finds lies within the file and in order.
func FuzzScan(f *testing.F) {
	mem := vfs.NewMem()
	l := mustOpen(f, small(mem))
	for _, r := range goldenRecords() {
		mustAppend(f, l, r)
	}
	mustClose(f, l)
	whole := readFile(f, mem, logName(1))
	seed, err := decodeHeader(whole, 1)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(uint16(0), byte(0), uint16(0), byte(0), uint16(0xffff))
	f.Add(uint16(40), byte(1), uint16(9000), byte(8), uint16(0xffff))
	f.Add(uint16(5000), byte(255), uint16(5001), byte(1), uint16(20_000))
	f.Add(uint16(8000), byte(3), uint16(0), byte(0), uint16(9000))
	f.Fuzz(func(t *testing.T, at1 uint16, xor1 byte, at2 uint16, xor2 byte, size uint16) {
		content := bytes.Clone(whole[:min(blockBytes+int(size), len(whole))])
		for at, xor := range map[uint16]byte{at1: xor1, at2: xor2} {
			if i := blockBytes + int(at); i < len(content) {
				content[i] ^= xor
			}
		}
		fsys := vfs.NewMem()
		file, err := fsys.Create("f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := file.WriteAt(content, 0); err != nil {
			t.Fatal(err)
		}
		sc, err := scan(file, 1, seed)
		if err != nil {
			t.Fatal(err)
		}
		if sc.s.end > int64(alignBlock(len(content))) {
			t.Fatalf("ends at %d of %d", sc.s.end, len(content))
		}
		if !sc.ended {
			if err := sc.salvage(sc.w.size); err != nil {
				t.Fatal(err)
			}
		}
		err = sc.s.each(1, func(r Record, p Place) error {
			if r.Kind == KindEntry {
				_, err := decodeEntry(content[p.Offset:p.Offset+p.Length], 1, seed, true)
				return err
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	})
}

// The summary of entries takes about twenty bytes each.
func TestSidecarSize(t *testing.T) {
	s := newSummary()
	const n = 10_000
	for e := range n {
		r := entry(ledger.ID(1_000_000+e%50), ledger.EntryID(e/50), 0, 2000)
		s.add(&r, Place{1, uint32(blockBytes + e*2080), 2080})
	}
	if per := float64(len(s.stream)) / n; per > 20 {
		t.Errorf("%.1f bytes an entry", per)
	}
}

// FuzzFolder: a folder with a damaged segment and a damaged index file is inspected and
// opened, or refused as damaged; what it then says is there can be read or is damaged.
func FuzzFolder(f *testing.F) {
	var golden [2][]byte
	for i, suffix := range []string{logSuffix, sidecarSuffix} {
		b, err := os.ReadFile(filepath.Join("testdata", "v1"+suffix))
		if err != nil {
			f.Fatal(err)
		}
		golden[i] = b
	}
	f.Add(uint16(0), []byte{}, uint16(0), []byte{}, uint16(0xffff))
	f.Add(uint16(blockBytes+8), []byte{0xff, 0xff, 0xff, 0xff}, uint16(24), []byte{0xff, 0xff, 0xff, 0x7f}, uint16(0xffff))
	f.Add(uint16(0), []byte{1}, uint16(40), []byte{0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}, uint16(blockBytes+100))
	f.Fuzz(func(t *testing.T, at uint16, patch []byte, indexAt uint16, indexPatch []byte, size uint16) {
		log, index := bytes.Clone(golden[0]), bytes.Clone(golden[1])
		copy(log[min(int(at), len(log)):], patch)
		log = log[:min(len(log), int(size))]
		copy(index[min(int(indexAt), len(index)-4):len(index)-4], indexPatch)
		binary.LittleEndian.PutUint32(index[len(index)-4:], checksum(0, index[:len(index)-4]))
		disk := vfs.NewMem()
		if err := disk.MkdirAll(testDir); err != nil {
			t.Fatal(err)
		}
		for name, content := range map[string][]byte{logName(1): log, sidecarName(1): index} {
			file, err := disk.Create(name)
			if err == nil {
				_, err = file.WriteAt(content, 0)
			}
			if err = errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := Inspect(disk, testDir); err != nil {
			t.Fatal(err)
		}
		var entries []Record
		l, err := Open(small(disk), func(r Record, _ Place) error {
			if r.Kind == KindEntry {
				entries = append(entries, r)
			}
			return nil
		})
		if err != nil {
			if !errors.Is(err, ledger.ErrCorrupt) && !errors.Is(err, ErrVersion) {
				t.Fatal(err)
			}
			return
		}
		defer mustClose(t, l)
		for _, r := range entries {
			if e, err := l.ReadEntry(r.Ledger, r.Entry); err == nil {
				err = e.Check(r.Ledger, r.Entry)
				if err != nil {
					t.Fatal(err)
				}
			}
		}
	})
}
