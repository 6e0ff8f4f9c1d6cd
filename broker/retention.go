package broker

import (
	"context"
	"errors"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/discovery/catalog"
)

// sweepEvery is how often topics are trimmed, and deletions that were broken off
// are taken up again.
const sweepEvery = 10 * time.Second

// sweep trims what retention lets go, bundle by bundle, on one goroutine for the
// whole broker, until ctx ends.
func (b *Broker) sweep(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(sweepEvery):
		}
		policies := map[string]managedledger.Retention{}
		for _, o := range b.owned() {
			b.sweepBundle(ctx, o, policies)
		}
	}
}

func (b *Broker) sweepBundle(ctx context.Context, o *ownedBundle, policies map[string]managedledger.Retention) {
	r, ok := policies[o.bundle.Namespace]
	if !ok {
		ns, err := b.catalog.Namespace(ctx, o.bundle.Namespace)
		if err != nil {
			return // nothing is deleted while the policy cannot be read
		}
		r = retentionOf(ns.Policy)
		policies[o.bundle.Namespace] = r
	}
	o.mu.Lock()
	broken := o.deletions.failed
	o.mu.Unlock()
	if broken {
		o.finishDeletions()
	}
	for _, t := range o.openTopics() {
		n, err := t.Trim(ctx, r)
		if err != nil && ctx.Err() == nil && !errors.Is(err, managedledger.ErrBeyondEnd) {
			o.log.Warn("topic cannot be trimmed", "topic", t.Name().String(), "error", err)
		}
		if n > 0 {
			o.log.Debug("topic trimmed", "topic", t.Name().String(), "ledgers", n)
		}
	}
}

// retentionOf is a namespace's policy in the words of a managed ledger.
func retentionOf(p catalog.Policy) managedledger.Retention {
	r := managedledger.Retention{Bytes: p.RetentionBytes, Age: -1}
	if p.RetentionSeconds >= 0 {
		r.Age = time.Duration(p.RetentionSeconds) * time.Second
	}
	return r
}
