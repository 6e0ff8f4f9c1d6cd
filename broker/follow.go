package broker

import (
	"context"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
)

// follow calls written for every record under prefix that is written from now on,
// until ctx ends. What is written before a watch stands is not told, be it the first
// or one after another broke off: missed is called to look for it, again until it
// succeeds. The first may stand late, when much is open already.
func (b *Broker) follow(ctx context.Context, prefix string, written func(meta.Event), missed func(context.Context) error) {
	for ctx.Err() == nil {
		_, from, err := b.opts.Store.Range(ctx, prefix, "", 1)
		if err == nil {
			err = missed(ctx)
		}
		if err == nil {
			err = b.followFrom(ctx, prefix, from, written)
		}
		if ctx.Err() != nil {
			return
		}
		b.log.Debug("watch begins again", "prefix", prefix, "error", err)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// followFrom is follow until the watch breaks off.
func (b *Broker) followFrom(ctx context.Context, prefix string, from meta.Revision, written func(meta.Event)) error {
	w := b.opts.Store.Watch(ctx, prefix, from)
	for {
		batch, err := w.Next()
		if err != nil {
			return err
		}
		for _, e := range batch.Events {
			if e.Exists() {
				written(e)
			}
		}
	}
}
