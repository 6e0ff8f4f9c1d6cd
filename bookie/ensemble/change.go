package ensemble

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// change is one attempt at an ensemble change, on a goroutine of its own.
// recording is set by its caller.
func (w *Writer) change(needed bool) {
	w.tryChange(needed)
	now := w.c.now()
	w.mu.Lock()
	w.recording = false
	w.settleLocked(now)
	w.runUnlock(true)
}

func (w *Writer) tryChange(needed bool) {
	// A change that the ledger can do without must not freeze it when the store is
	// away, so the store is asked for a sign of life first.
	if !needed && !w.storeAnswers() {
		return
	}
	p := w.c.placer(w.class)
	now := w.c.now()
	w.mu.Lock()
	next, ok := w.core.beginChange(now, p)
	old, rev, refusals := w.core.md, w.rev, refusals(w.core.slots)
	w.settleLocked(now)
	w.runUnlock(true)
	if !ok {
		if needed {
			w.complain(fmt.Errorf("%w%s", p.missing(old.Quorum), refusals))
		}
		return
	}
	w.complaint = ""
	began := time.Now()
	err := ledger.CheckTransition(&old, &next)
	if err == nil {
		rev, err = w.c.putRecord(w.ctx, rev, &next, nil, nil)
	} else {
		err = &illegalError{err}
	}
	w.changeDecided(next, rev, err)
	w.c.log.Info("ensemble change", "ledger", w.id, "first", next.Last().First, "from", old.Last().Ensemble,
		"to", next.Last().Ensemble, "took", time.Since(began), "error", err)
}

// complain says why nobody can help: not with every try, but again when the reason
// changes.
func (w *Writer) complain(missing error) {
	if text := missing.Error(); text != w.complaint {
		w.complaint = text
		w.c.log.Warn("an ensemble change is needed, but no bookie can help", "ledger", w.id, "error", missing)
	}
}

// storeAnswers reports whether the metadata store can be read now. If not, the
// change is put off.
func (w *Writer) storeAnswers() bool {
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	defer cancel()
	_, err := w.c.opts.Store.Get(ctx, w.c.opts.Layout.Ledger(int64(w.id)))
	if err != nil {
		w.mu.Lock()
		w.core.wantedAt = w.c.now() + w.c.opts.RefillAfter
		w.mu.Unlock()
	}
	return err == nil
}

// illegalError is a change of the record that the writer itself must not make.
type illegalError struct{ error }

// changeDecided gives the core the outcome of the write of a change.
func (w *Writer) changeDecided(next ledger.Metadata, rev meta.Revision, err error) {
	now := w.c.now()
	w.mu.Lock()
	if err == nil {
		w.c.met.changed()
	}
	w.rev = w.core.changeDecided(now, next, w.rev, rev, err)
	w.settleLocked(now)
	w.runUnlock(true)
}

// changeDecided takes the outcome of the write of a change (E4): next stands at
// revision rev, or err says why it does not. It returns the revision of the record
// as the writer now knows it, which was old.
func (c *writerCore) changeDecided(now time.Duration, next ledger.Metadata, old, rev meta.Revision, err error) meta.Revision {
	var moved *movedError
	var illegal *illegalError
	switch {
	case err == nil:
		c.changeStored(now, next)
		return rev
	case errors.As(err, &moved):
		md, movedRev, err := stillOurs(moved, &c.md)
		if err != nil {
			c.die(err)
			break
		}
		c.neededAt, c.wantedAt = now, now
		c.changeDropped(now, md)
		return movedRev
	case errors.Is(err, meta.ErrUncertain):
		// Only Abandon ends the write without an outcome: stay frozen.
	case errors.As(err, &illegal):
		c.stuck = err
		c.changeDropped(now, c.md)
	default: // surely not written: the store is away or full
		c.changeDropped(now, c.md)
		c.neededAt = now + maxStorePause
		c.wantedAt = now + c.timing.refillAfter
	}
	return old
}

// stillOurs decides what it means to a writer, whose record was last, that the
// record moved on: others may have swapped bookies in older fragments; anything
// else ends the writer.
func stillOurs(moved *movedError, last *ledger.Metadata) (ledger.Metadata, meta.Revision, error) {
	md, rev, err := decodeRecord(moved.id, moved.now)
	switch {
	case errors.Is(err, ledger.ErrNoLedger):
		return md, rev, fmt.Errorf("the record of ledger %d is gone: %w", moved.id, ledger.ErrDeleted)
	case err != nil:
		return md, rev, fmt.Errorf("%w: %w", err, ledger.ErrFenced)
	case md.State == ledger.InRecovery:
		err = ledger.ErrFenced
	case md.State == ledger.Closed:
		err = ledger.ErrClosed
	case md.State == ledger.Deleted:
		err = ledger.ErrDeleted
	case !ledger.SameFragment(md.Last(), last.Last()):
		err = ledger.ErrFenced // only its writer may touch the last fragment of an open ledger
	}
	if err != nil {
		err = fmt.Errorf("the record of ledger %d is %v: %w", moved.id, md.State, err)
	}
	return md, rev, err
}
