package metatest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// follow reads a watch until it has come to revision to, checking that batches
// rise, and returns what it saw as "key=value@revision" or "-key".
func follow(t *testing.T, h Harness, w meta.Watcher, from, to meta.Revision) []string {
	t.Helper()
	var seen []string
	for at := from; at < to; {
		b, err := w.Next()
		if err != nil {
			t.Fatal(err)
		}
		if b.Revision < at || len(b.Events) > 0 && b.Revision == at {
			t.Fatalf("batch at revision %d after %d", b.Revision, at)
		}
		for _, e := range b.Events {
			key := e.Key[len(h.Prefix):]
			if !e.Exists() {
				seen = append(seen, "-"+key)
				continue
			}
			if e.Revision <= at || e.Revision > b.Revision || e.Created == 0 || e.Created > e.Revision {
				t.Fatalf("event %+v in a batch from %d to %d", e, at, b.Revision)
			}
			seen = append(seen, fmt.Sprintf("%s=%s@%d", key, e.Value, e.Revision))
		}
		at = b.Revision
	}
	return seen
}

func wantSeen(t *testing.T, got, want []string) {
	t.Helper()
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("watch saw %v, want %v", got, want)
	}
}

// A watch gives every change under its prefix, in order, those of one
// transaction in one batch, and nothing else.
func testWatchOrder(t *testing.T, h Harness) {
	s, writer := h.Open(t), h.Open(t)
	from := put(t, writer, h.key("w/old"), "x")
	put(t, writer, h.key("v"), "x")
	w := s.Watch(within(t), h.key("w/"), from)
	var want []string
	for i := range 50 {
		r := put(t, writer, h.key("w/a"), fmt.Sprint(i))
		want = append(want, fmt.Sprintf("w/a=%d@%d", i, r))
		put(t, writer, h.key("x"), "beside")
	}
	r := mustTxn(t, writer, meta.Txn{Ops: []meta.Op{
		{Key: h.key("w/b"), Value: []byte("1")}, {Key: h.key("w/c"), Value: []byte("2")}, {Key: h.key("v"), Value: []byte("3")},
	}})
	want = append(want, fmt.Sprintf("w/b=1@%d", r), fmt.Sprintf("w/c=2@%d", r), "-w/a")
	to := del(t, writer, h.key("w/a"))
	wantSeen(t, follow(t, h, w, from, to), want)
}

// A watch that begins in the past first gives what it missed.
func testWatchFromThePast(t *testing.T, h Harness) {
	s := h.Open(t)
	from := put(t, s, h.key("a"), "0")
	var want []string
	var to meta.Revision
	for i := 1; i <= 20; i++ {
		to = put(t, s, h.key("a"), fmt.Sprint(i))
		want = append(want, fmt.Sprintf("a=%d@%d", i, to))
	}
	w := s.Watch(within(t), h.Prefix, from)
	wantSeen(t, follow(t, h, w, from, to), want)
}

// A watch that has nothing to give still tells how far it has come, so that an
// idle one can be told from one that is cut off.
func testWatchProgress(t *testing.T, h Harness) {
	s := h.Open(t)
	from := put(t, s, h.key("a"), "0")
	w := s.Watch(within(t), h.key("a"), from)
	to := put(t, s, h.key("b"), "beside")
	wantSeen(t, follow(t, h, w, from, to), nil)
	if b, err := w.Next(); err != nil || len(b.Events) != 0 || b.Revision < to {
		t.Fatalf("idle watch gives %+v, %v", b, err)
	}
}

// A watch whose context ends is over, and stays so.
func testWatchEnds(t *testing.T, h Harness) {
	s := h.Open(t)
	ctx, cancel := context.WithCancel(t.Context())
	w := s.Watch(ctx, h.Prefix, put(t, s, h.key("a"), ""))
	time.AfterFunc(50*time.Millisecond, cancel)
	for range 2 {
		var err error
		for err == nil {
			_, err = w.Next()
		}
		wantErr(t, err, meta.ErrUnavailable, context.Canceled)
	}
}

// A client that is cut off for a moment sees afterwards what it missed, once.
func testWatchAfterCut(t *testing.T, h Harness) {
	s, writer := h.troubled(t), h.Open(t)
	from := put(t, writer, h.key("a"), "0")
	w := s.Watch(within(t), h.Prefix, from)
	to := put(t, writer, h.key("a"), "1")
	wantSeen(t, follow(t, h, w, from, to), []string{fmt.Sprintf("a=1@%d", to)})
	s.Cut(true)
	from = to
	two := put(t, writer, h.key("a"), "2")
	to = del(t, writer, h.key("a"))
	s.Cut(false)
	wantSeen(t, follow(t, h, w, from, to), []string{fmt.Sprintf("a=2@%d", two), "-a"})
}

// A watch that begins before what the store still knows says so.
func testWatchCompacted(t *testing.T, h Harness) {
	s := h.Open(t)
	from := put(t, s, h.key("a"), "0")
	for i := range 5 {
		put(t, s, h.key("a"), fmt.Sprint(i))
	}
	h.Compact(t)
	put(t, s, h.key("a"), "last")
	_, err := s.Watch(within(t), h.Prefix, from).Next()
	wantErr(t, err, meta.ErrCompacted)
	kvs, at, err := s.Range(within(t), h.Prefix, "", 0)
	if err != nil || len(kvs) != 1 || string(kvs[0].Value) != "last" {
		t.Fatalf("range after compaction: %v, %v", kvs, err)
	}
	w := s.Watch(within(t), h.Prefix, at)
	to := put(t, s, h.key("a"), "next")
	wantSeen(t, follow(t, h, w, at, to), []string{fmt.Sprintf("a=next@%d", to)})
}
