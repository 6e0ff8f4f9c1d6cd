package broker

import (
	"context"
	"fmt"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// ownedBundle is a bundle that this broker owns: its log is open, its topics are
// opened as they are asked for.
//
// Its guard is what makes every transaction of it fail once somebody else took
// the owner record. Whoever finds that it no longer holds calls lost.
type ownedBundle struct {
	b      *Broker
	bundle bundle.Bundle
	log    hclog.Logger

	shelf   *bundlelog.Shelf
	journal *bundlelog.Log

	// ctx ends when the bundle is given up; what opens topics, or deletes them, runs
	// under it.
	ctx    context.Context
	cancel context.CancelCauseFunc
	// orderly ends when nothing of the bundle can be made durable any more; until
	// then topics are closed in order.
	orderly context.Context
	cut     context.CancelFunc
	work    sync.WaitGroup // goroutines of the bundle

	// gone: it was taken out of the broker's bundles, or lost before it came among
	// them. Guarded by Broker.mu.
	gone bool
	// renewing holds a token when free. Whoever writes the owner record has it until
	// held is that record, and so has whoever compares the two.
	renewing chan struct{}

	mu        sync.Mutex
	held      holding
	topics    map[topicname.Name]*ownedTopic
	leave     error // why no more topics are opened; nil while owned
	deletions deletions
	swept     topicname.Name // trimmed though it is not open
	sweeping  chan struct{}  // closed when that is over; nil: no topic is
}

// holding is the owner record that this broker wrote last for a bundle.
type holding struct {
	guard []meta.Cond // the record, then this broker's session
	epoch uint64
}

// revision of the owner record.
func (h holding) revision() meta.Revision { return h.guard[0].Revision }

// openBundle takes up a bundle whose owner record this broker holds.
func (b *Broker) openBundle(ctx context.Context, bd bundle.Bundle, held holding) (*ownedBundle, error) {
	o := &ownedBundle{
		b: b, bundle: bd, held: held, renewing: make(chan struct{}, 1), topics: map[topicname.Name]*ownedTopic{},
		log:   b.log.With("bundle", bd.String()),
		shelf: bundlelog.NewShelf(topic.Ends),
	}
	o.renewing <- struct{}{}
	o.ctx, o.cancel = context.WithCancelCause(context.Background())
	o.orderly, o.cut = context.WithCancel(context.Background())
	b.ids.Discard() // ids of a chain rise across owners
	journal, err := bundlelog.Open(ctx, bundlelog.Options{
		Bundle: bd.String(), First: bd.Range.First, Last: bd.Range.Last,
		Layout: b.opts.Layout, Store: b.opts.Store, Ledgers: b.opts.Ledgers,
		Guard: o.conds, StillOwner: o.stillOurs, Quorum: b.opts.Quorum, State: o.shelf,
		RollBytes: b.opts.LogRollBytes, PassBytes: b.opts.LogPassBytes,
		OnFenced: func(err error) { o.lost(fmt.Errorf("bundle log: %w", err)) },
		Log:      o.log.Named("bundlelog"), Metrics: b.logMetrics,
	})
	if err != nil {
		o.cancel(err)
		o.cut()
		return nil, fmt.Errorf("open the log of bundle %s: %w", bd, err)
	}
	o.journal = journal
	return o, nil
}

// inBackground runs f on a goroutine that the end of the bundle waits for; not at
// all once the bundle is being given up. f ends soon after o.ctx does.
func (o *ownedBundle) inBackground(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.leave == nil {
		o.work.Go(f)
	}
}

// conds is the guard of every transaction made as owner.
func (o *ownedBundle) conds() []meta.Cond { return o.holding().guard }

func (o *ownedBundle) holding() holding {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.held
}

// hold takes over the record that a renewed session wrote.
func (o *ownedBundle) hold(held holding) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.held = held
}

// checkOwned asks the metadata store whether the bundle is still ours, after a
// bookie said that it is not, and drops it if so (M1).
func (o *ownedBundle) checkOwned(cause error) {
	if ours, err := o.stillOurs(o.ctx); err == nil && !ours {
		o.lost(cause)
	}
}

// stillOurs reports whether the owner record is the one this broker wrote. A
// session that lapsed meanwhile does not matter: it is renewed (M5).
//
// Not while it is being renewed: between the store's write and the answer the
// record is ours and not yet the one that is held.
func (o *ownedBundle) stillOurs(ctx context.Context) (bool, error) {
	select {
	case <-o.renewing:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { o.renewing <- struct{}{} }()
	owner := o.conds()[0]
	kv, err := o.b.opts.Store.Get(ctx, owner.Key)
	return err == nil && kv.Revision == owner.Revision, err
}

// lost drops the bundle at once. If the owner record names this broker all the
// same, it is opened again. It waits for nothing.
func (o *ownedBundle) lost(cause error) {
	o.log.Warn("bundle is lost", "error", cause)
	o.b.drop(o, fmt.Errorf("%w: %w", errMoved, cause))
}

// abandon ends everything of the bundle without waiting for its ledgers.
func (o *ownedBundle) abandon(reason error) {
	o.cut()
	o.end(reason, func(t *ownedTopic) {
		gone, cancel := context.WithCancel(context.Background())
		cancel() // nothing of this can be made durable any more
		t.topic.Close(gone, reason)
	})
	o.journal.Abandon()
	o.work.Wait()
}

// close hands the bundle back: publishes are answered, acknowledgements durable,
// ledgers closed, so that its next owner has nothing to recover.
func (o *ownedBundle) close(ctx context.Context, reason error) error {
	defer o.cut()
	stop := context.AfterFunc(ctx, o.cut)
	defer stop()
	var wg sync.WaitGroup
	o.end(reason, func(t *ownedTopic) { wg.Go(func() { o.closeTopic(ctx, t, reason) }) })
	wg.Wait()
	err := o.journal.Close(ctx)
	o.work.Wait()
	return err
}

// end lets no topic be opened any more and calls f for each that is open. Those
// that are being closed already, because they ended by themselves, it waits for:
// they may have something to say to the log.
func (o *ownedBundle) end(reason error, f func(*ownedTopic)) {
	o.mu.Lock()
	if o.leave == nil {
		o.leave = reason
	}
	var all []*ownedTopic
	for _, t := range o.topics {
		all = append(all, t)
	}
	o.mu.Unlock()
	o.cancel(reason)
	var closing []*ownedTopic
	for _, t := range all {
		<-t.ready // opening ends with the bundle's context
		if t.topic == nil {
			continue
		}
		o.mu.Lock()
		reopening := t.reopening
		t.reopening = true
		o.mu.Unlock()
		if reopening {
			closing = append(closing, t)
		} else {
			f(t)
		}
	}
	for _, t := range closing {
		<-t.gone
	}
}

// open topics of the bundle.
func (o *ownedBundle) openTopics() []*topic.Topic {
	o.mu.Lock()
	defer o.mu.Unlock()
	var out []*topic.Topic
	for _, t := range o.topics {
		select {
		case <-t.ready:
			if t.topic != nil && !t.reopening {
				out = append(out, t.topic)
			}
		default:
		}
	}
	return out
}
