package bookie

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// CollectorOptions say how deleted ledgers are collected.
type CollectorOptions struct {
	Store  meta.Store
	Layout layout.Layout
	// Grace is how old a ledger's tombstone must be before its entries go; 0: 30 s.
	Grace time.Duration
	// Every is the least time between two runs; 0: 1 s.
	Every time.Duration
	// PerRun is how many ledgers one run may delete; 0: 1000.
	PerRun int
	// ListEvery is how often all ledger records are listed, for what a watch that
	// broke off did not tell; 0: 10 min.
	ListEvery time.Duration

	Log hclog.Logger
}

func (o CollectorOptions) withDefaults() CollectorOptions {
	if o.Grace == 0 {
		o.Grace = 30 * time.Second
	}
	if o.Every == 0 {
		o.Every = time.Second
	}
	if o.PerRun == 0 {
		o.PerRun = 1000
	}
	if o.ListEvery == 0 {
		o.ListEvery = 10 * time.Minute
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	return o
}

// Collector deletes from a node the ledgers that were deleted in the metadata
// store. A ledger goes only on the word of its tombstone: found by a watch or a
// listing, then read a second time, directly and linearizably, older than a
// grace time, from the store of the node's own cluster, and so many a run.
// Nothing is ever collected because a listing did not show it.
//
// For each: the node's own tombstone is synced, then the node takes itself out
// of the record's owed list by compare-and-swap, the last one removing the
// record. A crash between the two repeats the first.
type Collector struct {
	node *Node
	opts CollectorOptions
	log  hclog.Logger

	// pending are tombstones that owe this bookie's confirmation, by when they were
	// made, in milliseconds. Owned by Run.
	pending map[ledger.ID]int64
}

// maxPending bounds Collector.pending; what is beyond it is found by a later
// listing.
const maxPending = 1 << 20

// NewCollector returns a collector for node that begins with Run.
func NewCollector(node *Node, opts CollectorOptions) *Collector {
	opts = opts.withDefaults()
	return &Collector{
		node:    node,
		opts:    opts,
		log:     opts.Log.Named("collector").With("bookie", node.identity.Bookie),
		pending: make(map[ledger.ID]int64),
	}
}

// Run collects until ctx ends.
func (c *Collector) Run(ctx context.Context) {
	var wait backoff
	for ctx.Err() == nil {
		if err := c.follow(ctx, &wait); err != nil && ctx.Err() == nil {
			c.log.Debug("listing again", "error", err)
			wait.sleep(ctx, c.node.opts.Rand)
		}
	}
}

// follow lists all ledger records once, then watches them, and collects, until
// ListEvery has passed or the watch breaks off.
func (c *Collector) follow(ctx context.Context, wait *backoff) error {
	revision, err := c.list(ctx)
	if err != nil {
		return err
	}
	wait.reset()
	ctx, cancel := context.WithTimeout(ctx, c.opts.ListEvery)
	defer cancel()

	batches, ended := make(chan meta.Batch), make(chan error, 1)
	go func() {
		w := c.opts.Store.Watch(ctx, c.opts.Layout.Ledgers(), revision)
		for {
			batch, err := w.Next()
			if err != nil {
				ended <- err
				close(batches)
				return
			}
			select {
			case batches <- batch:
			case <-ctx.Done():
			}
		}
	}()
	defer func() {
		cancel()
		for range batches { // until the watching goroutine is gone
		}
	}()

	tick := time.NewTicker(c.opts.Every)
	defer tick.Stop()
	for {
		select {
		case batch, ok := <-batches:
			if !ok {
				return <-ended
			}
			for _, e := range batch.Events {
				c.note(e.KV)
			}
		case <-tick.C:
			if err := c.run(ctx); err != nil {
				return err
			}
		}
	}
}

// list notes the tombstones among all ledger records, a page at a time.
func (c *Collector) list(ctx context.Context) (meta.Revision, error) {
	const page = 1000
	var first meta.Revision
	// '0' follows '/', so it ends the range of all keys under the prefix.
	start, prefix := c.opts.Layout.Ledgers(), c.opts.Layout.Ledgers()
	end := prefix[:len(prefix)-1] + "0"
	for {
		kvs, revision, err := c.opts.Store.Range(ctx, start, end, page)
		if err != nil {
			return 0, fmt.Errorf("list ledgers: %w", err)
		}
		if first == 0 {
			first = revision // changes behind a later page are told again by the watch
		}
		for _, kv := range kvs {
			c.note(kv)
		}
		if len(kvs) < page {
			return first, nil
		}
		start = kvs[len(kvs)-1].Key + "\x00"
	}
}

// note takes up a record if it is a tombstone that owes this bookie's word.
func (c *Collector) note(kv meta.KV) {
	id, ok := c.opts.Layout.ParseLedger(kv.Key)
	if !ok || !kv.Exists() || len(c.pending) >= maxPending {
		return
	}
	if record, err := decodeLedger(kv); err != nil {
		c.log.Error("ledger record cannot be read, passed over", "ledger", id, "error", err)
	} else if c.owed(record) >= 0 {
		c.pending[ledger.ID(id)] = record.GetDeletedAtMs()
	}
}

func decodeLedger(kv meta.KV) (*metav1.Ledger, error) {
	record := new(metav1.Ledger)
	if err := proto.Unmarshal(kv.Value, record); err != nil {
		return nil, fmt.Errorf("decode %s: %w", kv.Key, err)
	}
	return record, nil
}

// owed returns this bookie's place in the owed list of a tombstone, or -1. It
// also answers for its earlier incarnations, whose storage is gone: nobody else
// can.
func (c *Collector) owed(record *metav1.Ledger) int {
	if record.GetState() != metav1.LedgerState_LEDGER_STATE_DELETED {
		return -1
	}
	id := c.node.identity
	return slices.IndexFunc(record.GetOwed(), func(m *metav1.Member) bool {
		return m.GetBookie() == id.Bookie && (m.GetIncarnation() == id.Incarnation || c.node.succeeds(m.GetIncarnation()))
	})
}

// run deletes what is pending and due, at most PerRun of them.
func (c *Collector) run(ctx context.Context) error {
	if !c.node.storeTrusted() {
		return nil // not registered yet, or the store was rolled back (M7)
	}
	var due []ledger.ID
	latest := c.node.opts.Now().Add(-c.opts.Grace).UnixMilli()
	for id, deletedAt := range c.pending {
		if deletedAt <= latest {
			due = append(due, id)
		}
	}
	if len(due) == 0 {
		return nil
	}
	if err := c.checkStore(ctx); err != nil {
		return err
	}
	slices.Sort(due)
	for _, id := range due[:min(len(due), c.opts.PerRun)] {
		err := c.collect(ctx, id)
		if errors.Is(err, errRecordMoved) {
			continue // stays pending; the next run reads it again
		}
		if err != nil {
			return fmt.Errorf("collect ledger %d: %w", id, err)
		}
		delete(c.pending, id)
	}
	return nil
}

// checkStore refuses a store of another cluster, and one that has forgotten what
// this bookie registered: what it lists may be long past.
func (c *Collector) checkStore(ctx context.Context) error {
	id := c.node.identity
	if err := checkCluster(ctx, c.opts.Store, c.opts.Layout, id.Cluster); err != nil {
		return err
	}
	exists, known, _, err := lastingIdentity(ctx, c.opts.Store, c.opts.Layout.BookieIdentity(id.Bookie))
	if err != nil {
		return err
	}
	verdict, err := judgeIdentity(id, c.node.startCounts(), exists, known)
	if err == nil && verdict == storeRolledBack {
		c.node.distrustStore()
		err = errors.New("the metadata store was rolled back")
	}
	return err
}

var errRecordMoved = errors.New("ledger record changed meanwhile")

// collect confirms the tombstone of ledger id by a direct read, deletes the
// ledger here and says so.
func (c *Collector) collect(ctx context.Context, id ledger.ID) error {
	key := c.opts.Layout.Ledger(int64(id))
	kv, err := c.opts.Store.Get(ctx, key)
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	if !kv.Exists() {
		return nil // the record went with all confirmations in; an absence deletes nothing
	}
	record, err := decodeLedger(kv)
	if err != nil {
		return err
	}
	i := c.owed(record)
	if i < 0 {
		return nil
	}
	if err := c.node.Delete(ctx, id); err != nil {
		return err
	}
	for ; i >= 0; i = c.owed(record) {
		record.SetOwed(slices.Delete(record.GetOwed(), i, i+1))
	}
	op := meta.Op{Key: key, Delete: true}
	if len(record.GetOwed()) > 0 {
		value, err := proto.Marshal(record)
		if err != nil {
			return fmt.Errorf("encode %s: %w", key, err)
		}
		op = meta.Op{Key: key, Value: value}
	}
	result, err := c.opts.Store.Txn(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: key, Revision: kv.Revision}},
		Ops:   []meta.Op{op},
	})
	if err != nil {
		return fmt.Errorf("confirm in %s: %w", key, err)
	}
	if !result.Done {
		return errRecordMoved
	}
	c.log.Debug("ledger deleted", "ledger", id)
	return nil
}
