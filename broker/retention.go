package broker

import (
	"context"
	"errors"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/managedledger"
	"github.com/magnetar-io/magnetar/discovery/catalog"
)

// trimEvery is how often open topics are trimmed, and deletions that were broken
// off are taken up again.
const trimEvery = 10 * time.Second

// trimOpen trims what retention lets go of open topics, bundle by bundle, on one
// goroutine for the whole broker, until ctx ends.
func (b *Broker) trimOpen(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(trimEvery):
		}
		policies := policies{}
		for _, o := range b.owned() {
			b.trimBundle(ctx, o, policies)
		}
	}
}

func (b *Broker) trimBundle(ctx context.Context, o *ownedBundle, policies policies) {
	o.mu.Lock()
	broken := o.deletions.failed
	o.mu.Unlock()
	if broken {
		o.finishDeletions()
	}
	r, err := policies.of(ctx, b, o.bundle.Namespace)
	if err != nil {
		return // nothing is trimmed while the policy cannot be read
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

// policies are what namespaces keep, each read once.
type policies map[string]managedledger.Retention

func (p policies) of(ctx context.Context, b *Broker, namespace string) (managedledger.Retention, error) {
	if r, ok := p[namespace]; ok {
		return r, nil
	}
	ns, err := b.catalog.Namespace(ctx, namespace)
	if err != nil {
		return managedledger.Retention{}, err
	}
	p[namespace] = retentionOf(ns.Policy)
	return p[namespace], nil
}

// retentionOf is a namespace's policy in the words of a managed ledger.
func retentionOf(p catalog.Policy) managedledger.Retention {
	r := managedledger.Retention{Bytes: p.RetentionBytes, Age: -1}
	if p.RetentionSeconds >= 0 {
		r.Age = time.Duration(p.RetentionSeconds) * time.Second
	}
	return r
}
