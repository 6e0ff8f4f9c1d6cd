package chain

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// step is what run does next.
type step int

const (
	stepWait   step = iota // nothing to do but wait
	stepFinish             // the chain has ended: answer what is left
	stepClose              // close the ledger before the current one
	stepSeal               // the current writer failed: close its ledger, take back the tail
	stepCreate             // create the next ledger
)

const (
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = 2 * time.Second
	// busyRetry is how soon a ledger client that was too busy is tried again when no
	// answer of ours is due that would tell.
	busyRetry = 5 * time.Millisecond
)

// run does what may take long, one step after the other, until the chain has
// ended or has been idle for a while.
//
// A step that fails is tried again, for ever: adds wait meanwhile within the
// budget. Only a sign of another owner ends the chain.
func (a *Appender) run(stopped chan struct{}) {
	defer close(stopped)
	backoff := firstBackoff
	for {
		a.mu.Lock()
		next := a.planLocked()
		a.mu.Unlock()
		var err error
		switch next {
		case stepFinish:
			a.finish()
			return
		case stepClose:
			err = a.closeOld()
		case stepSeal:
			err = a.seal()
		case stepCreate:
			err = a.create()
		case stepWait:
			if a.idle() {
				return
			}
			continue
		}
		lost := lost(err) && !a.holdsOn(err)
		a.mu.Lock()
		if lost {
			a.endLocked(err)
		} else if a.ended == nil {
			if err != nil && a.trouble == nil {
				a.log.Warn("a ledger of the chain has to wait", "topic", a.opts.Parent.Topic, "bundle", a.opts.Parent.Bundle, "error", err)
			}
			a.trouble = err
		}
		a.mu.Unlock()
		if err == nil || lost {
			backoff = firstBackoff
			continue
		}
		select {
		case <-time.After(backoff):
		case <-a.ctx.Done():
		}
		backoff = min(2*backoff, lastBackoff)
	}
}

// lost reports an error that means another owner, or a deletion.
func lost(err error) bool {
	return errors.Is(err, ErrNotOwner) || errors.Is(err, ledger.ErrFenced) ||
		errors.Is(err, ledger.ErrClosed) || errors.Is(err, ledger.ErrDeleted)
}

// holdsOn reports whether an error of a guard is not the last word.
func (a *Appender) holdsOn(err error) bool {
	if a.opts.StillOwner == nil || !errors.Is(err, ErrNotOwner) {
		return false
	}
	ctx, cancel := context.WithTimeout(a.ctx, a.opts.StepTimeout)
	defer cancel()
	ours, askErr := a.opts.StillOwner(ctx)
	return ours || askErr != nil
}

// planLocked says what run does next.
//
// The ledger before the current one is closed first, so that no third is ever
// open, and so that ledgers are closed oldest first.
func (a *Appender) planLocked() step {
	s := a.current
	switch {
	case a.ended != nil:
		return stepFinish
	case a.old != nil:
		return stepClose
	case s != nil && s.failed:
		return stepSeal
	case s == nil && a.waiting.len() > 0:
		return stepCreate
	case a.closing && a.waiting.len() == 0 && s == nil:
		a.endLocked(ledger.ErrStopping)
		a.told = true
		return stepFinish
	case a.closing && a.waiting.len() == 0 && s.inflight.len() == 0:
		a.old, a.current, a.next = s, a.next, nil
		return stepClose
	case s != nil && s.full(1) && !s.leaving && a.next == nil && (!a.closing || a.waiting.len() > 0):
		return stepCreate
	}
	return stepWait
}

// idle waits until there may be something to do. True: the chain has been idle
// for long enough, and run ends; the next append starts it again.
func (a *Appender) idle() bool {
	a.mu.Lock()
	s := a.current
	var failed <-chan struct{}
	if s != nil {
		failed = s.w.Failed()
	}
	a.mu.Unlock()

	timer := time.NewTimer(a.opts.IdleAfter)
	defer timer.Stop()
	select {
	case <-a.wake:
		return false
	case <-failed:
		a.mu.Lock()
		defer a.mu.Unlock()
		s.failed = true
		if err := s.w.Err(); lost(err) {
			a.endLocked(fmt.Errorf("ledger %d: %w", s.w.ID(), err))
		}
		return false
	case <-timer.C:
	}

	a.mu.Lock()
	defer a.mu.Unlock()
	if a.planLocked() != stepWait || a.waiting.len() > 0 || a.current != s || s != nil && s.inflight.len() > 0 {
		return false
	}
	a.running = nil
	return true
}

// closeOld closes the ledger before the current one, all of whose adds are
// answered.
func (a *Appender) closeOld() error {
	ctx, cancel := context.WithTimeout(a.ctx, a.opts.StepTimeout)
	defer cancel()
	s := a.old // run alone changes it once it is set
	if s.closed == nil {
		md, err := s.w.Close(ctx)
		if err != nil {
			return fmt.Errorf("close ledger %d: %w", s.w.ID(), err)
		}
		s.closed = &md
	}
	if err := a.opts.Links.Closed(ctx, *s.closed); err != nil {
		return fmt.Errorf("record that ledger %d is closed: %w", s.w.ID(), err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.old = nil
	a.turnLocked()
	a.flushLocked()
	return nil
}

// seal closes the current ledger, whose writer failed, at its last
// acknowledgement, and puts what was in flight at the head of what waits.
//
// The close is definite before anything is sent again; then the tail is surely
// not part of the closed ledger, and sending it makes no duplicate.
func (a *Appender) seal() error {
	ctx, cancel := context.WithTimeout(a.ctx, a.opts.StepTimeout)
	defer cancel()
	s := a.current
	md, tail, err := s.w.Seal(ctx)
	if err != nil {
		return fmt.Errorf("seal ledger %d: %w", s.w.ID(), err)
	}
	// The answers that the writer gave may still be on their way to the callers.
	a.mu.Lock()
	s.sealing = true
	for s.inflight.len() > len(tail) {
		a.mu.Unlock()
		<-a.wake
		a.mu.Lock()
	}
	defer a.mu.Unlock()
	a.log.Info("writing goes on in another ledger", "ledger", s.w.ID(), "last", md.LastEntry, "resent", len(tail))
	a.budget.retake(s.inflight.bytes)
	a.waiting.prepend(&s.inflight)
	s.inflight = fifo{}
	s.closed = &md
	a.old, a.current, a.next = s, a.next, nil
	a.flushLocked()
	return nil
}

// create makes the next ledger. It becomes the current one at once when there is
// none, else once the current one has left.
func (a *Appender) create() error {
	ctx, cancel := context.WithTimeout(a.ctx, a.opts.StepTimeout)
	defer cancel()
	links := a.opts.Links
	minID, err := links.Prepare(ctx)
	if err != nil {
		return fmt.Errorf("read the chain before adding to it: %w", err)
	}
	guard := a.opts.Guard()
	w, err := a.opts.Ledgers.Create(ctx, ensemble.CreateRequest{
		Quorum: a.opts.Quorum, Class: a.opts.Class, Parent: a.opts.Parent,
		MinID: minID, Guard: guard, Extra: links.Link,
	})
	if err != nil {
		err = fmt.Errorf("create a ledger: %w", err)
		links.Unlinked(errors.Is(err, ledger.ErrNotEnoughBookies))
		if errors.Is(err, ensemble.ErrConflict) {
			owned, ownErr := Owned(ctx, a.opts.Store, guard)
			if ownErr == nil && !owned {
				return fmt.Errorf("%w: %w", ErrNotOwner, err)
			}
		}
		return err
	}
	links.Linked(w)
	s := &segment{a: a, w: a.wrap(w)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.current == nil {
		a.current = s
	} else {
		a.next = s
		a.current.leaving = true
		a.turnLocked()
	}
	a.flushLocked()
	return nil
}

// finish answers everything that is left, in order, and tells the owner.
func (a *Appender) finish() {
	a.mu.Lock()
	segments := []*segment{a.old, a.current, a.next}
	err := a.ended
	a.mu.Unlock()
	for _, s := range segments {
		if s != nil {
			s.w.Abandon()
		}
	}
	for _, s := range segments {
		if s == nil {
			continue
		}
		a.mu.Lock()
		for s.inflight.len() > 0 {
			a.mu.Unlock()
			<-a.wake // the writer answers every add it took
			a.mu.Lock()
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	rest := a.waiting
	a.waiting = fifo{}
	told := a.told
	a.told = true
	a.mu.Unlock()
	a.budget.give(rest.bytes)
	for ; rest.len() > 0; rest.pop() {
		rest.front().done(0, ledger.NoEntry, fmt.Errorf("append: %w", err))
	}
	if !told && a.opts.OnFenced != nil {
		a.opts.OnFenced(err)
	}
}

// Close takes no more appends, waits until those taken are answered, and closes
// the ledgers. When ctx ends first it gives up as Abandon does and returns the
// context's error.
func (a *Appender) Close(ctx context.Context) error {
	a.mu.Lock()
	a.closing = true
	a.activeLocked()
	a.nudge()
	running := a.running
	a.mu.Unlock()
	select {
	case <-running:
	case <-ctx.Done():
		a.Abandon()
		return fmt.Errorf("close a chain: %w", ctx.Err())
	}
	a.cancel()
	a.mu.Lock()
	defer a.mu.Unlock()
	if !errors.Is(a.ended, ledger.ErrStopping) {
		return a.ended
	}
	return nil
}

// Abandon gives the chain up without closing its ledgers, answers what is in
// flight as unknown, and returns when all is answered. OnFenced is not called.
// Not to be called from a Done.
func (a *Appender) Abandon() {
	a.mu.Lock()
	a.endLocked(ledger.ErrStopping)
	a.told = true
	a.activeLocked()
	running := a.running
	a.mu.Unlock()
	a.cancel()
	<-running
}
