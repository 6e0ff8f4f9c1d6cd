// Package metatest is the contract of meta.Store as tests: what etcd and its
// twin in memory must both do. A case knows neither; the harness it is given
// makes clients of one state and troubles them.
package metatest

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Harness is one state and the means to trouble it. Each case gets its own
// Prefix, and leaves other keys alone, so that cases may share a state.
type Harness struct {
	Prefix string
	// Open returns a new client. The harness closes it when the test ends.
	Open func(t *testing.T) Client
	// Compact forgets all history before now.
	Compact func(t *testing.T)
	// Expire ends a session on the store's side.
	Expire func(t *testing.T, session string)
	// TTL of sessions that are to run out: the shortest the store knows.
	TTL time.Duration
}

// Client is a connection that can be troubled without the others, or not, where
// there is none: LoseAnswers and Cut are nil then, and cases that need them are
// skipped.
type Client struct {
	meta.Store
	// LoseAnswers lets what is asked be done, and its answers be lost, while on.
	LoseAnswers func(on bool)
	// Cut makes the store unreachable for this client, while on.
	Cut func(on bool)
}

// Case is one promise of the contract.
type Case struct {
	Name string
	// Alone: it troubles the whole state, no other case may run beside it.
	Alone bool
	Run   func(t *testing.T, h Harness)
}

// Cases returns all of them.
func Cases() []Case {
	return []Case{
		{Name: "Keys", Run: testKeys},
		{Name: "ValuesAreCopies", Run: testValuesAreCopies},
		{Name: "RangeEnds", Run: testRangeEnds},
		{Name: "RangeOfManyPages", Run: testRangeOfManyPages},
		{Name: "TxnConditions", Run: testTxnConditions},
		{Name: "TxnIsAllOrNothing", Run: testTxnIsAllOrNothing},
		{Name: "TxnLimits", Run: testTxnLimits},
		{Name: "ConcurrentCompareAndSwap", Run: testConcurrentCAS},
		{Name: "DoneButTheAnswerWasLost", Run: testLostAnswer},
		{Name: "Unreachable", Run: testUnreachable},
		{Name: "CallsEndWithTheirContext", Run: testContextEnds},
		{Name: "ClosedClient", Run: testClosedClient},
		{Name: "WatchIsCompleteAndInOrder", Run: testWatchOrder},
		{Name: "WatchFromThePast", Run: testWatchFromThePast},
		{Name: "WatchTellsHowFarItHasCome", Run: testWatchProgress},
		{Name: "WatchEndsWithItsContext", Run: testWatchEnds},
		{Name: "WatchCatchesUpAfterACut", Run: testWatchAfterCut},
		{Name: "WatchOfForgottenRevision", Alone: true, Run: testWatchCompacted},
		{Name: "SessionKeysGoWithIt", Run: testSessionKeys},
		{Name: "SessionIsKeptAlive", Run: testSessionKeptAlive},
		{Name: "SessionExpires", Run: testSessionExpires},
		{Name: "SessionOfACutClient", Run: testSessionOfCutClient},
		{Name: "SessionOfADeadClient", Run: testSessionOfDeadClient},
	}
}

// patience bounds each wait for what must happen soon.
const patience = 10 * time.Second

func (h Harness) key(format string, args ...any) string {
	return h.Prefix + fmt.Sprintf(format, args...)
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

func put(t *testing.T, s meta.Store, key, value string) meta.Revision {
	t.Helper()
	return mustTxn(t, s, meta.Txn{Ops: []meta.Op{{Key: key, Value: []byte(value)}}})
}

func del(t *testing.T, s meta.Store, key string) meta.Revision {
	t.Helper()
	return mustTxn(t, s, meta.Txn{Ops: []meta.Op{{Key: key, Delete: true}}})
}

func mustTxn(t *testing.T, s meta.Store, txn meta.Txn) meta.Revision {
	t.Helper()
	r, err := s.Txn(within(t), txn)
	if err != nil {
		t.Fatal(err)
	}
	if !r.Done {
		t.Fatalf("conditions of %+v did not hold", txn)
	}
	return r.Revision
}

func get(t *testing.T, s meta.Store, key string) meta.KV {
	t.Helper()
	kv, err := s.Get(within(t), key)
	if err != nil {
		t.Fatal(err)
	}
	if kv.Key != key {
		t.Fatalf("get %s gave key %q", key, kv.Key)
	}
	return kv
}

func session(t *testing.T, s meta.Store, ttl time.Duration) meta.Session {
	t.Helper()
	session, err := s.NewSession(within(t), ttl)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { session.Close(context.Background()) })
	return session
}

func wantErr(t *testing.T, err error, want ...error) {
	t.Helper()
	for _, w := range want {
		if !errors.Is(err, w) {
			t.Fatalf("error %v, want %v", err, w)
		}
	}
}

// troubled opens a client that can be troubled.
func (h Harness) troubled(t *testing.T) Client {
	t.Helper()
	c := h.Open(t)
	if c.Cut == nil {
		t.Skip("nothing stands between this client and the store")
	}
	return c
}

// eventually waits for what another process's doing brings about.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v", what, patience)
		}
	}
}
