package meta

import (
	"context"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// watchSilence is how long a watch may hear nothing, not even progress, before
// it gives up with ErrUnavailable. Shorter gaps it bridges by reconnecting.
const watchSilence = 15 * time.Second

// etcdWatcher follows one prefix. All watches of a client share one stream,
// which the client reopens, from the last revision each has seen, when it breaks.
type etcdWatcher struct {
	e      *Etcd
	ctx    context.Context // ends with the watch
	cancel context.CancelFunc
	opened chan clientv3.WatchChan // gives changes once
	events clientv3.WatchChan

	prefix string
	at     Revision // all changes up to here were given
	err    error    // sticky
}

// watchContext is the context of the stream all watches share: one that ends
// when the server has no leader.
func watchContext(ctx context.Context) context.Context { return clientv3.WithRequireLeader(ctx) }

func (e *Etcd) Watch(ctx context.Context, prefix string, from Revision) Watcher {
	w := &etcdWatcher{e: e, prefix: prefix, at: from, opened: make(chan clientv3.WatchChan, 1)}
	w.ctx, w.cancel = context.WithCancel(ctx)
	stop := context.AfterFunc(e.life, w.cancel)
	// The client's Watch returns only once the server has answered.
	if !e.start(func() {
		// From from itself, whose changes batch leaves out: the server tells a stream
		// nothing of progress while one of its watches starts beyond the last change.
		w.opened <- e.client.Watch(watchContext(w.ctx), prefix,
			clientv3.WithPrefix(), clientv3.WithRev(max(int64(from), 1)), clientv3.WithProgressNotify())
	}) {
		w.cancel()
		w.err = fmt.Errorf("watch %s: %w", prefix, errClosed)
		return w
	}
	e.watching.Add(1)
	context.AfterFunc(w.ctx, func() {
		stop()
		e.watching.Add(-1)
	})
	return w
}

func (w *etcdWatcher) Next() (Batch, error) {
	if w.err != nil {
		return Batch{}, w.err
	}
	b, err := w.next()
	if err != nil {
		w.cancel()
		w.err = fmt.Errorf("watch %s from revision %d: %w", w.prefix, w.at, err)
		return Batch{}, w.err
	}
	w.at = b.Revision
	return b, nil
}

func (w *etcdWatcher) next() (Batch, error) {
	silence := time.NewTimer(watchSilence)
	defer silence.Stop()
	for {
		select {
		case w.events = <-w.opened:
		case r, ok := <-w.events:
			if !ok {
				return Batch{}, w.over()
			}
			if r.CompactRevision != 0 {
				return Batch{}, fmt.Errorf("kept from %d: %w", r.CompactRevision, ErrCompacted)
			}
			if err := r.Err(); err != nil {
				return Batch{}, readError(err)
			}
			if b, ok := w.batch(r); ok {
				return b, nil
			}
		case <-w.ctx.Done():
			return Batch{}, w.over()
		case <-silence.C:
			return Batch{}, fmt.Errorf("%w: heard nothing for %v", ErrUnavailable, watchSilence)
		}
	}
}

// over says why a watch that was not refused ended.
func (w *etcdWatcher) over() error {
	if w.e.life.Err() != nil {
		return errClosed
	}
	if err := w.ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return fmt.Errorf("%w: stream ended", ErrUnavailable)
}

// batch makes a batch of a response. With events it is complete up to the last
// of them and no further: while a watch catches up, the header names the
// revision of the store, not of the response. Without events it is progress.
func (w *etcdWatcher) batch(r clientv3.WatchResponse) (Batch, bool) {
	if len(r.Events) == 0 {
		at := Revision(r.Header.Revision)
		return Batch{Revision: at}, r.IsProgressNotify() && at >= w.at
	}
	b := Batch{Revision: Revision(r.Events[len(r.Events)-1].Kv.ModRevision)}
	for _, ev := range r.Events {
		if Revision(ev.Kv.ModRevision) <= w.at {
			continue // seen before the stream broke
		}
		if ev.Type == clientv3.EventTypeDelete {
			b.Events = append(b.Events, Event{KV{Key: string(ev.Kv.Key)}})
		} else {
			b.Events = append(b.Events, Event{fromEtcd(ev.Kv)})
		}
	}
	return b, len(b.Events) > 0
}

// askProgress asks, for all watches at once, how far they have come. Nothing
// else tells a watch without changes from one that is cut off.
func (e *Etcd) askProgress() {
	ticker := time.NewTicker(etcdProgress)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-e.life.Done():
			return
		}
		if e.watching.Load() == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(watchContext(e.life), etcdProgress)
		if err := e.client.RequestProgress(ctx); err != nil {
			e.log.Debug("metadata watches could not be asked for progress", "error", err)
		}
		cancel()
	}
}
