package broker

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// TestRuleM19_LeftOpenIsLookedForUntilItIsFound shows a broker that takes over while
// parts of the metadata store cannot be read: each topic that the last
// owner left open is opened all the same, and the deletion it left undone is done,
// though nobody asks for either.
func TestRuleM19_LeftOpenIsLookedForUntilItIsFound(t *testing.T) {
	for _, bad := range []string{"list of topics", "chain", "record"} {
		t.Run(bad, func(t *testing.T) {
			story(t, func(t *testing.T, w *world) {
				a := w.start("a")
				name, other := w.topic("orders"), w.topic("old")
				a.ready(name, other).publish(name, "p", 3)
				a.publish(other, "p", 3)
				list := func(name topicname.Name) string {
					bd := w.bundleOf(name)
					start, _ := keys.TopicRange(bd.Namespace, bd.Range.First, bd.Range.Last)
					return start
				}
				broken := map[string][]string{
					"list of topics": {list(name), list(other)},
					"chain":          {keys.Chain(w.idOf(name))},
					"record":         {w.catalog.TopicKey(name)},
				}[bad]
				back := time.Now().Add(time.Minute)
				w.onCall(func(c meta.Call) meta.Fault {
					for _, key := range broken {
						if c.Client == "b" && c.Kind != meta.CallTxn && c.Key == key && time.Now().Before(back) {
							return meta.Fault{Err: meta.ErrUnavailable}
						}
					}
					return meta.Fault{}
				})
				a.kill()
				if _, err := w.catalog.MarkDeleting(t.Context(), other); err != nil {
					t.Fatal(err)
				}
				o := w.start("b").open(w.bundleOf(name))
				time.Sleep(30 * time.Second)
				if len(o.openTopics()) != 0 {
					t.Fatal("nothing was bad")
				}
				time.Sleep(3 * time.Minute)
				if len(o.openTopics()) != 1 {
					t.Error("the topic is not open")
				}
				if _, err := w.catalog.Topic(t.Context(), other); !errors.Is(err, rpcerr.ErrNotFound) {
					t.Errorf("the other is not deleted: %v", err)
				}
			})
		})
	}
}

// TestRuleM19_LeftOpenIsLookedForAtARate shows that a broker which takes over many
// topics reads no more of their chains in a second than its rate, all bundles
// together, and each once.
func TestRuleM19_LeftOpenIsLookedForAtARate(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		const topics = 4 * unclosedRate
		looked := map[string]int{} // by the prefix of the chain
		for i := range topics {
			looked[keys.Chain(w.idOf(w.topic(fmt.Sprint("t", i))))] = 0
		}
		var mu sync.Mutex
		var reads []time.Time
		w.onCall(func(c meta.Call) meta.Fault {
			mu.Lock()
			defer mu.Unlock()
			if _, chain := looked[c.Key]; chain && c.Kind == meta.CallRange {
				looked[c.Key]++
				reads = append(reads, time.Now())
			}
			return meta.Fault{}
		})
		a := w.start("a")
		w.until("all bundles are open", time.Minute, func() bool { return len(a.owned()) == catalog.DefaultBundles })
		time.Sleep(topics / unclosedRate * 2 * time.Second)
		mu.Lock()
		defer mu.Unlock()
		for i := range reads {
			if j := i + unclosedRate + unclosedBurst; j < len(reads) && reads[j].Sub(reads[i]) < time.Second {
				t.Fatalf("%d reads in %v", j-i+1, reads[j].Sub(reads[i]))
			}
		}
		for chain, n := range looked {
			if n != 1 {
				t.Errorf("%s was looked at %d times", strings.TrimSuffix(chain, "/"), n)
			}
		}
	})
}

// Shows that a chain with a link that cannot be read is not taken for closed: that is
// not known, and opening the topic tells what is wrong.
func TestUnreadableLinkIsNotTakenForClosed(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		name := w.topic("orders")
		o := w.start("a").open(w.bundleOf(name))
		id := w.idOf(name)
		if unclosed, err := o.hasUnclosed(id); err != nil || unclosed {
			t.Fatalf("an empty chain: %v, %v", unclosed, err)
		}
		txn := meta.Txn{Ops: []meta.Op{{Key: keys.ChainLink(id, 1), Value: []byte{0xff}}}}
		if res, err := w.store.Txn(t.Context(), txn); err != nil || !res.Done {
			t.Fatal(res, err)
		}
		if unclosed, err := o.hasUnclosed(id); err != nil || !unclosed {
			t.Errorf("a link that cannot be read: %v, %v", unclosed, err)
		}
	})
}
