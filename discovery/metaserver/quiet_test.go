package metaserver_test

import (
	"context"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/metaserver"
)

// A watch of a store that nobody writes to hears that nothing has changed, again
// and again, though it starts at the very last change.
func TestQuietStoreTellsProgress(t *testing.T) {
	t.Parallel()
	server := start(t, metaserver.Options{Dir: t.TempDir()})
	s := server.Store()
	defer s.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	put, err := s.Txn(ctx, meta.Txn{Ops: []meta.Op{{Key: "/quiet"}}})
	if err != nil {
		t.Fatal(err)
	}
	w := s.Watch(ctx, "/", put.Revision)
	began := time.Now()
	for range 2 {
		b, err := w.Next()
		if err != nil {
			t.Fatalf("after %s: %v", time.Since(began), err)
		}
		if len(b.Events) > 0 || b.Revision != put.Revision {
			t.Fatalf("got %+v, want no events as of revision %d", b, put.Revision)
		}
	}
}
