package bookie

import (
	"context"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Delete drops a ledger and remembers for ever that it was deleted, also when it
// was never seen: a paused creator's first add may still be on its way (M14). The
// tombstone is on disk when Delete returns. Only the Collector calls it, which has
// read the ledger's own tombstone in the metadata store.
func (n *Node) Delete(ctx context.Context, id ledger.ID) error {
	if id < 1 {
		return fmt.Errorf("delete ledger %d: %w", id, wire.ErrInvalid)
	}
	if err := n.gate.enter(); err != nil {
		return err
	}
	result := make(chan error, 1)
	n.startDelete(id, result)
	n.gate.leave()
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("delete ledger %d: %w", id, err)
	}
	n.metrics.deleted.Inc()
	return nil
}

// startDelete hands the tombstone to the log. Every add that was let in before it
// is in the log before it.
func (n *Node) startDelete(id ledger.ID, result chan<- error) {
	n.deletes.Lock()
	defer n.deletes.Unlock()
	g := n.table.Lock(id)
	defer g.Unlock()
	g.Delete()
	n.hot.Append(hotlog.Record{Kind: hotlog.KindTombstone, Ledger: id}, func(_ hotlog.Place, err error) {
		if err == nil {
			n.hot.Forget(id) // before any later append of the log is answered: nothing of id comes after
			n.upkeep.noteDeleted(id)
		}
		result <- err
	})
}
