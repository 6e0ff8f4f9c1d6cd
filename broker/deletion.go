package broker

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// watchDeletions finishes the deletion of topics in bundles of this broker, until
// ctx ends. Whoever deletes a topic only marks its record; one watch over all topic
// records tells the owner. What was marked before is found by openUnclosed.
func (b *Broker) watchDeletions(ctx context.Context) {
	b.follow(ctx, b.opts.Layout.AllTopics(), func(e meta.Event) {
		var record metav1.Topic
		if proto.Unmarshal(e.Value, &record) != nil || record.GetState() != metav1.TopicState_TOPIC_STATE_DELETING {
			return
		}
		namespace, hash, ok := b.opts.Layout.ParseAnyTopic(e.Key)
		if !ok {
			return
		}
		if o := b.bundleOf(namespace, hash); o != nil {
			o.finishDeletions()
		}
	}, func(context.Context) error {
		for _, o := range b.owned() {
			o.finishDeletions()
		}
		return nil
	})
}

// deletions is what is known of a bundle's topics that are to be deleted. Guarded
// by ownedBundle.mu.
type deletions struct {
	wanted bool // topics may have been marked since the records were listed last
	active bool // a goroutine of the bundle is at it
	failed bool // one was broken off and is to be taken up again
}

// finishDeletions sees to it that every topic of the bundle whose record says so
// is deleted, on one goroutine of the bundle however often it is called.
func (o *ownedBundle) finishDeletions() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.deletions.wanted = true
	if !o.deletions.active && o.leave == nil {
		o.deletions.active = true
		o.work.Go(o.runDeletions)
	}
}

func (o *ownedBundle) runDeletions() {
	for {
		o.mu.Lock()
		if !o.deletions.wanted || o.leave != nil {
			o.deletions.active = false
			o.mu.Unlock()
			return
		}
		o.deletions.wanted = false
		o.mu.Unlock()
		failed := o.deleteMarked(o.ctx)
		o.mu.Lock()
		o.deletions.failed = failed
		o.mu.Unlock()
	}
}

// deleteMarked finishes the deletion of every topic of the bundle whose record
// says so, one at a time.
func (o *ownedBundle) deleteMarked(ctx context.Context) (failed bool) {
	topics, err := o.b.catalog.TopicsOf(ctx, o.bundle)
	if err != nil && ctx.Err() == nil {
		o.log.Warn("topics being deleted cannot be listed", "error", err)
		failed = true
	}
	for _, t := range topics {
		if !t.Deleting || ctx.Err() != nil {
			continue
		}
		if err := o.delete(ctx, t); err != nil && ctx.Err() == nil {
			o.log.Warn("deletion of a topic goes on later", "topic", t.Name.String(), "error", err)
			failed = true
		}
	}
	return failed
}

// delete takes a topic away, in an order that can be taken up again after any
// step: its state in the bundle log, its ledgers, its record (M3).
func (o *ownedBundle) delete(ctx context.Context, t catalog.Topic) error {
	o.mu.Lock()
	open := o.topics[t.Name]
	o.mu.Unlock()
	if open != nil {
		o.reopen(open, fmt.Errorf("%s: %w", t.Name, errTopicDeleted))
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	key := bundlelog.Topic{ID: t.ID, Hash: t.Name.Hash()}
	drop := topic.Drop()
	durable := make(chan error, 1)
	record := bundlelog.Record{Topic: key.ID, Hash: key.Hash, Kind: uint8(drop.Kind), Data: drop.Data}
	if err := o.shelf.AppendTo(o.journal, []bundlelog.Record{record}, func(err error) { durable <- err }); err != nil {
		return err
	}
	select {
	case err := <-durable:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	// A sweep that begins now finds nothing on the shelf.
	if err := o.awaitSweep(ctx, t.Name); err != nil {
		return err
	}
	if err := managedledger.Delete(ctx, o.ledgerOptions(&ownedTopic{name: t.Name, id: t.ID}, nil)); err != nil {
		return fmt.Errorf("delete its ledgers: %w", err)
	}
	if err := o.b.catalog.Remove(ctx, t, o.conds()); err != nil && !errors.Is(err, rpcerr.ErrNotFound) {
		return fmt.Errorf("delete its record: %w", err)
	}
	o.log.Info("topic deleted", "topic", t.Name.String())
	return nil
}
