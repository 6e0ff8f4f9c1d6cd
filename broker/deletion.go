package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// deletions finishes the deletion of topics in bundles of this broker, until ctx
// ends. Whoever deletes a topic only marks its record; one watch over all topic
// records tells the owner. What was marked before is found by openUnclosed.
func (b *Broker) deletions(ctx context.Context) {
	prefix := b.opts.Layout.AllTopics()
	for ctx.Err() == nil {
		_, from, err := b.opts.Store.Range(ctx, prefix, "", 1)
		if err == nil {
			err = b.watchDeletions(ctx, prefix, from)
		}
		if ctx.Err() != nil {
			return
		}
		b.log.Debug("watch of topic records begins again", "error", err)
		for _, o := range b.owned() { // what was marked while nobody watched
			o.deleteMarked(ctx)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

func (b *Broker) watchDeletions(ctx context.Context, prefix string, from meta.Revision) error {
	w := b.opts.Store.Watch(ctx, prefix, from)
	for {
		batch, err := w.Next()
		if err != nil {
			return err
		}
		for _, e := range batch.Events {
			var record metav1.Topic
			if !e.Exists() || proto.Unmarshal(e.Value, &record) != nil ||
				record.GetState() != metav1.TopicState_TOPIC_STATE_DELETING {
				continue
			}
			namespace, hash, ok := b.opts.Layout.ParseAnyTopic(e.Key)
			if !ok {
				continue
			}
			if o := b.bundleOf(namespace, hash); o != nil {
				o.inBackground(func() { o.deleteMarked(ctx) })
			}
		}
	}
}

// deleteMarked finishes the deletion of every topic of the bundle whose record
// says so. One at a time: the bundle's deletions exclude each other.
func (o *ownedBundle) deleteMarked(ctx context.Context) {
	o.deleting.Lock()
	defer o.deleting.Unlock()
	topics, err := o.b.catalog.TopicsOf(ctx, o.bundle)
	if err != nil {
		o.log.Warn("topics being deleted cannot be listed", "error", err)
	}
	failed := err != nil
	for _, t := range topics {
		if !t.Deleting {
			continue
		}
		if err := o.delete(ctx, t); err != nil && o.ctx.Err() == nil {
			o.log.Warn("deletion of a topic goes on later", "topic", t.Name.String(), "error", err)
			failed = true
		}
	}
	o.mu.Lock()
	o.undeleted = failed
	o.mu.Unlock()
}

// delete takes a topic away, in an order that can be taken up again after any
// step: its state in the bundle log, its ledgers, its record (M3).
func (o *ownedBundle) delete(ctx context.Context, t catalog.Topic) error {
	o.mu.Lock()
	open := o.topics[t.Name]
	o.mu.Unlock()
	if open != nil {
		<-open.ready
		if open.topic != nil {
			o.reopen(open, fmt.Errorf("%s: %w", t.Name, errTopicDeleted))
		}
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
	if err := managedledger.Delete(ctx, o.ledgerOptions(&ownedTopic{name: t.Name, id: t.ID}, nil)); err != nil {
		return fmt.Errorf("delete its ledgers: %w", err)
	}
	if err := o.b.catalog.Remove(ctx, t, o.conds()); err != nil && !errors.Is(err, rpcerr.ErrNotFound) {
		return fmt.Errorf("delete its record: %w", err)
	}
	o.log.Info("topic deleted", "topic", t.Name.String())
	return nil
}

// inBackground runs f on a goroutine that the end of the bundle waits for.
func (o *ownedBundle) inBackground(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.leave == nil {
		o.work.Go(f)
	}
}
