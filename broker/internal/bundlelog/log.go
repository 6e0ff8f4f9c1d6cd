package bundlelog

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"strings"
	"sync"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// Options of a Log. Bundle, Last, Layout, Store, Ledgers, Guard, Quorum and
// State are required; zero is the documented default elsewhere.
type Options struct {
	Bundle      string // tenant/namespace/first-last, as layout has it
	First, Last uint32 // its range of topic hashes, both ends included
	Layout      layout.Layout
	Store       meta.Store
	Ledgers     *ensemble.Client
	// Guard returns what must hold in every transaction made as owner.
	Guard func() []meta.Cond
	// StillOwner is as in chain.Options.
	StillOwner func(context.Context) (bool, error)
	Quorum     ledger.Quorum
	State      State
	// RollBytes is when the log goes on in a new ledger; 0: 32 MiB.
	RollBytes int64
	// QueueBytes bounds what was appended and is not answered; 0: 16 MiB. An append
	// larger than half of it, or than an entry may be, is refused with ErrTooLarge.
	QueueBytes int64
	// PassBytes is how many bytes of records, or twice the last snapshot if that is
	// more, start a snapshot pass; 0: 16 MiB.
	PassBytes int64
	// OnFenced is called once when the log is lost to this owner, after all appends
	// were answered. It must not wait for Close or Abandon.
	OnFenced func(error)
	Log      hclog.Logger
	Metrics  *Metrics
}

// Validate reports every fault of the options.
func (o *Options) Validate() error {
	var errs []error
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, fmt.Errorf("bundlelog: option %s is missing or out of range", what))
		}
	}
	need(strings.Count(o.Bundle, "/") == 2, "Bundle")
	need(o.First <= o.Last, "Last")
	need(o.Store != nil, "Store")
	need(o.Ledgers != nil, "Ledgers")
	need(o.Guard != nil, "Guard")
	need(o.State != nil, "State")
	need(o.RollBytes >= 0, "RollBytes")
	need(o.QueueBytes >= 0 && o.QueueBytes <= 48<<20, "QueueBytes") // a group is an entry
	need(o.PassBytes >= 0, "PassBytes")
	return errors.Join(append(errs, o.Quorum.Validate())...)
}

func (o *Options) fill() {
	if o.RollBytes == 0 {
		o.RollBytes = 32 << 20
	}
	if o.QueueBytes == 0 {
		o.QueueBytes = 16 << 20
	}
	if o.PassBytes == 0 {
		o.PassBytes = 16 << 20
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Metrics == nil {
		o.Metrics = NewMetrics(nil)
	}
}

// Log is the open log of a bundle. Safe for concurrent use; the order of the log
// is the order of the calls of Append.
//
// Group commit: while one entry is on its way, what is appended gathers in
// filling and goes out as the next entry when that one is answered. What would make
// it larger than any bookie takes begins another; those that are full go first. No
// timer is involved; a lone append waits for nothing.
type Log struct {
	opts     Options
	record   *record
	appender *chain.Appender
	stop     context.CancelFunc // of passes
	ctx      context.Context
	passes   sync.WaitGroup

	mu       sync.Mutex
	full     []group // ready, before filling; empty while nothing is on its way
	filling  group
	inflight bool  // a group is on its way
	bytes    int64 // of items not answered
	ended    error
	closing  bool          // Close was called
	idle     chan struct{} // closed once nothing is on its way; nil: nobody waits
	// deltaBytes are the records since the last begin, snapshotBytes the parts of
	// the last whole pass.
	deltaBytes    int64
	snapshotBytes int64
	passing       bool
	touched       map[Topic]bool // topics of records since the begin of the pass under way
}

// group is an entry in the making.
type group struct {
	body  []byte
	items int
	flags byte
	bytes int64 // of its items, as counted in Log.bytes
	dones []func(ledger.ID, error)
}

func (g *group) add(it item) {
	if len(g.body) == 0 {
		g.body = make([]byte, groupHeaderBytes, 4<<10)
	}
	g.body = it.appendTo(g.body)
	g.items++
	g.bytes += int64(it.bytes())
	switch it.kind {
	case itemBegin:
		g.flags |= flagBegin
	case itemEnd:
		g.flags |= flagEnd
	}
}

// Open recovers every ledger of the log that is not closed, oldest first, and
// replays it into State. After that no earlier owner can get anything
// acknowledged. It writes no entry. The caller has made itself the owner of the
// bundle before, and has told the ledger client to draw new ids since.
//
// chain.ErrNotOwner: the guard no longer holds.
func Open(ctx context.Context, opts Options) (*Log, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	l := &Log{opts: opts}
	l.ctx, l.stop = context.WithCancel(context.Background())
	l.record = newRecord(&l.opts)
	err := l.record.read(ctx)
	if err == nil {
		err = l.record.recover(ctx, func(ledger.ID) bool { return false })
	}
	if err == nil {
		for _, li := range lineages(l.record.segments, opts.First, opts.Last) {
			if err = l.replay(ctx, li); err != nil {
				break
			}
		}
	}
	if err != nil {
		l.stop()
		return nil, fmt.Errorf("open the log of bundle %s: %w", opts.Bundle, err)
	}
	l.appender = chain.NewAppender(chain.Options{
		Ledgers: opts.Ledgers, Store: opts.Store, Links: l.record, Guard: opts.Guard, StillOwner: opts.StillOwner,
		Quorum: opts.Quorum, Class: ledger.Control,
		Parent: ledger.Parent{Bundle: opts.Bundle, Role: "log"},
		Roll:   chain.Roll{MaxBytes: l.opts.RollBytes}, SelfBounded: true,
		OnFenced: l.fenced, Log: l.opts.Log,
	})
	return l, nil
}

func (l *Log) fenced(err error) {
	l.opts.Metrics.fenced.Inc()
	if l.opts.OnFenced != nil {
		l.opts.OnFenced(err)
	}
}

// Append adds records as one atomic group. It never blocks. An error means that
// they were refused and are surely not in the log: ErrTooBusy when too much is
// not answered yet, ErrTooLarge, ErrStopping, or why the log ended. Otherwise done
// is called once, in the order of the calls, one at a time, never from within
// Append: with nil when the records are durable, with an error when it is not
// known whether they are. done must be quick and may call Append.
func (l *Log) Append(records []Record, done func(error)) error {
	n := int64(0)
	for _, r := range records {
		n += int64(r.item().bytes())
		if r.Hash < l.opts.First || r.Hash > l.opts.Last {
			return fmt.Errorf("record of topic %d, hash %08x, in bundle %s: %w", r.Topic, r.Hash, l.opts.Bundle, chain.ErrNotOwner)
		}
	}
	if n > min(l.opts.QueueBytes/2, maxGroupBytes) {
		return fmt.Errorf("append %d bytes to the log of bundle %s: %w", n, l.opts.Bundle, ledger.ErrTooLarge)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.ended != nil:
		return l.ended
	case l.closing:
		return ledger.ErrStopping
	case l.bytes+n > l.opts.QueueBytes:
		return fmt.Errorf("append to the log of bundle %s: %w", l.opts.Bundle, ledger.ErrTooBusy)
	}
	l.makeRoomLocked(n)
	for _, r := range records {
		l.filling.add(r.item())
	}
	if err := l.queueLocked(n, func(_ ledger.ID, err error) { done(err) }); err != nil {
		return err
	}
	l.deltaBytes += n
	if l.passing {
		for _, r := range records {
			l.touched[Topic{ID: r.Topic, Hash: r.Hash}] = true
		}
	}
	return nil
}

// maxGroupBytes bounds the items of a group, which is one entry: a bundle has to have
// a log whatever the bookies' segments are.
const maxGroupBytes = ledger.LeastBodyBytes - groupHeaderBytes

// makeRoomLocked begins another group if items of n bytes, which have to stay
// together, do not fit in the filling one.
func (l *Log) makeRoomLocked(n int64) {
	if l.filling.bytes+n > maxGroupBytes && len(l.filling.dones) > 0 {
		l.full = append(l.full, l.filling)
		l.filling = group{}
	}
}

// queueLocked ends an addition of n bytes to the filling group. An error means
// that the log has ended and the addition went nowhere.
func (l *Log) queueLocked(n int64, done func(ledger.ID, error)) error {
	l.bytes += n
	l.filling.dones = append(l.filling.dones, done)
	if l.inflight {
		return nil
	}
	// Nothing was on its way, so nothing but this addition is in the group.
	_, err := l.sendLocked()
	if err != nil {
		l.bytes -= n
	}
	return err
}

// takeQueuedLocked takes out all groups that were not sent, in order.
func (l *Log) takeQueuedLocked() []group {
	queued := append(l.full, l.filling)
	l.full, l.filling = nil, group{}
	return queued
}

// sendLocked sends the oldest group, if there is any. An error means that the log
// has ended; the groups it returns are then for the caller to answer.
func (l *Log) sendLocked() ([]group, error) {
	g := l.filling
	if len(l.full) > 0 {
		g, l.full = l.full[0], l.full[1:]
	} else {
		l.filling = group{}
	}
	if len(g.dones) == 0 {
		return nil, nil
	}
	if len(g.body) == 0 {
		g.body = make([]byte, groupHeaderBytes) // an append of no records waits for those before it
	}
	putGroupHeader(g.body, g.flags, g.items)
	err := l.appender.Append(g.body, crc32.Checksum(g.body, ledger.Castagnoli), func(id ledger.ID, _ ledger.EntryID, err error) {
		l.answered(g, id, err)
	})
	if err != nil {
		l.ended = err
		return append([]group{g}, l.takeQueuedLocked()...), err
	}
	l.inflight = true
	l.opts.Metrics.groups.Inc()
	l.opts.Metrics.groupBytes.Add(float64(len(g.body)))
	return nil, nil
}

// answered takes the answer of the group that was on its way. The next one goes
// out before anybody is told, so that the bookies never wait for the callers.
func (l *Log) answered(g group, id ledger.ID, err error) {
	l.mu.Lock()
	l.inflight = false
	var rest []group
	restErr := err
	if err == nil {
		rest, restErr = l.sendLocked()
		l.startPassLocked()
	} else {
		if l.ended == nil {
			l.ended = err
		}
		rest = l.takeQueuedLocked()
	}
	l.mu.Unlock()
	l.answer(g, id, err)
	for _, g := range rest {
		l.answer(g, 0, restErr)
	}
}

// answer tells those whose items are in g.
func (l *Log) answer(g group, id ledger.ID, err error) {
	for _, done := range g.dones {
		done(id, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.bytes -= g.bytes
	if l.idle != nil && !l.inflight && len(l.filling.dones) == 0 {
		close(l.idle)
		l.idle = nil
	}
}

// Settle returns once all that was appended before the call is durable. It writes
// nothing when that is so already. With an error, that of ctx or why the log ended,
// some of it may not be.
func (l *Log) Settle(ctx context.Context) error {
	l.mu.Lock()
	settled, ended := !l.inflight, l.ended
	l.mu.Unlock()
	if settled || ended != nil {
		return ended
	}
	durable := make(chan error, 1)
	if err := l.Append(nil, func(err error) { durable <- err }); err != nil {
		return err
	}
	select {
	case err := <-durable:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Pending is how many bytes were appended and are not answered.
func (l *Log) Pending() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.bytes
}

// Trouble is why appends wait; nil: they do not.
func (l *Log) Trouble() error { return l.appender.Trouble() }

// StateBytes is the size of the last whole snapshot: about how much the bundle
// holds.
func (l *Log) StateBytes() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.snapshotBytes
}

// Close takes no more appends, gives up a pass under way, waits until all appends
// are answered, and closes the ledger, so that the next owner has nothing to
// recover. When ctx ends first it gives up as Abandon does and returns the
// context's error.
func (l *Log) Close(ctx context.Context) error {
	l.stop()
	l.mu.Lock()
	l.closing = true
	var idle chan struct{}
	if l.ended == nil && l.inflight {
		if l.idle == nil {
			l.idle = make(chan struct{})
		}
		idle = l.idle
	}
	l.mu.Unlock()
	if idle != nil {
		select {
		case <-idle:
		case <-ctx.Done():
			l.Abandon()
			return fmt.Errorf("close the log of bundle %s: %w", l.opts.Bundle, ctx.Err())
		}
	}
	err := l.appender.Close(ctx)
	l.passes.Wait()
	return err
}

// Abandon gives the log up as it is: appends in flight are answered as unknown,
// and the next owner recovers. Not to be called from a done.
func (l *Log) Abandon() {
	l.stop()
	l.appender.Abandon()
	l.passes.Wait()
}
