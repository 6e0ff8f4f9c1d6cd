package metatest

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// A missing key is no error; a revision rises with each change; a key that was
// deleted and made again has a new creation revision.
func testKeys(t *testing.T, h Harness) {
	s := h.Open(t)
	k := h.key("k")
	if kv := get(t, s, k); kv.Exists() || kv.Value != nil {
		t.Fatalf("missing key: %+v", kv)
	}
	first := put(t, s, k, "1")
	second := put(t, s, k, "2")
	if kv := get(t, s, k); kv.Revision != second || kv.Created != first || string(kv.Value) != "2" || second <= first {
		t.Fatalf("changed key: %+v, want revisions %d and %d", kv, first, second)
	}
	gone := del(t, s, k)
	if kv := get(t, s, k); kv.Exists() {
		t.Fatalf("deleted key: %+v", kv)
	}
	if again := del(t, s, k); again < gone {
		t.Fatalf("revision fell from %d to %d", gone, again)
	}
	third := put(t, s, k, "")
	if kv := get(t, s, k); kv.Created != third || len(kv.Value) != 0 || third <= gone {
		t.Fatalf("key made again: %+v", kv)
	}
}

// What a caller does to bytes it passed in or got back changes nothing stored.
func testValuesAreCopies(t *testing.T, h Harness) {
	s := h.Open(t)
	k, value := h.key("k"), []byte{0, 1, 0xff}
	mustTxn(t, s, meta.Txn{Ops: []meta.Op{{Key: k, Value: value}}})
	value[0] = 9
	get(t, s, k).Value[1] = 9
	kvs, _, err := s.Range(within(t), k, "", 0)
	if err != nil {
		t.Fatal(err)
	}
	kvs[0].Value[2] = 9
	if got := get(t, s, k).Value; !slices.Equal(got, []byte{0, 1, 0xff}) {
		t.Fatalf("value %v", got)
	}
}

// A range is half open, in order, and "" ends it with its prefix.
func testRangeEnds(t *testing.T, h Harness) {
	s := h.Open(t)
	for _, k := range []string{"a", "b/", "b/1", "b/2", "b/\xff", "b0", "c"} {
		put(t, s, h.key("%s", k), k)
	}
	for _, c := range []struct {
		start, end string
		limit      int
		want       []string
	}{
		{"b/", "", 0, []string{"b/", "b/1", "b/2", "b/\xff"}},
		{"b/", "", 2, []string{"b/", "b/1"}},
		{"b/", "b/2", 0, []string{"b/", "b/1"}},
		{"b/1", "b0", 0, []string{"b/1", "b/2", "b/\xff"}},
		{"b/1", "b0", 1, []string{"b/1"}},
		{"b/1", "b/1", 0, nil},
		{"c", "b", 0, nil},
		{"b/\xff", "", 0, []string{"b/\xff"}},
		{"d", "", 0, nil},
		{"", "", 0, []string{"a", "b/", "b/1", "b/2", "b/\xff", "b0", "c"}},
	} {
		end := c.end
		if end != "" {
			end = h.key("%s", end)
		}
		kvs, at, err := s.Range(within(t), h.key("%s", c.start), end, c.limit)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, kv := range kvs {
			got = append(got, kv.Key[len(h.Prefix):])
			if kv.Revision == 0 || kv.Revision > at {
				t.Errorf("key %s has revision %d, range %d", kv.Key, kv.Revision, at)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("range %q to %q, limit %d: %q, want %q", c.start, c.end, c.limit, got, c.want)
		}
	}
}

// A range of more keys than fit a page is whole, and a limit beyond a page holds.
func testRangeOfManyPages(t *testing.T, h Harness) {
	const n = 4500
	s := h.Open(t)
	for i := 0; i < n; i += meta.MaxOps {
		var txn meta.Txn
		for j := i; j < min(n, i+meta.MaxOps); j++ {
			txn.Ops = append(txn.Ops, meta.Op{Key: h.key("%06d", j)})
		}
		mustTxn(t, s, txn)
	}
	for limit, want := range map[int]int{0: n, 4200: 4200, 10000: n} {
		kvs, _, err := s.Range(within(t), h.Prefix, "", limit)
		if err != nil {
			t.Fatal(err)
		}
		if len(kvs) != want {
			t.Fatalf("limit %d: %d keys, want %d", limit, len(kvs), want)
		}
		for i, kv := range kvs {
			if kv.Key != h.key("%06d", i) {
				t.Fatalf("key %d is %s", i, kv.Key)
			}
		}
	}
}

// A condition holds for exactly the revision it names, 0 for a missing key, and
// any for an existing one.
func testTxnConditions(t *testing.T, h Harness) {
	s := h.Open(t)
	there, missing, out := h.key("there"), h.key("missing"), h.key("out")
	old := put(t, s, there, "1")
	now := put(t, s, there, "2")
	for _, c := range []struct {
		name  string
		conds []meta.Cond
		want  bool
	}{
		{"none", nil, true},
		{"at its revision", []meta.Cond{{Key: there, Revision: now}}, true},
		{"at an older one", []meta.Cond{{Key: there, Revision: old}}, false},
		{"at a later one", []meta.Cond{{Key: there, Revision: now + 1}}, false},
		{"absent", []meta.Cond{{Key: missing}}, true},
		{"not absent", []meta.Cond{{Key: there}}, false},
		{"any", []meta.Cond{{Key: there, AnyRevision: true}}, true},
		{"any, missing", []meta.Cond{{Key: missing, AnyRevision: true}}, false},
		{"one of two", []meta.Cond{{Key: there, Revision: now}, {Key: missing, AnyRevision: true}}, false},
		{"both", []meta.Cond{{Key: there, Revision: now}, {Key: missing}}, true},
	} {
		before := get(t, s, out)
		r, err := s.Txn(within(t), meta.Txn{Conds: c.conds, Ops: []meta.Op{{Key: out, Value: []byte(c.name)}}})
		if err != nil {
			t.Fatal(err)
		}
		after := get(t, s, out)
		if r.Done != c.want || (after.Revision != before.Revision) != c.want {
			t.Errorf("%s: done %v, want %v; revision %d to %d", c.name, r.Done, c.want, before.Revision, after.Revision)
		}
		if r.Done && r.Revision != after.Revision {
			t.Errorf("%s: says revision %d, key has %d", c.name, r.Revision, after.Revision)
		}
	}
	r, err := s.Txn(within(t), meta.Txn{Conds: []meta.Cond{{Key: there, Revision: now}}})
	if err != nil || !r.Done {
		t.Errorf("conditions alone: %+v, %v", r, err)
	}
}

// The operations of a transaction happen at one revision, or not at all.
func testTxnIsAllOrNothing(t *testing.T, h Harness) {
	s := h.Open(t)
	a, b, c := h.key("a"), h.key("b"), h.key("c")
	put(t, s, c, "old")
	at := mustTxn(t, s, meta.Txn{Ops: []meta.Op{{Key: a}, {Key: b}, {Key: c, Delete: true}}})
	if ra, rb := get(t, s, a).Revision, get(t, s, b).Revision; ra != at || rb != at || get(t, s, c).Exists() {
		t.Fatalf("revisions %d and %d, want %d", ra, rb, at)
	}
	ended := session(t, s, h.TTL)
	if err := ended.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	_, err := s.Txn(within(t), meta.Txn{Ops: []meta.Op{{Key: a, Value: []byte("new")}, {Key: b, Session: ended}, {Key: c}}})
	wantErr(t, err, meta.ErrSessionEnded)
	if get(t, s, a).Revision != at || get(t, s, b).Revision != at || get(t, s, c).Exists() {
		t.Fatal("a transaction that failed changed something")
	}
}

// 128 conditions and 128 operations are taken; more, a key written twice or an
// empty key are refused, and nothing of it is done.
func testTxnLimits(t *testing.T, h Harness) {
	s := h.Open(t)
	conds := func(n int) (conds []meta.Cond) {
		for i := range n {
			conds = append(conds, meta.Cond{Key: h.key("cond/%d", i)})
		}
		return conds
	}
	ops := func(n int) (ops []meta.Op) {
		for i := range n {
			ops = append(ops, meta.Op{Key: h.key("op/%d", i)})
		}
		return ops
	}
	twice := []meta.Op{{Key: h.key("op/x")}, {Key: h.key("op/x"), Delete: true}}
	for name, txn := range map[string]meta.Txn{
		"operations": {Ops: ops(meta.MaxOps + 1)},
		"conditions": {Conds: conds(meta.MaxOps + 1), Ops: ops(1)},
		"twice":      {Ops: twice},
		"empty key":  {Ops: []meta.Op{{Key: h.key("op/y")}, {}}},
		"empty cond": {Conds: []meta.Cond{{}}, Ops: ops(1)},
	} {
		_, err := s.Txn(within(t), txn)
		if err == nil || errors.Is(err, meta.ErrUnavailable) || errors.Is(err, meta.ErrUncertain) {
			t.Errorf("%s: error %v", name, err)
		}
	}
	if kvs, _, err := s.Range(within(t), h.key("op/"), "", 0); err != nil || len(kvs) != 0 {
		t.Fatalf("refused transactions left %d keys (%v)", len(kvs), err)
	}
	mustTxn(t, s, meta.Txn{Conds: conds(meta.MaxOps), Ops: ops(meta.MaxOps)})
	if kvs, _, err := s.Range(within(t), h.key("op/"), "", 0); err != nil || len(kvs) != meta.MaxOps {
		t.Fatalf("%d keys (%v), want %d", len(kvs), err, meta.MaxOps)
	}
}

// Counters raised by compare-and-swap from several clients at once lose nothing.
func testConcurrentCAS(t *testing.T, h Harness) {
	const clients, each = 4, 10
	k := h.key("counter")
	var wg sync.WaitGroup
	errs := make(chan error, clients)
	for range clients {
		s := h.Open(t)
		ctx := within(t)
		wg.Go(func() {
			for done := 0; done < each; {
				kv, err := s.Get(ctx, k)
				if err != nil {
					errs <- err
					return
				}
				n, _ := strconv.Atoi(string(kv.Value))
				r, err := s.Txn(ctx, meta.Txn{
					Conds: []meta.Cond{{Key: k, Revision: kv.Revision}},
					Ops:   []meta.Op{{Key: k, Value: []byte(strconv.Itoa(n + 1))}},
				})
				if err != nil {
					errs <- err
					return
				}
				if r.Done {
					done++
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	for err := range errs {
		t.Error(err)
	}
	if got, want := string(get(t, h.Open(t), k).Value), fmt.Sprint(clients*each); got != want {
		t.Fatalf("counter is %s, want %s", got, want)
	}
}
