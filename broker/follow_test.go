package broker

import (
	"errors"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
)

// TestWhatCameBeforeTheFirstWatchIsLookedFor shows a broker that opens bundles and
// topics before its watches stand, because the metadata store does not answer these:
// the change of a map and the mark of a deletion that come meanwhile are not lost.
func TestWhatCameBeforeTheFirstWatchIsLookedFor(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		base, old := w.partitioned("orders", 1), w.topic("old")
		name := base.WithPartition(0)
		back := time.Now().Add(time.Minute)
		w.onCall(func(c meta.Call) meta.Fault {
			if c.Kind == meta.CallRange && (c.Key == keys.AllPartitionedTopics() || c.Key == keys.AllTopics()) && time.Now().Before(back) {
				return meta.Fault{Err: meta.ErrUnavailable}
			}
			return meta.Fault{}
		})
		s := w.start("a").ready(name, old).publish(name, "p", 1)
		time.Sleep(10 * time.Second) // the bundles have looked for what was left to them
		w.reroute(base, 2)
		if _, err := w.catalog.MarkDeleting(t.Context(), old); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if s.routed(t, 1, 1) {
			t.Fatal("the change is known without a watch")
		}
		time.Sleep(time.Minute)
		if !s.routed(t, 2, 1) {
			t.Error("a batch for an older map was taken")
		}
		if _, err := w.catalog.Topic(t.Context(), old); !errors.Is(err, rpcerr.ErrNotFound) {
			t.Errorf("the topic is not deleted: %v", err)
		}
	})
}
