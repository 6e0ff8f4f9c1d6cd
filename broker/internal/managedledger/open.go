package managedledger

import (
	"context"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/chain"
	"github.com/magnetar-io/magnetar/internal/entry"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// headBytes is as much of a body as holds the broker part of nearly every entry.
const headBytes = 512

// Open reads the chain of a topic and recovers every ledger that is not closed,
// oldest first; after that no earlier owner can get anything acknowledged. The
// caller has made itself the owner before, and has told the ledger client to draw
// new ids since.
//
// chain.ErrNotOwner: the guard no longer holds. What cannot be found out is tried
// again until ctx ends.
func Open(ctx context.Context, opts Options) (*ManagedLedger, error) {
	m, err := newManagedLedger(opts)
	if err != nil {
		return nil, err
	}
	if err := m.record.load(ctx); err != nil {
		return nil, err
	}
	if open := m.links.open(); len(open) > 2 {
		m.opts.Log.Error("more than two ledgers of a chain are not closed", "topic", opts.Topic, "ledgers", len(open))
	}
	for _, l := range m.links.open() {
		md, err := chain.Recover(ctx, opts.Ledgers, opts.Store, l.ledger, opts.Guard())
		if err == nil {
			err = m.record.closed(ctx, md)
		}
		if err != nil {
			return nil, fmt.Errorf("open topic %d: %w", opts.Topic, err)
		}
	}
	return m, nil
}

func newManagedLedger(opts Options) (*ManagedLedger, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	opts.fill()
	m := &ManagedLedger{opts: opts, readers: map[ledger.ID]*ensemble.Reader{}}
	m.record = newRecord(m)
	m.appender = chain.NewAppender(chain.Options{
		Ledgers: opts.Ledgers, Store: opts.Store, Links: m.record, Guard: opts.Guard, StillOwner: opts.StillOwner,
		Quorum: opts.Quorum, Class: ledger.Data,
		Parent: ledger.Parent{Topic: opts.Topic, Role: "data"},
		Roll:   chain.Roll{MaxBytes: opts.Roll.MaxBytes, MaxEntries: opts.Roll.MaxEntries},
		Budget: opts.Budget, OnFenced: m.fenced, Log: opts.Log,
	})
	return m, nil
}

func (m *ManagedLedger) fenced(err error) {
	m.opts.Metrics.fenced.Inc()
	if m.opts.OnFenced != nil {
		m.opts.OnFenced(err)
	}
}

// open returns copies of the links whose ledgers are not closed.
func (ls links) open() links {
	var out links
	for i := range ls {
		if !ls[i].closed {
			out = append(out, ls[i])
		}
	}
	return out
}

// learn fills in what a closed ledger holds from its record and its last
// entries.
func (m *ManagedLedger) learn(ctx context.Context, l *link, md ledger.Metadata) error {
	l.entries, l.bytes = int64(md.LastEntry)+1, md.Length
	l.messages, l.lastTime = 0, l.firstTime
	r, err := m.opts.Ledgers.Open(ctx, l.ledger)
	if err != nil {
		return fmt.Errorf("open ledger %d to learn its end: %w", l.ledger, err)
	}
	// The last entry has the last broker time. It has the last index too, unless it
	// is of a kind that has none; then one before it does.
	step := ledger.EntryID(1)
	for last := md.LastEntry; last >= 0; last, step = last-step, 64 {
		first := max(0, last-step+1)
		heads, err := readHeads(ctx, r, first, last)
		if err != nil {
			return err
		}
		for i := len(heads) - 1; i >= 0; i-- {
			h := heads[i]
			l.lastTime = max(l.lastTime, h.Time)
			if h.Kind == entryv1.Kind_KIND_HALF || h.Kind == entryv1.Kind_KIND_RESOLVE {
				continue
			}
			if h.Index+1 < l.firstIndex {
				return fmt.Errorf("entry %d of ledger %d has index %d, the ledger starts at %d: %w",
					first+ledger.EntryID(i), l.ledger, h.Index, l.firstIndex, ledger.ErrCorrupt)
			}
			l.messages = h.Index + 1 - l.firstIndex
			return nil
		}
	}
	return nil
}

// head is what the first bytes of an entry tell.
type head struct {
	entry.BrokerPart
	totalBytes int64 // bodies of this and all entries before it in the ledger
}

// readHeads reads the heads of all entries from first to last.
func readHeads(ctx context.Context, r *ensemble.Reader, first, last ledger.EntryID) ([]head, error) {
	var out []head
	for first <= last {
		es, err := r.Read(ctx, first, last, 0, headBytes)
		if err != nil {
			return nil, fmt.Errorf("read heads of ledger %d from entry %d: %w", r.ID(), first, err)
		}
		for _, e := range es {
			b, _, err := entry.ParseBody(e.Body)
			if err != nil && len(e.Body) == headBytes { // a broker part longer than most
				var whole []ledger.Entry
				if whole, err = r.Read(ctx, e.Envelope.Entry, e.Envelope.Entry, 0, 0); err == nil {
					b, _, err = entry.ParseBody(whole[0].Body)
				}
			}
			if err != nil {
				return nil, fmt.Errorf("entry %d of ledger %d: %w", e.Envelope.Entry, r.ID(), err)
			}
			out = append(out, head{BrokerPart: b, totalBytes: e.Envelope.TotalBytes})
		}
		first += ledger.EntryID(len(es))
	}
	return out, nil
}
