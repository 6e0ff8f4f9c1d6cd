package latency

import (
	"context"
	"time"
)

// Pacer says when each of many events at a fixed rate is due. For one goroutine.
//
// Whoever measures from the due time leaves nothing out: an event that had to
// wait because the one before was slow counts its wait. Measured from when it
// was begun it would not, and a system that stalls would look the better the
// longer it stalls.
type Pacer struct {
	start    time.Time
	interval float64 // nanoseconds
	next     float64 // nanoseconds after start
}

// NewPacer starts perSecond events a second, the first after phase of an
// interval (0 to 1), so that several pacers need not beat together.
func NewPacer(perSecond, phase float64) *Pacer {
	interval := float64(time.Second) / perSecond
	return &Pacer{start: time.Now(), interval: interval, next: phase * interval}
}

// Next waits until the next event is due and returns when that was; at once when
// it is overdue. It fails only when ctx ends.
func (p *Pacer) Next(ctx context.Context) (due time.Time, err error) {
	due = p.start.Add(time.Duration(p.next))
	p.next += p.interval
	for {
		if err := ctx.Err(); err != nil {
			return due, err
		}
		left := time.Until(due)
		switch {
		case left <= 0:
			return due, nil
		case left <= fine:
			shortSleep(left)
			return due, nil
		}
		select {
		case <-time.After(left - fine):
		case <-ctx.Done():
		}
	}
}

// fine is how long before an event the runtime's timers are trusted no more: in
// a process with nothing else to do they are up to a millisecond late.
const fine = 2 * time.Millisecond
