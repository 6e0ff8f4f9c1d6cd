package broker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// errTopicDeleted reports a topic that was deleted.
var errTopicDeleted = errors.New("the topic was deleted")

// ownedTopic is a topic of the bundle: being opened, open, or being closed.
type ownedTopic struct {
	name topicname.Name
	id   uint64
	// routing is the version of the map its topic has, as far as it is known here.
	routing atomic.Uint64
	// ready is closed when topic or err is set.
	ready chan struct{}
	topic *topic.Topic
	err   error
	// reopening: it ended by itself and is being closed; gone is closed when that is
	// done.
	reopening bool
	gone      chan struct{}
}

// topic returns a topic of the bundle, opening it if need be.
func (o *ownedBundle) topic(ctx context.Context, name topicname.Name) (*topic.Topic, error) {
	for {
		o.mu.Lock()
		if o.leave != nil {
			err := o.leave
			o.mu.Unlock()
			return nil, err
		}
		t := o.topics[name]
		if t == nil {
			t = &ownedTopic{name: name, ready: make(chan struct{}), gone: make(chan struct{})}
			o.topics[name] = t
			o.work.Go(func() { o.open(t) })
		}
		o.mu.Unlock()
		select {
		case <-t.ready:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		if t.err != nil {
			return nil, t.err
		}
		o.mu.Lock()
		reopening := t.reopening
		o.mu.Unlock()
		if !reopening {
			return t.topic, nil
		}
		select {
		case <-t.gone:
		case <-o.ctx.Done():
			return nil, context.Cause(o.ctx)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// open opens a topic. One that cannot be opened is forgotten, so that the next
// who asks tries again.
func (o *ownedBundle) open(t *ownedTopic) {
	ctx, cancel := context.WithTimeout(o.ctx, o.b.opts.OpenTimeout)
	defer cancel()
	if t.err = o.awaitSweep(ctx, t.name); t.err == nil {
		t.topic, t.err = o.openTopic(ctx, t)
	}
	if t.err != nil {
		o.mu.Lock()
		delete(o.topics, t.name)
		o.mu.Unlock()
		if !errors.Is(t.err, rpcerr.ErrNotFound) {
			o.log.Warn("topic cannot be opened", "topic", t.name.String(), "error", t.err)
		}
		if errors.Is(t.err, chain.ErrNotOwner) {
			o.inBackground(func() { o.checkOwned(t.err) })
		}
	}
	close(t.ready)
}

func (o *ownedBundle) openTopic(ctx context.Context, t *ownedTopic) (*topic.Topic, error) {
	record, err := o.b.catalog.Topic(ctx, t.name)
	if err != nil {
		return nil, err
	}
	if record.Deleting {
		return nil, fmt.Errorf("%s: %w", t.name, errTopicDeleted)
	}
	t.id = record.ID
	version, err := o.b.routingVersion(ctx, t.name)
	if err != nil {
		return nil, fmt.Errorf("read the partitions of %s: %w", t.name.Base(), err)
	}
	t.route(version)
	// What an earlier opening of it appended, and could not wait for when it was
	// closed, must not be built on before it is durable.
	if err := o.journal.Settle(ctx); err != nil {
		return nil, fmt.Errorf("wait for the log of bundle %s: %w", o.bundle, err)
	}
	var opened *topic.Topic // set before the ledger can notify
	ml, err := managedledger.Open(ctx, o.ledgerOptions(t, func() {
		if opened != nil {
			opened.Notify()
		}
	}))
	if err != nil {
		return nil, fmt.Errorf("open the ledgers of %s: %w", t.name, err)
	}
	key := bundlelog.Topic{ID: t.id, Hash: t.name.Hash()}
	live := &lateLive{}
	parked, err := o.shelf.Open(key, live)
	if err != nil {
		ml.Abandon()
		return nil, err
	}
	opened, err = topic.Open(ctx, topic.Options{
		Name: t.name, ID: t.id, Ledger: ml,
		Journal:         topicJournal{o.journal, key},
		MaxMessageBytes: o.b.opts.MaxMessageBytes,
		RoutingVersion:  t.routing.Load,
		Reads:           o.b.reads,
		OnEnd:           func(err error) { o.inBackground(func() { o.reopen(t, err) }) },
		Log:             o.log.Named("topic"), Metrics: o.b.topicMetrics, SubscriptionMetrics: o.b.subscriptionMetrics,
		Now: o.b.opts.Now,
	}, parked)
	if err != nil {
		ml.Abandon()
		// As it was, for who tries next; and for the snapshots asked for meanwhile,
		// which the shelf now answers.
		err = errors.Join(err, o.shelf.Restore(key, parked))
		live.give(nil)
		return nil, err
	}
	live.give(opened)
	return opened, nil
}

// lateLive stands for a topic while it is being opened: a snapshot asked for
// meanwhile is given once it is open, or was put back on the shelf.
type lateLive struct {
	mu      sync.Mutex
	topic   *topic.Topic
	failed  bool // topic will never be set
	waiting []func([]byte)
}

// give ends the wait: with the topic, or with nil when it could not be opened and
// its state is on the shelf again. The shelf, asked for a topic that is no longer
// this one, does not look at what it is given.
func (l *lateLive) give(t *topic.Topic) {
	l.mu.Lock()
	l.topic, l.failed = t, t == nil
	waiting := l.waiting
	l.waiting = nil
	l.mu.Unlock()
	for _, emit := range waiting {
		l.Snapshot(emit)
	}
}

// Snapshot implements bundlelog.Live.
func (l *lateLive) Snapshot(emit func([]byte)) {
	l.mu.Lock()
	t, failed := l.topic, l.failed
	if t == nil && !failed {
		l.waiting = append(l.waiting, emit)
	}
	l.mu.Unlock()
	switch {
	case failed:
		emit(nil)
	case t != nil:
		t.Snapshot(emit)
	}
}

func (o *ownedBundle) ledgerOptions(t *ownedTopic, notify func()) managedledger.Options {
	return managedledger.Options{
		Topic: t.id, Layout: o.b.opts.Layout, Store: o.b.opts.Store, Ledgers: o.b.opts.Ledgers,
		Guard: o.conds, StillOwner: o.stillOurs, Quorum: o.b.opts.Quorum,
		Roll:   managedledger.Roll{MaxBytes: o.b.opts.LedgerBytes},
		Cache:  o.b.cache,
		Budget: o.b.budget,
		Notify: notify,
		OnFenced: func(err error) {
			o.log.Warn("topic is fenced", "topic", t.name.String(), "error", err)
			o.inBackground(func() { o.checkOwned(err) })
		},
		Log: o.log.Named("managedledger"), Metrics: o.b.ledgerMetrics, Now: o.b.opts.Now,
	}
}

// topicJournal appends a topic's records to the bundle log.
type topicJournal struct {
	log *bundlelog.Log
	key bundlelog.Topic
}

// Append implements subscription.Journal.
func (j topicJournal) Append(records []subscription.Record, done func(error)) error {
	out := make([]bundlelog.Record, len(records))
	for i, r := range records {
		out[i] = bundlelog.Record{Topic: j.key.ID, Hash: j.key.Hash, Kind: uint8(r.Kind), Data: r.Data}
	}
	err := j.log.Append(out, done)
	if errors.Is(err, ledger.ErrTooBusy) {
		return fmt.Errorf("%w: %w", subscription.ErrTooBusy, err)
	}
	return err
}

// reopen closes a topic that ended by itself, or has to; whoever asks for it next
// opens it from what the ledgers hold. It returns when the topic is closed, or the
// bundle is being given up. Called on a goroutine of the bundle.
//
// Giving the bundle up does not cut it short: end waits for it.
func (o *ownedBundle) reopen(t *ownedTopic, cause error) {
	<-t.ready
	o.mu.Lock()
	if o.leave != nil || t.topic == nil {
		o.mu.Unlock()
		return
	}
	if t.reopening {
		o.mu.Unlock()
		select {
		case <-t.gone:
		case <-o.ctx.Done():
		}
		return
	}
	t.reopening = true
	o.mu.Unlock()
	o.closeTopic(o.orderly, t, cause)
	o.mu.Lock()
	delete(o.topics, t.name)
	o.mu.Unlock()
	close(t.gone)
	o.checkOwned(cause)
}

// closeTopic closes an open topic and puts its state back on the shelf.
func (o *ownedBundle) closeTopic(ctx context.Context, t *ownedTopic, reason error) {
	ctx, cancel := context.WithTimeout(ctx, o.b.opts.CloseTimeout)
	defer cancel()
	base := t.topic.Close(ctx, reason)
	o.shelf.Close(bundlelog.Topic{ID: t.id, Hash: t.name.Hash()}, base)
}
