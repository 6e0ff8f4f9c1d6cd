package broker

import (
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// partitioned makes a topic of so many partitions.
func (w *world) partitioned(local string, partitions int) topicname.Name {
	w.t.Helper()
	name := topicname.MustParse(local)
	if _, err := w.catalog.CreateTopic(w.t.Context(), name, partitions); err != nil {
		w.t.Fatal(err)
	}
	return name
}

// reroute gives the map of a topic another version.
func (w *world) reroute(name topicname.Name, version uint64) {
	w.t.Helper()
	key := keys.PartitionedTopic(name.NamespaceName(), name.Local)
	kv, err := w.store.Get(w.t.Context(), key)
	if err != nil {
		w.t.Fatal(err)
	}
	var record metav1.PartitionedTopic
	if err := proto.Unmarshal(kv.Value, &record); err != nil {
		w.t.Fatal(err)
	}
	record.SetRoutingVersion(version)
	value, err := proto.Marshal(&record)
	if err != nil {
		w.t.Fatal(err)
	}
	w.rewrite(kv, value)
}

// rewrite gives a record another value.
func (w *world) rewrite(kv meta.KV, value []byte) {
	w.t.Helper()
	txn := meta.Txn{Conds: []meta.Cond{{Key: kv.Key, Revision: kv.Revision}}, Ops: []meta.Op{{Key: kv.Key, Value: value}}}
	if res, err := w.store.Txn(w.t.Context(), txn); err != nil || !res.Done {
		w.t.Fatal(res, err)
	}
}

// routed publishes a batch made for a version of the map, and says whether it was
// refused for that.
func (s *sink) routed(t *testing.T, sequence, version uint64) (stale bool) {
	t.Helper()
	s.mu.Lock()
	receipts, refused := s.receipts, len(s.refused)
	s.mu.Unlock()
	s.producer.Publish(batch(s.producer.Name(), sequence, version))
	time.Sleep(time.Second)
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.receipts == receipts+1 && len(s.refused) == refused:
		return false
	case s.receipts == receipts && len(s.refused) == refused+1 && errors.Is(s.refused[refused], topic.ErrStaleRouting):
		return true
	}
	t.Fatalf("a batch for version %d: %d receipts more, refused %v", version, s.receipts-receipts, s.refused[refused:])
	return false
}

// TestRuleM32_StaleRoutingIsRefused shows that a broker takes no batch that was made
// for a map its topic has no more: for a partition that is open when the map changes,
// that was opened since, that was being opened just then, and that is open while the
// change is missed because the watch broke off.
func TestRuleM32_StaleRoutingIsRefused(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		base := w.partitioned("orders", 3)
		for partition := range 3 {
			a.open(w.bundleOf(base.WithPartition(partition)))
		}
		first := a.publish(base.WithPartition(0), "p", 1)
		if first.routed(t, 1, 1) {
			t.Error("a batch for the only map was refused")
		}
		w.reroute(base, 2)
		synctest.Wait()
		if !first.routed(t, 2, 1) {
			t.Error("the partition was open, and a batch for an older map was taken")
		}
		if first.routed(t, 2, 2) {
			t.Error("a batch for the newest map was refused")
		}
		second := a.publish(base.WithPartition(1), "p", 1)
		if !second.routed(t, 1, 1) {
			t.Error("the partition was opened since, and a batch for an older map was taken")
		}
		record, err := w.catalog.Topic(t.Context(), base.WithPartition(2))
		if err != nil {
			t.Fatal(err)
		}
		var once sync.Once
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client != "a" || c.Kind != meta.CallRange || c.Key != keys.Chain(record.ID) {
				return meta.Fault{}
			}
			once.Do(func() { w.reroute(base, 3) })
			return meta.Fault{Delay: time.Second} // meanwhile the broker hears of it
		})
		third := a.publish(base.WithPartition(2), "p", 1)
		if !third.routed(t, 1, 2) {
			t.Error("the map changed while the partition was being opened, and a batch for the older one was taken")
		}
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Key == keys.AllPartitionedTopics() {
				return meta.Fault{Err: meta.ErrUnavailable} // the watch breaks, and does not stand again
			}
			return meta.Fault{}
		})
		w.reroute(base, 4)
		synctest.Wait()
		if first.routed(t, 3, 3) {
			t.Error("the change is known without a watch")
		}
		w.onCall(nil)
		time.Sleep(5 * time.Second)
		if !first.routed(t, 4, 3) {
			t.Error("a change that the watch missed was not looked for")
		}
	})
}

// TestRuleM32_BrokenMapStopsOnlyItsTopic shows that a map which cannot be read keeps
// a broker whose watch broke off from hearing of no other topic's.
func TestRuleM32_BrokenMapStopsOnlyItsTopic(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		a := w.start("a")
		var open [2]*sink
		base := [2]topicname.Name{w.partitioned("broken", 1), w.partitioned("orders", 1)}
		for i, name := range base {
			open[i] = a.ready(name.WithPartition(0)).publish(name.WithPartition(0), "p", 1)
		}
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Client == "a" && c.Key == keys.AllPartitionedTopics() {
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		kv, err := w.store.Get(t.Context(), keys.PartitionedTopic(base[0].NamespaceName(), base[0].Local))
		if err != nil {
			t.Fatal(err)
		}
		w.rewrite(kv, []byte{0xff})
		w.reroute(base[1], 2)
		w.onCall(nil)
		time.Sleep(5 * time.Second)
		if !open[1].routed(t, 1, 1) {
			t.Error("a batch for an older map was taken")
		}
		if open[0].routed(t, 1, 1) {
			t.Error("a batch for the last map that could be read was refused")
		}
		w.reroute(base[1], 3)
		synctest.Wait()
		if !open[1].routed(t, 1, 2) {
			t.Error("the watch does not stand again")
		}
	})
}
