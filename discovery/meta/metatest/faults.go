package metatest

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// moment is how long a caller waits for an answer that does not come.
const moment = 300 * time.Millisecond

// A Txn whose answer is lost says that its outcome is unknown, and was done; a
// read whose answer is lost has none. The same client goes on afterwards.
func testLostAnswer(t *testing.T, h Harness) {
	s, other := h.troubled(t), h.Open(t)
	k := h.key("k")
	before := put(t, s, k, "before")
	s.LoseAnswers(true)
	ctx, cancel := context.WithTimeout(t.Context(), moment)
	_, err := s.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: k, Revision: before}},
		Ops:   []meta.Op{{Key: k, Value: []byte("after")}},
	})
	cancel()
	wantErr(t, err, meta.ErrUncertain)
	ctx, cancel = context.WithTimeout(t.Context(), moment)
	_, err = s.Get(ctx, k)
	cancel()
	wantErr(t, err, meta.ErrUnavailable)
	s.LoseAnswers(false)
	if kv := get(t, other, k); string(kv.Value) != "after" {
		t.Fatalf("value %q: the request was lost, not its answer", kv.Value)
	}
	eventually(t, "the client goes on", func() bool {
		kv, err := s.Get(within(t), k)
		return err == nil && string(kv.Value) == "after"
	})
}

// A store that cannot be reached fails reads as unavailable; a Txn is surely not
// done, or its outcome is unknown where a connection broke under it.
func testUnreachable(t *testing.T, h Harness) {
	s, other := h.troubled(t), h.Open(t)
	k := h.key("k")
	put(t, s, k, "before")
	s.Cut(true)
	txn := meta.Txn{Ops: []meta.Op{{Key: k, Value: []byte("after")}}}
	_, err := s.Txn(within(t), txn)
	if !errors.Is(err, meta.ErrUnavailable) && !errors.Is(err, meta.ErrUncertain) {
		t.Fatalf("txn: %v", err)
	}
	eventually(t, "the client knows that nothing is sent", func() bool {
		_, err := s.Txn(within(t), txn)
		return errors.Is(err, meta.ErrUnavailable) && !errors.Is(err, meta.ErrUncertain)
	})
	_, err = s.Get(within(t), k)
	wantErr(t, err, meta.ErrUnavailable)
	_, _, err = s.Range(within(t), k, "", 0)
	wantErr(t, err, meta.ErrUnavailable)
	_, err = s.NewSession(within(t), h.TTL)
	wantErr(t, err, meta.ErrUnavailable)
	if kv := get(t, other, k); string(kv.Value) != "before" {
		t.Fatalf("value %q written through a cut", kv.Value)
	}
	s.Cut(false)
	eventually(t, "the client is back", func() bool {
		_, err := s.Txn(within(t), txn)
		return err == nil
	})
}

// A call whose context is over names the context's error beside the store's; a
// Txn that was not sent is surely not done.
func testContextEnds(t *testing.T, h Harness) {
	s := h.troubled(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := s.Get(ctx, h.key("k"))
	wantErr(t, err, meta.ErrUnavailable, context.Canceled)
	_, _, err = s.Range(ctx, h.key("k"), "", 0)
	wantErr(t, err, meta.ErrUnavailable, context.Canceled)
	_, err = s.Txn(ctx, meta.Txn{Ops: []meta.Op{{Key: h.key("k")}}})
	wantErr(t, err, meta.ErrUnavailable, context.Canceled)
	if get(t, s, h.key("k")).Exists() {
		t.Fatal("done all the same")
	}
	s.LoseAnswers(true)
	defer s.LoseAnswers(false)
	ctx, cancel = context.WithTimeout(t.Context(), moment)
	defer cancel()
	start := time.Now()
	_, err = s.Txn(ctx, meta.Txn{Ops: []meta.Op{{Key: h.key("k")}}})
	wantErr(t, err, meta.ErrUncertain)
	if took := time.Since(start); took > 10*moment {
		t.Fatalf("ended after %v", took)
	}
}

// A closed client answers nothing, and its watches are over.
func testClosedClient(t *testing.T, h Harness) {
	s := h.Open(t)
	w := s.Watch(t.Context(), h.Prefix, put(t, s, h.key("k"), ""))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatalf("second close: %v", err)
	}
	_, err := s.Get(within(t), h.key("k"))
	wantErr(t, err, meta.ErrUnavailable)
	_, err = s.Txn(within(t), meta.Txn{Ops: []meta.Op{{Key: h.key("k")}}})
	wantErr(t, err, meta.ErrUnavailable)
	_, err = s.NewSession(within(t), h.TTL)
	wantErr(t, err, meta.ErrUnavailable)
	for err = nil; err == nil; {
		_, err = w.Next()
	}
	wantErr(t, err, meta.ErrUnavailable)
	_, err = s.Watch(t.Context(), h.Prefix, 0).Next()
	wantErr(t, err, meta.ErrUnavailable)
}
