package ensembletest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// conn is a connection to one incarnation of a bookie; it implements
// ensemble.Bookie.
type conn struct {
	b  *Bookie
	to ledger.Member
}

func (c *conn) Add(a ledger.Add, done func(error)) {
	b := c.b
	b.mu.Lock()
	b.adds++
	if b.down || b.cut {
		b.mu.Unlock()
		done(ErrDown)
		return
	}
	b.queue = append(b.queue, job{to: c.to, add: a, done: done})
	b.workLocked()
	b.mu.Unlock()
}

// workLocked sees to it that the queue is worked on, unless it is frozen.
func (b *Bookie) workLocked() {
	select {
	case <-b.thawed:
	default:
		return
	}
	if b.working || len(b.queue) == 0 {
		return
	}
	b.working = true
	if b.latency > 0 {
		time.AfterFunc(b.latency, b.work) // no goroutine sleeps, so none is left when a test ends
	} else {
		go b.work()
	}
}

// work answers what has gathered, in order.
func (b *Bookie) work() {
	b.mu.Lock()
	defer b.mu.Unlock()
	select {
	case <-b.thawed:
		batch := b.queue
		b.queue = nil
		for _, j := range batch {
			b.storeOne(j)
		}
	default:
	}
	b.working = false
	b.workLocked()
}

// storeOne does one add and answers it. Called with mu held, which it gives up
// over the answer.
func (b *Bookie) storeOne(j job) {
	var f AddFault
	if b.onAdd != nil {
		f = b.onAdd(j.add)
	}
	if f.Delay > 0 {
		time.AfterFunc(f.Delay, func() {
			b.mu.Lock()
			defer b.mu.Unlock()
			b.finish(j, f)
		})
		return
	}
	b.finish(j, f)
}

func (b *Bookie) finish(j job, f AddFault) {
	err := f.Err
	switch {
	case b.down || b.cut:
		err = ErrDown
	case err == nil || f.Store:
		if storeErr := b.storeLocked(j.to, j.add); err == nil {
			err = storeErr
		}
	}
	b.mu.Unlock()
	j.done(err)
	b.mu.Lock()
	if f.Twice {
		_ = b.storeLocked(j.to, j.add) // refused as it may be, its answer is lost
	}
}

// storeLocked is what a bookie does with an add.
func (b *Bookie) storeLocked(to ledger.Member, a ledger.Add) error {
	if to != b.member {
		return ledger.ErrIncarnation
	}
	entry := ledger.Entry{Envelope: a.Envelope, Body: a.Body}
	id := a.Envelope.Ledger
	if err := entry.Check(id, a.Envelope.Entry); err != nil {
		return err
	}
	l, known := b.ledgers[id]
	switch {
	case known && l.deleted:
		return ledger.ErrDeleted
	case !known && !a.Create:
		return ledger.ErrNoLedger
	case known && a.RecoveryTerm < l.term:
		return fmt.Errorf("bookie %v is fenced at term %d: %w", b.member, l.term, ledger.ErrFenced)
	case b.readOnly && a.Envelope.Class == ledger.Data && a.RecoveryTerm == 0:
		return ledger.ErrReadOnly
	case b.maxBody > 0 && int64(len(a.Body)) > b.maxBody:
		return fmt.Errorf("%d bytes, at most %d: %w", len(a.Body), b.maxBody, ledger.ErrTooLarge)
	}
	l = b.ledgerLocked(id)
	if old, ok := l.entries[a.Envelope.Entry]; ok && !bytes.Equal(old.Body, a.Body) {
		return fmt.Errorf("entry %d of ledger %d is here with another body: %w", a.Envelope.Entry, id, ledger.ErrCorrupt)
	}
	l.put(entry)
	return nil
}

// wait passes the latency and a freeze, and reports whether the bookie answers.
func (c *conn) wait(ctx context.Context) error {
	c.b.mu.Lock()
	latency, thawed := c.b.latency, c.b.thawed
	c.b.mu.Unlock()
	if latency > 0 {
		t := time.NewTimer(latency)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	select {
	case <-thawed:
	case <-ctx.Done():
		return ctx.Err()
	}
	return ctx.Err()
}

// enter takes the lock if the bookie answers this connection.
func (c *conn) enter() error {
	c.b.mu.Lock()
	var err error
	switch {
	case c.b.down || c.b.cut:
		err = ErrDown
	case c.b.member != c.to:
		err = ledger.ErrIncarnation
	}
	if err != nil {
		c.b.mu.Unlock()
	}
	return err
}

func (c *conn) Fence(ctx context.Context, id ledger.ID, term int64) (ledger.FenceReply, error) {
	none := ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
	if err := c.wait(ctx); err != nil {
		return none, err
	}
	if err := c.enter(); err != nil {
		return none, err
	}
	b := c.b
	defer b.mu.Unlock()
	b.fences++
	if b.onFence != nil {
		if err := b.onFence(id, term); err != nil {
			return none, err
		}
	}
	l := b.ledgerLocked(id)
	if err := l.fence(term); err != nil {
		return none, err
	}
	reply := ledger.FenceReply{LastEntry: l.last, LAC: l.lac}
	if l.limbo {
		return reply, ledger.ErrUnknown
	}
	return reply, nil
}

// fence raises the term, or says why not.
func (l *stored) fence(term int64) error {
	switch {
	case l.deleted:
		return ledger.ErrDeleted
	case term < l.term:
		return fmt.Errorf("fenced at term %d: %w", l.term, ledger.ErrFenced)
	}
	l.term = term
	return nil
}

func (c *conn) Read(ctx context.Context, r ledger.ReadRequest) (ledger.ReadReply, error) {
	c.b.mu.Lock()
	c.b.reads++
	c.b.mu.Unlock()
	if err := c.wait(ctx); err != nil {
		return ledger.ReadReply{}, err
	}
	if err := c.enter(); err != nil {
		return ledger.ReadReply{}, err
	}
	b := c.b
	defer b.mu.Unlock()
	if b.onRead != nil {
		if err := b.onRead(r); err != nil {
			return ledger.ReadReply{}, err
		}
	}
	if r.FenceTerm > 0 {
		if err := b.ledgerLocked(r.Ledger).fence(r.FenceTerm); err != nil {
			return ledger.ReadReply{}, err
		}
	}
	l := b.ledgers[r.Ledger]
	switch {
	case l == nil:
		return ledger.ReadReply{}, ledger.ErrNoLedger
	case l.deleted:
		return ledger.ReadReply{}, ledger.ErrDeleted
	}
	return l.read(r), nil
}

func (l *stored) read(r ledger.ReadRequest) ledger.ReadReply {
	reply := ledger.ReadReply{LAC: l.lac}
	size := 0
	for e := r.First; e <= r.Last; e++ {
		entry, ok := l.entries[e]
		if ok && len(reply.Entries) > 0 && r.MaxBytes > 0 && size+len(entry.Body) > r.MaxBytes {
			break
		}
		switch {
		case ok:
			if l.damaged[e] {
				entry.Body = slices.Clone(entry.Body)
				if len(entry.Body) > 0 {
					entry.Body[0] ^= 1
				} else {
					entry.Envelope.BodyCRC ^= 1
				}
			}
			size += len(entry.Body)
			if r.HeadBytes > 0 && len(entry.Body) > r.HeadBytes {
				entry.Body = entry.Body[:r.HeadBytes]
			}
			reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Found, Entry: entry})
		case l.limbo:
			reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Unknown})
		default:
			reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Absent})
		}
		if !ok && r.FenceTerm == 0 {
			break
		}
	}
	return reply
}

func (c *conn) Info(ctx context.Context, id ledger.ID) (ledger.Info, error) {
	if err := c.wait(ctx); err != nil {
		return ledger.Info{}, err
	}
	if err := c.enter(); err != nil {
		return ledger.Info{}, err
	}
	defer c.b.mu.Unlock()
	l := c.b.ledgers[id]
	switch {
	case l == nil:
		return ledger.Info{}, ledger.ErrNoLedger
	case l.deleted:
		return ledger.Info{}, ledger.ErrDeleted
	}
	info := ledger.Info{LAC: l.lac, Term: l.term, Limbo: l.limbo}
	for e := ledger.EntryID(0); e <= l.last; e++ {
		if _, ok := l.entries[e]; !ok {
			continue
		}
		if n := len(info.Ranges); n > 0 && info.Ranges[n-1].Last == e-1 {
			info.Ranges[n-1].Last = e
		} else {
			info.Ranges = append(info.Ranges, ledger.EntryRange{First: e, Last: e})
		}
	}
	return info, nil
}

func (c *conn) List(ctx context.Context, after ledger.ID, limit int) ([]ledger.ID, bool, error) {
	if err := c.wait(ctx); err != nil {
		return nil, false, err
	}
	if err := c.enter(); err != nil {
		return nil, false, err
	}
	defer c.b.mu.Unlock()
	var ids []ledger.ID
	for id, l := range c.b.ledgers {
		if id > after && !l.deleted {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	if limit > 0 && len(ids) > limit {
		return ids[:limit], true, nil
	}
	return ids, false, nil
}
