package bookie

import (
	"context"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/index"
	"github.com/magnetar-io/magnetar/bookie/internal/ledgertable"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// checkpointBatch is how many records are copied at a time.
const checkpointBatch = 500

// checkpoint makes whatever segments up to last say of ledgers durable elsewhere:
// as whole copies in the log behind them, and in the index (M27). After it, and
// the index's Flush, their records of ledgers may go.
func (n *Node) checkpoint(last uint32) error {
	if n.table.Limbo() {
		r := ledgertable.NewRecord()
		r.Limbo = true
		whole := toIndex(0, r)
		result := make(chan error, 1)
		n.hot.Append(hotlog.Record{Kind: hotlog.KindLedger, Data: whole.AppendTo(nil)}, func(_ hotlog.Place, err error) { result <- err })
		if err := <-result; err != nil {
			return fmt.Errorf("checkpoint limbo: %w", err)
		}
	}
	for ids := range slices.Chunk(n.table.Unsaved(last), checkpointBatch) {
		if err := n.checkpointRecords(ids); err != nil {
			return fmt.Errorf("checkpoint ledger records: %w", err)
		}
	}
	for _, key := range n.table.UnsavedTombstones(last) {
		if err := n.checkpointTombstones(key); err != nil {
			return fmt.Errorf("checkpoint tombstones: %w", err)
		}
	}
	return nil
}

// checkpointTombstones copies one chunk of the set of deleted ledgers. No ledger
// is deleted between the copy and its place in the log.
func (n *Node) checkpointTombstones(key int64) error {
	result := make(chan placed, 1)
	n.deletes.Lock()
	n.hot.Append(hotlog.Record{Kind: hotlog.KindTombstone, Data: n.table.EncodeTombstones(key)}, func(p hotlog.Place, err error) {
		result <- placed{0, p, err}
	})
	n.deletes.Unlock()
	r := <-result
	if r.err != nil {
		return r.err
	}
	n.table.SavedTombstones(key, r.place.Segment)
	return nil
}

// checkpointRecords copies the records of some ledgers. Each is taken, and handed
// to the log, under the ledger's lock: what changes later is in the log behind it.
func (n *Node) checkpointRecords(ids []ledger.ID) error {
	var batch index.Batch
	results := make(chan placed, len(ids))
	waiting := 0
	for _, id := range ids {
		g := n.table.Lock(id)
		if g.Known() { // else it was deleted meanwhile
			g.SetCreated(n.opts.Now().UnixMilli())
			r, _ := g.Record()
			record := toIndex(id, r)
			batch.PutRecord(record)
			n.hot.Append(hotlog.Record{Kind: hotlog.KindLedger, Ledger: id, Data: record.AppendTo(nil)}, func(p hotlog.Place, err error) {
				results <- placed{id, p, err}
			})
			waiting++
		}
		g.Unlock()
	}
	var failed error
	for range waiting {
		r := <-results
		if r.err != nil {
			failed = r.err
			continue
		}
		n.table.Saved(r.id, r.place.Segment)
	}
	if failed != nil {
		return failed
	}
	return n.index.Apply(&batch)
}

// placed is where a record of a ledger came to stand.
type placed struct {
	id    ledger.ID
	place hotlog.Place
	err   error
}

// applyDeleted tells the index of ledgers deleted since it was last told.
func (n *Node) applyDeleted(ctx context.Context) error {
	for ctx.Err() == nil {
		ids := n.upkeep.takeDeleted(checkpointBatch)
		if len(ids) == 0 {
			return nil
		}
		var batch index.Batch
		for _, id := range ids {
			batch.Delete(id)
		}
		if err := n.index.Apply(&batch); err != nil {
			n.upkeep.noteDeleted(ids...)
			return fmt.Errorf("delete from the index: %w", err)
		}
	}
	return ctx.Err()
}
