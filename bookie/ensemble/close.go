package ensemble

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Unacked is an entry that was appended and never acknowledged.
type Unacked struct {
	Body []byte
	CRC  uint32
	Done func(ledger.EntryID, error) // as given to Append, not called yet
}

// Close takes no more appends, waits until those in flight are answered, and
// closes the ledger at its last entry (K1). When ctx ends first the ledger is
// not closed, and Close or Seal may be called again. ErrFenced, ErrClosed,
// ErrDeleted: another process decided what the ledger holds. Not to be called
// from a done function.
func (w *Writer) Close(ctx context.Context) (ledger.Metadata, error) {
	ctx, cancel := w.c.opCtx(ctx)
	defer cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.core.sealed && w.core.failed == nil {
		return ledger.Metadata{}, fmt.Errorf("ledger %d is being sealed: %w", w.id, ledger.ErrClosed)
	}
	w.core.closing = true
	if err := w.waitLocked(ctx, func() bool { return w.core.failed != nil || w.core.drained() && w.quietLocked() }); err != nil {
		return ledger.Metadata{}, fmt.Errorf("close ledger %d: %w", w.id, err)
	}
	grace, stop := context.WithTimeout(ctx, w.c.opts.CloseGrace)
	defer stop()
	_ = w.waitLocked(grace, func() bool { return w.core.failed != nil || !w.core.copying() })
	md, err := w.finishLocked(ctx)
	return md, err
}

// Seal closes the ledger at its LAC without waiting for what is in flight, and
// returns that: these entries are surely not part of the ledger, and their done
// functions are the caller's to call (M17). After ErrFenced, ErrClosed or
// ErrDeleted they are of unknown outcome and were answered so. After any other
// error nothing was answered, nothing will be acknowledged, and Seal may be
// called again. Not to be called from a done function.
func (w *Writer) Seal(ctx context.Context) (ledger.Metadata, []Unacked, error) {
	ctx, cancel := w.c.opCtx(ctx)
	defer cancel()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.core.seal()
	md, err := w.finishLocked(ctx)
	if err != nil {
		return md, nil, err
	}
	tail := w.tail
	w.tail = nil
	return md, tail, nil
}

// finishLocked writes the closing record, alone, and ends the writer when its
// outcome is definite.
func (w *Writer) finishLocked(ctx context.Context) (ledger.Metadata, error) {
	if err := w.waitLocked(ctx, func() bool { return w.core.failed != nil || w.quietLocked() }); err != nil {
		return ledger.Metadata{}, fmt.Errorf("close ledger %d: %w", w.id, err)
	}
	if w.final != nil {
		return w.final.Clone(), nil
	}
	if w.core.failed != nil {
		return ledger.Metadata{}, w.core.failed
	}
	// Nothing more is acknowledged from here on: a closer that gave up has either
	// drained or sealed, and takes no more appends.
	w.recording = true
	base, rev, next := w.core.md, w.rev, w.core.closed()
	w.mu.Unlock()
	md, err := w.writeClosed(ctx, base, next, rev)
	w.mu.Lock()
	w.recording = false
	now := w.c.now()
	switch {
	case err == nil:
		final := md.Clone()
		w.final = &final
		w.tail = w.core.tail(fmt.Errorf("ledger %d: %w", w.id, ledger.ErrClosed))
	case errors.Is(err, ledger.ErrFenced), errors.Is(err, ledger.ErrClosed), errors.Is(err, ledger.ErrDeleted):
		w.core.die(err)
	}
	w.settleLocked(now)
	w.runUnlock(false)
	w.mu.Lock()
	return md, err
}

// writeClosed makes the closing write definite (K1, K2): it goes on until the
// record shows this writer's close, or another's, or ctx ends.
func (w *Writer) writeClosed(ctx context.Context, base, next ledger.Metadata, rev meta.Revision) (ledger.Metadata, error) {
	for pause := firstStorePause; ; pause = min(2*pause, maxStorePause) {
		if err := ledger.CheckTransition(&base, &next); err != nil {
			return ledger.Metadata{}, err
		}
		_, err := w.c.putRecord(ctx, rev, &next, nil, nil)
		var moved *movedError
		switch {
		case err == nil:
			return next, nil
		case errors.As(err, &moved):
			md, movedRev, err := closeMoved(moved, &base, &next)
			if err != nil || md.State == ledger.Closed {
				return md, err
			}
			base, rev = md, movedRev
			continue
		case errors.Is(err, meta.ErrUncertain), !errors.Is(err, meta.ErrUnavailable):
			return ledger.Metadata{}, fmt.Errorf("close ledger %d: %w", w.id, err)
		}
		if sleepErr := sleep(ctx, pause); sleepErr != nil {
			return ledger.Metadata{}, fmt.Errorf("close ledger %d: %w: %w", w.id, err, sleepErr)
		}
	}
}

// closed returns the closing record: the ledger ends at lac (K1).
func (c *writerCore) closed() ledger.Metadata {
	md := c.md.Clone()
	md.State, md.LastEntry, md.Length, md.Verify = ledger.Closed, c.lac, c.lacTotal, c.md.Verify || c.verify()
	return md
}

// closeMoved decides what it means to a writer that closes, with next over base,
// that the record moved on (K2). It returns the record as it stands: closed, by
// this very write or one that says the same, or still the writer's, and then next
// was made to fit. Any other outcome is an error.
func closeMoved(moved *movedError, base, next *ledger.Metadata) (ledger.Metadata, meta.Revision, error) {
	md, rev, err := stillOurs(moved, base)
	if errors.Is(err, ledger.ErrClosed) && md.LastEntry == next.LastEntry && md.Length == next.Length {
		return md, rev, nil
	}
	if err != nil {
		return ledger.Metadata{}, 0, err
	}
	state, last, length, verify := next.State, next.LastEntry, next.Length, next.Verify
	*next = md.Clone()
	next.State, next.LastEntry, next.Length, next.Verify = state, last, length, verify || md.Verify
	return md, rev, nil
}

// quietLocked reports that the record is not being written and the application
// has heard everything there is to say.
func (w *Writer) quietLocked() bool {
	return !w.recording && !w.answering && len(w.core.acks) == 0
}

// waitLocked waits until cond, looked at with mu held, is true, or ctx ends.
func (w *Writer) waitLocked(ctx context.Context, cond func() bool) error {
	for !cond() {
		news := w.news
		w.waiters++
		w.mu.Unlock()
		var err error
		select {
		case <-news:
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
		w.mu.Lock()
		w.waiters--
		if err != nil {
			return err
		}
	}
	return nil
}
