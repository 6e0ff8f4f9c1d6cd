package bookie

import (
	"context"
	"fmt"
	"hash/crc32"
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/internal/hotlog"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Add stores one entry. It never blocks, and done is called exactly once, with
// nil after the entry is on disk; it may be called from within Add, never with a
// lock of the node held. Body is not looked at after Add returned.
func (n *Node) Add(a ledger.Add, done func(error)) {
	if err := n.add(&a, done); err != nil {
		n.metrics.refused(err)
		done(err)
	}
}

// add hands the entry to the log; done is called by it unless an error is returned.
func (n *Node) add(a *ledger.Add, done func(error)) error {
	if err := checkAdd(a); err != nil {
		return err
	}
	if err := n.gate.enter(); err != nil {
		return err
	}
	defer n.gate.leave()
	// A recovery or repair add counts as control: without it a ledger cannot be
	// closed, so nothing could be trimmed (M28).
	control := a.Envelope.Class == ledger.Control || a.RecoveryTerm > 0
	if err := n.disk.admit(control); err != nil {
		return err
	}
	if !control && n.upkeep.room() == 0 {
		return fmt.Errorf("add entry %d to ledger %d: the log is filled faster than it is emptied: %w", a.Envelope.Entry, a.Envelope.Ledger, ledger.ErrTooBusy)
	}
	call := &addCall{node: n, bytes: int64(ledger.EnvelopeBytes + len(a.Body)), done: done}
	if !n.inFlight.take(call.bytes, control) {
		return fmt.Errorf("add entry %d to ledger %d: %d bytes in flight: %w", a.Envelope.Entry, a.Envelope.Ledger, n.inFlight.bytes.Load(), ledger.ErrTooBusy)
	}
	if err := n.handOver(a, call); err != nil {
		n.inFlight.give(call.bytes)
		return err
	}
	n.upkeep.took(call.bytes, n.identity.ReserveBytes/16)
	return nil
}

// handOver decides and appends under the ledger's lock, so that a fence is in the
// log behind every add let in before it (B9).
func (n *Node) handOver(a *ledger.Add, call *addCall) error {
	g := n.table.Lock(a.Envelope.Ledger)
	defer g.Unlock()
	if err := g.CheckAdd(a.Create, a.RecoveryTerm); err != nil {
		return err
	}
	known := g.Known()
	n.hot.Append(hotlog.Record{
		Kind:     hotlog.KindEntry,
		Ledger:   a.Envelope.Ledger,
		Entry:    a.Envelope.Entry,
		Envelope: a.Envelope,
		Body:     a.Body,
	}, call.answer)
	if err := call.returned(); err != nil {
		return err
	}
	g.Added(&a.Envelope)
	if !known {
		g.SetCreated(n.opts.Now().UnixMilli())
	}
	return nil
}

// addCall is an add on its way through the log. The log may answer from within
// Append, under the ledger's lock; the caller's done must then wait until the
// lock is free. Whichever of answer and returned comes second acts.
type addCall struct {
	node  *Node
	bytes int64
	done  func(error)

	second atomic.Bool
	err    error // written before second is set by answer
}

// answer is called by the log, once.
func (c *addCall) answer(_ hotlog.Place, err error) {
	c.err = err
	if err != nil {
		// Failed: leave it to add where Append has not returned yet.
		if !c.second.Swap(true) {
			return
		}
	}
	c.node.inFlight.give(c.bytes)
	c.done(err)
}

// returned is called once Append has returned, with the lock still held. An error
// says that the log refused at once and that done was not called.
func (c *addCall) returned() error {
	if c.second.Swap(true) {
		return c.err
	}
	return nil
}

// checkAdd refuses what must not reach the disk: ids out of range, a body that
// does not match its envelope (A2).
func checkAdd(a *ledger.Add) error {
	e := &a.Envelope
	if err := e.Validate(); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	if len(a.Body) > ledger.MaxBodyBytes {
		return fmt.Errorf("add entry %d to ledger %d, %d bytes: %w", e.Entry, e.Ledger, len(a.Body), ledger.ErrTooLarge)
	}
	if int(e.BodyBytes) != len(a.Body) {
		return fmt.Errorf("add entry %d to ledger %d: body of %d bytes, envelope says %d: %w",
			e.Entry, e.Ledger, len(a.Body), e.BodyBytes, ledger.ErrCorrupt)
	}
	if crc := crc32.Checksum(a.Body, ledger.Castagnoli); crc != e.BodyCRC {
		return fmt.Errorf("add entry %d to ledger %d: body checksum %08x, envelope says %08x: %w",
			e.Entry, e.Ledger, crc, e.BodyCRC, ledger.ErrCorrupt)
	}
	return nil
}

// Fence shuts writers below term out of a ledger, also of one never seen, and
// says what is held of it. The term is on disk before any answer (R4), and so is
// every add that was let in before it.
//
// ErrFenced: a higher term exists. ErrUnknown comes with a reply: fenced, but
// something of the ledger may be lost here.
func (n *Node) Fence(ctx context.Context, id ledger.ID, term int64) (ledger.FenceReply, error) {
	none := ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
	if err := n.fence(ctx, id, term); err != nil {
		return none, err
	}
	g := n.table.Lock(id)
	record, _ := g.Record()
	unsure := g.Absence() == ledger.Unknown
	g.Unlock()
	reply := ledger.FenceReply{LastEntry: record.LastEntry, LAC: record.LAC}
	if unsure {
		return reply, fmt.Errorf("ledger %d is fenced, but may have lost entries here: %w", id, ledger.ErrUnknown)
	}
	return reply, nil
}

// fence returns once a fence at term is on disk.
func (n *Node) fence(ctx context.Context, id ledger.ID, term int64) error {
	if id < 1 || term < 1 {
		return fmt.Errorf("fence ledger %d at term %d: %w", id, term, wire.ErrInvalid)
	}
	if err := n.gate.enter(); err != nil {
		return err
	}
	result, err := n.startFence(id, term)
	n.gate.leave()
	if err != nil || result == nil {
		return err
	}
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		return fmt.Errorf("fence ledger %d at term %d: %w", id, term, err)
	}
	g := n.table.Lock(id)
	g.FenceDurable(term)
	g.Unlock()
	return nil
}

// startFence hands a fence to the log, whose answer comes over the channel; nil
// when it is on disk already.
func (n *Node) startFence(id ledger.ID, term int64) (<-chan error, error) {
	g := n.table.Lock(id)
	defer g.Unlock()
	durable, err := g.CheckFence(term)
	if err != nil || durable {
		return nil, err
	}
	result := make(chan error, 1) // holds the one answer, also if nobody waits for it any more
	n.hot.Append(hotlog.Record{
		Kind:   hotlog.KindFence,
		Ledger: id,
		Data:   encodeTerm(term),
	}, func(_ hotlog.Place, err error) {
		if err == nil {
			n.metrics.fences.Inc()
		}
		result <- err
	})
	g.Fenced(term)
	return result, nil
}
