package roles

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/health"
)

// TestStoreAwayIsShownAndTolerated shows that a process that loses its metadata
// store says so and stays in service, and that what else fails still counts.
func TestStoreAwayIsShownAndTolerated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := meta.NewMem().Client("process")
		h := health.New("metadata", "storage")
		stop := WatchMetadata(store, h)
		defer stop()
		h.Set("storage", "")
		check := func(ready, ok bool) {
			t.Helper()
			time.Sleep(10 * time.Second)
			synctest.Wait()
			r := h.Report()
			if r.Ready != ready || r.Conditions[0].Name != "metadata" || r.Conditions[0].OK != ok {
				t.Fatalf("got %+v, want ready=%v and metadata ok=%v", r, ready, ok)
			}
		}
		check(true, true)
		store.Cut(true)
		check(true, false)
		if why := h.Report().Conditions[0].Reason; !strings.Contains(why, "no answer since") || !strings.Contains(why, "unavailable") {
			t.Errorf("the reason is %q", why)
		}
		h.Set("storage", "stopping")
		check(false, false)
		h.Set("storage", "")
		store.Cut(false)
		check(true, true)
	})
}
