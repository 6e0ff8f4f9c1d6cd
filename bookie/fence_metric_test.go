package bookie

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// TestFencesAreCounted shows that the counter of fences counts those that were
// written, and not what found the ledger fenced already.
func TestFencesAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := openNode(t, testOptions(vfs.NewMem()))
		for range 3 {
			if _, err := n.Fence(context.Background(), 1, 5); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := n.Fence(context.Background(), 1, 6); err != nil {
			t.Fatal(err)
		}
		if got := counted(t, n.metrics.fences); got != 2 {
			t.Errorf("%v fences counted, 2 were written", got)
		}
	})
}
