package meta

import (
	"context"
	"fmt"
	"time"
)

// CallKind says what a call on Mem does.
type CallKind uint8

const (
	CallGet CallKind = iota
	CallRange
	CallTxn
	CallWatch   // a watch begins
	CallDeliver // a watch is about to give a batch
	CallSession
	CallRenew // a session's keep-alive
	CallEnd   // a session is closed
)

// Call is a call on Mem as a fault hook sees it.
type Call struct {
	N      int    // counts the calls of all clients, from 1
	Client string // name of the client
	Kind   CallKind
	Key    string // key, range start, prefix, or session id
	Txn    Txn    // of a CallTxn; not to be altered
}

// Fault is what befalls a call; the zero Fault is that all goes well.
type Fault struct {
	// Err is the answer, and the call is not done: ErrUnavailable, or ErrUncertain
	// for a Txn whose request was lost.
	Err error
	// Lost: the call is done, but its answer is lost. A Txn answers ErrUncertain,
	// anything else ErrUnavailable.
	Lost bool
	// Delay passes before the call reaches the store. A Txn arrives all the same
	// when its caller has given up meanwhile.
	Delay time.Duration
	// Until holds the call back until it is closed; a call whose caller gives up
	// meanwhile is not done.
	Until <-chan struct{}
	// AnswerDelay passes between the deed and the answer.
	AnswerDelay time.Duration
}

// OnCall asks hook about every call from now on; nil: no faults. The hook runs
// on the caller's goroutine, outside all locks, possibly at the same time for
// several calls, and may itself call anything of Mem.
func (m *Mem) OnCall(hook func(Call) Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.hook = hook
}

func (m *Mem) fault(call Call) Fault {
	m.mu.Lock()
	m.calls++
	call.N = m.calls
	hook := m.hook
	m.mu.Unlock()
	if hook == nil {
		return Fault{}
	}
	return hook(call)
}

// do runs one call of client c under the faults that befall it. deed runs with
// the lock held, at most once, perhaps after the caller has given up. lost is
// the error that stands for a lost answer.
func do[T any](ctx context.Context, c *MemClient, call Call, lost error, deed func() (T, error)) (T, error) {
	type answer struct {
		value T
		err   error
	}
	var none T
	select {
	case <-ctx.Done():
		return none, fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	case <-c.life.Done():
		return none, errClosed
	default:
	}
	wait := func(arrived <-chan struct{}) error {
		select {
		case <-arrived:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", lost, ctx.Err())
		case <-c.life.Done():
			return fmt.Errorf("%w: %w", lost, errClosed)
		}
	}
	call.Client = c.name
	f := c.m.fault(call)
	if f.Err != nil {
		return none, f.Err
	}
	if f.Until != nil {
		if err := wait(f.Until); err != nil {
			return none, err
		}
	}
	var a answer
	arrived := make(chan struct{})
	arrive := func(cutOff error) {
		c.m.mu.Lock()
		defer c.m.mu.Unlock()
		defer close(arrived)
		if c.m.unavailable || c.cut {
			a.err = cutOff
			return
		}
		a.value, a.err = deed()
	}
	if f.Delay > 0 {
		time.AfterFunc(f.Delay, func() { arrive(lost) })
	} else {
		arrive(ErrUnavailable)
	}
	if err := wait(arrived); err != nil {
		return none, err
	}
	if f.AnswerDelay > 0 {
		answered := make(chan struct{})
		timer := time.AfterFunc(f.AnswerDelay, func() { close(answered) })
		defer timer.Stop()
		if err := wait(answered); err != nil {
			return none, err
		}
	}
	if f.Lost {
		return none, lost
	}
	return a.value, a.err
}
