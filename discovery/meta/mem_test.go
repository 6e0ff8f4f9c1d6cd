package meta

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func put(t *testing.T, s Store, key, value string) Revision {
	t.Helper()
	r, err := s.Txn(t.Context(), Txn{Ops: []Op{{Key: key, Value: []byte(value)}}})
	if err != nil || !r.Done {
		t.Fatalf("put %s: %v %v", key, r, err)
	}
	return r.Revision
}

func value(t *testing.T, s Store, key string) string {
	t.Helper()
	kv, err := s.Get(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	return string(kv.Value)
}

// A transaction whose answer is lost was done; one that is not done says so, or
// says that it does not know.
func TestMemFaultsOfATxn(t *testing.T) {
	m := NewMem()
	set := func(v string) Txn { return Txn{Ops: []Op{{Key: "k", Value: []byte(v)}}} }
	for _, c := range []struct {
		fault Fault
		want  error
		done  bool
	}{
		{Fault{}, nil, true},
		{Fault{Err: ErrUnavailable}, ErrUnavailable, false},
		{Fault{Err: ErrUncertain}, ErrUncertain, false},
		{Fault{Lost: true}, ErrUncertain, true},
	} {
		put(t, m, "k", "before")
		m.OnCall(func(Call) Fault { return c.fault })
		_, err := m.Txn(t.Context(), set("after"))
		m.OnCall(nil)
		if !errors.Is(err, c.want) {
			t.Errorf("%+v: error %v", c.fault, err)
		}
		if done := value(t, m, "k") == "after"; done != c.done {
			t.Errorf("%+v: done is %v", c.fault, done)
		}
	}
}

// A transaction under way when its caller gives up arrives all the same; one
// that is held back never does.
func TestMemDelayedTxnOutlivesItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		for _, c := range []struct {
			fault Fault
			want  string
		}{{Fault{Delay: 2 * time.Second}, "late"}, {Fault{Until: make(chan struct{})}, ""}} {
			m.OnCall(func(Call) Fault { return c.fault })
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := m.Txn(ctx, Txn{Ops: []Op{{Key: "k" + c.want, Value: []byte("late")}}})
			cancel()
			if !errors.Is(err, ErrUncertain) || !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("error %v", err)
			}
			m.OnCall(nil)
			time.Sleep(2 * time.Second)
			if got := value(t, m, "k"+c.want); got != c.want {
				t.Errorf("%+v: value %q", c.fault, got)
			}
		}
	})
}

// A client that is cut off loses its session by its own clock, and its keys go
// in the store after one ttl; another client goes on.
func TestMemCutClientLosesItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		a, b := m.Client("a"), m.Client("b")
		sa, err := a.NewSession(t.Context(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		sb, err := b.NewSession(t.Context(), 5*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		for s, c := range map[Session]*MemClient{sa: a, sb: b} {
			if _, err := c.Txn(t.Context(), Txn{Ops: []Op{{Key: "s/" + s.ID(), Session: s}}}); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Minute)
		cutAt := time.Now()
		a.Cut(true)
		if _, err := a.Get(t.Context(), "k"); !errors.Is(err, ErrUnavailable) {
			t.Fatalf("get of a cut client: %v", err)
		}
		<-sa.Ended()
		if took := time.Since(cutAt); took > 5*time.Second || took < 3*time.Second {
			t.Errorf("session ended after %v", took)
		}
		time.Sleep(2 * time.Second)
		kvs, _, err := b.Range(t.Context(), "s/", "", 0)
		if err != nil || len(kvs) != 1 || kvs[0].Key != "s/"+sb.ID() {
			t.Errorf("keys left: %v %v", kvs, err)
		}
		b.Close()
		select {
		case <-sb.Ended():
		case <-time.After(time.Second):
			t.Error("session outlives its client")
		}
	})
}

// A session the store ended is noticed when it is next renewed, and what was
// written under it is gone.
func TestMemExpiredSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		s, err := m.NewSession(t.Context(), 6*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		m.Txn(t.Context(), Txn{Ops: []Op{{Key: "k", Session: s}}})
		m.Expire(s.ID())
		if kv, _ := m.Get(t.Context(), "k"); kv.Exists() {
			t.Error("key outlives its session")
		}
		if _, err := m.Txn(t.Context(), Txn{Ops: []Op{{Key: "k", Session: s}}}); !errors.Is(err, ErrSessionEnded) {
			t.Errorf("put under an ended session: %v", err)
		}
		start := time.Now()
		<-s.Ended()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("noticed after %v", took)
		}
	})
}

// While the store is away nothing works and no key goes; sessions end by the
// clock of their process, and their keys one ttl after the store is back.
func TestMemUnavailable(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		s, _ := m.NewSession(t.Context(), 5*time.Second)
		m.Txn(t.Context(), Txn{Ops: []Op{{Key: "k", Session: s}}})
		m.SetUnavailable(true)
		if _, err := m.Txn(t.Context(), Txn{Ops: []Op{{Key: "x"}}}); !errors.Is(err, ErrUnavailable) {
			t.Errorf("txn: %v", err)
		}
		time.Sleep(time.Minute)
		<-s.Ended()
		m.SetUnavailable(false)
		if kv, _ := m.Get(t.Context(), "k"); !kv.Exists() {
			t.Error("key went while the store was away")
		}
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if kv, _ := m.Get(t.Context(), "k"); kv.Exists() {
			t.Error("key outlives its session")
		}
	})
}

// Rollback brings keys and revisions back to what they were, ends running
// watches, and leaves no session that began later.
func TestMemRollback(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := NewMem()
		put(t, m, "a", "1")
		at := put(t, m, "b", "1")
		w := m.Watch(t.Context(), "", at)
		put(t, m, "a", "2")
		s, _ := m.NewSession(t.Context(), time.Minute)
		m.Txn(t.Context(), Txn{Ops: []Op{{Key: "b", Delete: true}, {Key: "c", Session: s}}})
		m.Rollback(at)
		if m.Revision() != at || value(t, m, "a") != "1" || value(t, m, "b") != "1" || value(t, m, "c") != "" {
			t.Error("state differs from what it was")
		}
		if _, err := w.Next(); !errors.Is(err, ErrUnavailable) {
			t.Errorf("watch: %v", err)
		}
		<-s.Ended()
		if again := put(t, m, "a", "3"); again != at+1 {
			t.Errorf("next revision %d after %d", again, at)
		}
	})
}

// Without space puts fail, reads and deletions work.
func TestMemNoSpace(t *testing.T) {
	m := NewMem()
	put(t, m, "a", "1")
	m.SetNoSpace(true)
	if _, err := m.Txn(t.Context(), Txn{Ops: []Op{{Key: "b"}}}); !errors.Is(err, ErrNoSpace) {
		t.Errorf("put: %v", err)
	}
	if r, err := m.Txn(t.Context(), Txn{Ops: []Op{{Key: "a", Delete: true}}}); err != nil || !r.Done {
		t.Errorf("delete: %v", err)
	}
}
