package roles

import (
	"context"
	"sync"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/health"
)

// WatchMetadata says that the condition "metadata" holds, for the store has just
// answered, and keeps what is shown of it true until stop is called.
//
// A store that goes away later leaves the process ready: what it has open it goes
// on serving, and a probe that took it out of service would turn an outage of the
// store into one of everything. So the condition is tolerated then.
func WatchMetadata(store meta.Store, h *health.State) (stop func()) {
	h.Set("metadata", "")
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		meta.Probe(ctx, store, func(err error) {
			wrong := ""
			if err != nil {
				wrong = err.Error()
			}
			h.Tolerate("metadata", wrong)
		})
	})
	return func() { cancel(); done.Wait() }
}
