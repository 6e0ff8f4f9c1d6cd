package broker

import (
	"context"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/bundlelog"
	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/broker/internal/topic"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// Topics that are not open are trimmed too, without being opened (M19). One
// goroutine for the whole broker goes round all of them, at a rate that does not
// rise with their number: 100,000 take 52 minutes.
const (
	// sweepTick is how often the round goes on, until that has cost sweepCost: one for
	// each topic looked at, each ledger trimmed, and each other read of the metadata
	// store.
	sweepTick = time.Second
	sweepCost = 32
	// sweepRound is how soon the next round may begin after the last one began.
	sweepRound = time.Minute
)

// round is the way through all topics of this broker that are not open. Owned by
// sweepParked.
type round struct {
	b       *Broker
	began   time.Time
	bundles []*ownedBundle  // still to come
	bundle  *ownedBundle    // that of topics
	topics  []catalog.Topic // still to come
}

// sweepParked trims what retention lets go of topics that are not open, round
// after round, until ctx ends.
func (b *Broker) sweepParked(ctx context.Context) {
	r := round{b: b}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepTick):
			r.goOn(ctx)
		}
	}
}

// goOn goes on with the round, or begins the next one. Topics that are open, and
// those of which the log holds nothing, cost nothing.
func (r *round) goOn(ctx context.Context) {
	if len(r.bundles) == 0 && len(r.topics) == 0 && time.Since(r.began) >= sweepRound {
		r.began, r.bundles = time.Now(), r.b.owned()
	}
	policies := policies{} // as they are now: a round may take long
	for left := sweepCost; left > 0 && ctx.Err() == nil; {
		if len(r.topics) == 0 {
			if len(r.bundles) == 0 {
				return
			}
			left -= r.list()
			continue
		}
		known := len(policies)
		policy, err := policies.of(ctx, r.b, r.bundle.bundle.Namespace)
		if err != nil { // nothing is deleted while the policy cannot be read
			r.topics = nil
			left--
			continue
		}
		left -= len(policies) - known
		if policy.KeepsForever() {
			r.topics = nil
			continue
		}
		cost, more := r.bundle.sweepTopic(r.topics[0], policy)
		if !more {
			r.topics = r.topics[1:]
		}
		left -= cost
	}
}

// list goes on to the topics of the next bundle, and returns what that cost.
func (r *round) list() int {
	r.bundle, r.bundles = r.bundles[0], r.bundles[1:]
	if len(r.bundle.shelf.Topics()) == 0 {
		return 0
	}
	topics, err := r.b.catalog.TopicsOf(r.bundle.ctx, r.bundle.bundle)
	if err != nil && r.bundle.ctx.Err() == nil {
		r.bundle.log.Debug("topics that are not open are trimmed later", "error", err)
	}
	r.topics = topics
	return 1
}

// sweepTopic takes one step in trimming a topic, if it is not open, and returns
// what that cost; more: there is more to trim, call again.
//
// Only what the log has for sure counts: by what was said of a topic that was open
// here and ended, a later owner might miss what is trimmed now. Such a topic is
// opened again, and so is one whose last ledger is not closed.
func (o *ownedBundle) sweepTopic(t catalog.Topic, r managedledger.Retention) (cost int, more bool) {
	release, ok := o.claim(t.Name)
	if !ok {
		return 0, false
	}
	defer release()
	parked, durable, ok := o.shelf.Peek(bundlelog.Topic{ID: t.ID, Hash: t.Name.Hash()})
	if !ok || t.Deleting {
		return 0, false
	}
	if !durable {
		o.openLater(t.Name)
		return 1, false
	}
	needs, some, err := topic.NeedsOf(parked, r)
	var swept managedledger.Swept
	if some {
		swept, err = managedledger.Sweep(o.ctx, o.ledgerOptions(&ownedTopic{name: t.Name, id: t.ID}, nil), needs, r)
	}
	if err != nil && o.ctx.Err() == nil {
		o.log.Warn("topic that is not open cannot be trimmed", "topic", t.Name.String(), "error", err)
	}
	if swept.Ledgers > 0 {
		o.log.Debug("topic trimmed, not open", "topic", t.Name.String(), "ledgers", swept.Ledgers)
	}
	if swept.Unclosed {
		o.openLater(t.Name)
	}
	return 1 + swept.Ledgers, swept.More
}

// claim keeps a topic that is not open from being opened, and its ledgers from
// being deleted, until release is called; false: it is open, or about to be. One
// topic of a bundle is claimed at a time.
func (o *ownedBundle) claim(name topicname.Name) (release func(), ok bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.leave != nil || o.topics[name] != nil {
		return nil, false
	}
	over := make(chan struct{})
	o.swept, o.sweeping = name, over
	return func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.sweeping = nil
		close(over)
	}, true
}

// awaitSweep waits until a topic is not claimed. Whoever calls it has made sure
// that it is not claimed again, or that this does no harm.
func (o *ownedBundle) awaitSweep(ctx context.Context, name topicname.Name) error {
	o.mu.Lock()
	over := o.sweeping
	if o.swept != name {
		over = nil
	}
	o.mu.Unlock()
	if over == nil {
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait until %s is trimmed: %w", name, ctx.Err())
	}
}

// openLater opens a topic in the background, unless enough are being opened so
// already: then the next round asks again.
func (o *ownedBundle) openLater(name topicname.Name) {
	o.inBackground(func() {
		if !o.b.opening.TryAcquire(1) {
			return
		}
		defer o.b.opening.Release(1)
		_, _ = o.topic(o.ctx, name) // open tells what is wrong
	})
}
