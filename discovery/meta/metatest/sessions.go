package metatest

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

func under(s meta.Session, keys ...string) meta.Txn {
	var txn meta.Txn
	for _, k := range keys {
		txn.Ops = append(txn.Ops, meta.Op{Key: k, Session: s})
	}
	return txn
}

func waitEnded(t *testing.T, s meta.Session, atMost time.Duration) {
	t.Helper()
	select {
	case <-s.Ended():
	case <-time.After(atMost):
		t.Fatalf("session not ended after %v", atMost)
	}
}

// The keys of a session go with it, all in one batch; a key that was written
// again without it, or under another, stays.
func testSessionKeys(t *testing.T, h Harness) {
	s, other := h.Open(t), h.Open(t)
	a, b := session(t, s, 10*h.TTL), session(t, s, 10*h.TTL)
	if a.ID() == b.ID() || a.ID() == "" {
		t.Fatalf("session ids %q and %q", a.ID(), b.ID())
	}
	mustTxn(t, s, under(a, h.key("1"), h.key("2"), h.key("3"), h.key("4")))
	put(t, s, h.key("3"), "untied")
	from := mustTxn(t, s, under(b, h.key("4")))
	w := other.Watch(within(t), h.Prefix, from)
	if err := a.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, a, 0+time.Second)
	got, err := w.Next()
	for err == nil && len(got.Events) == 0 {
		got, err = w.Next()
	}
	if err != nil || len(got.Events) != 2 || got.Events[0].Key != h.key("1") || got.Events[1].Key != h.key("2") {
		t.Fatalf("end of a session seen as %v, %v", got, err)
	}
	if !get(t, other, h.key("3")).Exists() || !get(t, other, h.key("4")).Exists() {
		t.Fatal("a key went that was no longer the session's")
	}
	if err := a.Close(within(t)); err != nil {
		t.Fatalf("second close: %v", err)
	}
}

// A session outlives its ttl as long as its process renews it.
func testSessionKeptAlive(t *testing.T, h Harness) {
	s := h.Open(t)
	a := session(t, s, h.TTL)
	mustTxn(t, s, under(a, h.key("k")))
	select {
	case <-a.Ended():
		t.Fatal("session ended while it was kept alive")
	case <-time.After(5 * h.TTL / 2):
	}
	if !get(t, s, h.key("k")).Exists() {
		t.Fatal("key went before its session")
	}
}

// A session that the store ended is noticed by its process within a ttl; writes
// under it are refused from the first.
func testSessionExpires(t *testing.T, h Harness) {
	s := h.Open(t)
	a := session(t, s, h.TTL)
	mustTxn(t, s, under(a, h.key("k")))
	h.Expire(t, a.ID())
	_, err := s.Txn(within(t), under(a, h.key("k")))
	wantErr(t, err, meta.ErrSessionEnded)
	if get(t, s, h.key("k")).Exists() {
		t.Fatal("key outlives its session")
	}
	waitEnded(t, a, h.TTL)
}

// A client that is cut off knows its session ended once the ttl has passed, no
// later than the store drops the keys; the new session has another id.
func testSessionOfCutClient(t *testing.T, h Harness) {
	s, other := h.troubled(t), h.Open(t)
	a := session(t, s, h.TTL)
	mustTxn(t, s, under(a, h.key("k")))
	s.Cut(true)
	waitEnded(t, a, h.TTL+h.TTL/2)
	eventually(t, "the key goes", func() bool {
		kv, err := other.Get(within(t), h.key("k"))
		return err == nil && !kv.Exists()
	})
	s.Cut(false)
	var b meta.Session
	eventually(t, "a new session", func() bool {
		var err error
		b, err = s.NewSession(within(t), h.TTL)
		return err == nil
	})
	t.Cleanup(func() { b.Close(context.Background()) })
	if a.ID() == b.ID() {
		t.Fatal("a session id came back")
	}
}

// When a process dies its sessions are over for it at once, and their keys stay
// until the ttl has passed.
func testSessionOfDeadClient(t *testing.T, h Harness) {
	s, other := h.Open(t), h.Open(t)
	a, err := s.NewSession(within(t), h.TTL)
	if err != nil {
		t.Fatal(err)
	}
	mustTxn(t, s, under(a, h.key("k")))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	waitEnded(t, a, time.Second)
	if !get(t, other, h.key("k")).Exists() {
		t.Fatal("key went before the ttl")
	}
	eventually(t, fmt.Sprintf("the key goes after %v", h.TTL), func() bool { return !get(t, other, h.key("k")).Exists() })
}
