package meta

import (
	"bytes"
	"context"
	"fmt"
	"sort"
	"strings"
	"time"
)

const (
	// memProgress is how often an idle watch tells how far it has come.
	memProgress = time.Second
	// memBatch is how many events a batch may have before it ends with the
	// revision it is in.
	memBatch = 1000
)

// memWatcher reads the history; for one goroutine.
type memWatcher struct {
	c         *MemClient
	ctx       context.Context
	prefix    string
	at        Revision // all changes up to here were given
	rollbacks int
	err       error // sticky
}

func (c *MemClient) Watch(ctx context.Context, prefix string, from Revision) Watcher {
	w := &memWatcher{c: c, ctx: ctx, prefix: prefix, at: from}
	_, w.err = do(ctx, c, Call{Kind: CallWatch, Key: prefix}, ErrUnavailable, func() (struct{}, error) {
		w.rollbacks = c.m.rollbacks
		return struct{}{}, nil
	})
	return w
}

func (w *memWatcher) Next() (Batch, error) {
	if w.err != nil {
		return Batch{}, fmt.Errorf("watch %s: %w", w.prefix, w.err)
	}
	b, err := w.next()
	if err != nil {
		w.err = err
		return Batch{}, fmt.Errorf("watch %s: %w", w.prefix, err)
	}
	w.at = b.Revision
	return b, nil
}

func (w *memWatcher) next() (Batch, error) {
	progress := time.NewTimer(memProgress)
	defer progress.Stop()
	tell := false
	for {
		b, changed, err := w.look(tell)
		if err != nil {
			return Batch{}, err
		}
		if b.Revision != 0 {
			return b, w.deliver(b)
		}
		select {
		case <-changed:
		case <-progress.C:
			tell = true // at once, or when the store can be reached again
		case <-w.c.life.Done():
			return Batch{}, errClosed
		case <-w.ctx.Done():
			return Batch{}, fmt.Errorf("%w: %w", ErrUnavailable, w.ctx.Err())
		}
	}
}

// look returns what there is to give, or the zero Batch and what to wait for.
// With tell it gives a batch without events when there are none.
func (w *memWatcher) look(tell bool) (Batch, <-chan struct{}, error) {
	m := w.c.m
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.unavailable || w.c.cut:
		return Batch{}, m.changed, nil
	case w.rollbacks != m.rollbacks:
		return Batch{}, nil, fmt.Errorf("%w: the store was restarted", ErrUnavailable)
	case w.at < m.compacted:
		return Batch{}, nil, fmt.Errorf("from revision %d, kept from %d: %w", w.at, m.compacted, ErrCompacted)
	case w.at >= m.revision: // beyond: after a rollback
		if tell && w.at == m.revision {
			return Batch{Revision: m.revision}, nil, nil
		}
		return Batch{}, m.changed, nil
	}
	b := Batch{Revision: m.revision}
	i := sort.Search(len(m.history), func(i int) bool { return m.history[i].revision > w.at })
	for ; i < len(m.history); i++ {
		h := m.history[i]
		if len(b.Events) >= memBatch && h.revision != m.history[i-1].revision {
			b.Revision = m.history[i-1].revision
			break
		}
		if !strings.HasPrefix(h.key, w.prefix) {
			continue
		}
		kv := KV{Key: h.key}
		if h.after.Exists() {
			kv = h.after.KV
			kv.Value = bytes.Clone(kv.Value)
		}
		b.Events = append(b.Events, Event{kv})
	}
	if len(b.Events) == 0 && !tell {
		w.at = b.Revision
		return Batch{}, m.changed, nil
	}
	return b, nil, nil
}

// deliver lets the faults of a delivery happen.
func (w *memWatcher) deliver(b Batch) error {
	_, err := do(w.ctx, w.c, Call{Kind: CallDeliver, Key: w.prefix}, ErrUnavailable, func() (struct{}, error) {
		return struct{}{}, nil
	})
	return err
}
