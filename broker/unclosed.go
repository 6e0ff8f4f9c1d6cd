package broker

import (
	"errors"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// A broker looks at so many topics in a second, over all bundles that it takes
// over, for ledgers that their last owners left open, and at so many at once: each
// is a read of the metadata store.
const (
	unclosedRate  = 100
	unclosedBurst = 10
)

// What could not be read or opened is tried again after the first, doubling up to
// the second.
const (
	firstUnclosedRetry = time.Second
	lastUnclosedRetry  = time.Minute
)

// openUnclosed opens, in the background, at a bounded rate and a few at a time, every
// topic of the bundle whose last ledger is not closed (M19): its tail is recovered
// before somebody has to wait for it, and no bookie keeps an open end for long. It
// returns when that is done, or the bundle is being given up. Deletions that the last
// owner left undone are begun too.
func (o *ownedBundle) openUnclosed() {
	o.finishDeletions()
	var left []catalog.Topic
	listed := false
	for retry := firstUnclosedRetry; ; retry = min(2*retry, lastUnclosedRetry) {
		if !listed {
			all, err := o.b.catalog.TopicsOf(o.ctx, o.bundle)
			if err != nil && o.ctx.Err() == nil {
				o.log.Warn("topics left open by the last owner are looked for later", "in", retry.String(), "error", err)
			}
			left, listed = all, err == nil
		}
		if left = o.openThose(left); listed && len(left) == 0 {
			return
		}
		select {
		case <-time.After(retry):
		case <-o.ctx.Done():
			return
		}
	}
}

// openThose opens the topics that have a ledger which is not closed, and returns
// those of which it could not find out, or which could not be opened.
func (o *ownedBundle) openThose(topics []catalog.Topic) (left []catalog.Topic) {
	for _, t := range topics {
		if t.Deleting {
			continue
		}
		if err := o.b.looks.Wait(o.ctx); err != nil {
			return nil // the bundle is being given up
		}
		if err := o.openIfUnclosed(t); err != nil {
			o.log.Debug("topic left open by the last owner is opened later", "topic", t.Name.String(), "error", err)
			left = append(left, t)
		}
	}
	return left
}

func (o *ownedBundle) openIfUnclosed(t catalog.Topic) error {
	unclosed, err := o.hasUnclosed(t.ID)
	if err != nil || !unclosed {
		return err
	}
	if err := o.b.opening.Acquire(o.ctx, 1); err != nil {
		return err
	}
	defer o.b.opening.Release(1)
	_, err = o.topic(o.ctx, t.Name) // open tells people what is wrong
	if errors.Is(err, rpcerr.ErrNotFound) || errors.Is(err, errTopicDeleted) {
		return nil
	}
	return err
}

// hasUnclosed reports whether a link of a topic's chain is not closed, as far as is
// known: of one that cannot be read it is not, and opening the topic tells so.
func (o *ownedBundle) hasUnclosed(id uint64) (bool, error) {
	kvs, _, err := o.b.opts.Store.Range(o.ctx, o.b.opts.Layout.Chain(id), "", 0)
	if err != nil {
		return false, err
	}
	for _, kv := range kvs {
		var link metav1.ChainLink
		if err := proto.Unmarshal(kv.Value, &link); err != nil || !link.GetClosed() {
			return true, nil
		}
	}
	return false, nil
}
