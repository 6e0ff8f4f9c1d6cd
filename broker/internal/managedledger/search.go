package managedledger

import (
	"context"
	"fmt"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

// SeekTime returns the first position whose entry has a broker time of at least
// t; when there is none, where the next entry will stand. It searches the links,
// then reads a few heads of one ledger.
func (m *ManagedLedger) SeekTime(ctx context.Context, t time.Time) (position.Position, error) {
	for {
		p, err := m.seekTime(ctx, t.UnixMilli())
		if err == nil {
			return p, nil
		}
		if !m.trimmedAway(ctx, p, err) {
			return position.Position{}, fmt.Errorf("search for %v: %w", t, err)
		}
	}
}

// seekTime is one try of SeekTime; with an error the position is that of the entry
// whose head could not be read.
func (m *ManagedLedger) seekTime(ctx context.Context, ms int64) (position.Position, error) {
	ls := m.snapshot()
	for i := ls.atTime(ms); i < len(ls); i++ {
		l := &ls[i]
		low, high := ledger.EntryID(0), ledger.EntryID(l.readable())
		for low < high { // entries before low are too early, those from high on are not
			mid := position.Position{Ledger: l.ledger, Entry: low + (high-low)/2}
			h, err := m.head(ctx, mid, false)
			if err != nil {
				return mid, err
			}
			if h.Time < ms {
				low = mid.Entry + 1
			} else {
				high = mid.Entry
			}
		}
		if low < ledger.EntryID(l.readable()) {
			return position.Position{Ledger: l.ledger, Entry: low}, nil
		}
	}
	return ls.next(), nil
}

// IndexAt returns the index of the last message at or before position p, which
// is in the chain, and whether there is one.
func (m *ManagedLedger) IndexAt(ctx context.Context, p position.Position) (index uint64, ok bool, err error) {
	before, err := m.messagesBefore(ctx, m.snapshot(), p.Next())
	return before - 1, before > 0, err
}

// Measure is Between, exact: for each end that falls inside a ledger it reads the
// head of one entry.
func (m *ManagedLedger) Measure(ctx context.Context, from, to position.Position) (Extent, error) {
	ls := m.snapshot()
	from, err := ls.normalize(from)
	if err != nil {
		return Extent{}, err
	}
	if to, err = ls.normalize(to); err != nil {
		return Extent{}, err
	}
	if !from.Before(to) {
		return Extent{}, nil
	}
	var messages [2]uint64
	var bytes [2]int64
	for i, p := range []position.Position{from, to} {
		if messages[i], err = m.messagesBefore(ctx, ls, p); err != nil {
			return Extent{}, err
		}
		if bytes[i], err = m.bytesBefore(ctx, ls, p); err != nil {
			return Extent{}, err
		}
	}
	return Extent{
		Entries:  ls.between(from, to).Entries,
		Bytes:    bytes[1] - bytes[0],
		Messages: int64(messages[1] - messages[0]),
	}, nil
}

// snapshot copies the chain as it is now.
func (m *ManagedLedger) snapshot() links {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return append(links(nil), m.links...)
}

// messagesBefore counts the messages of the topic, from its very beginning,
// before read position p.
func (m *ManagedLedger) messagesBefore(ctx context.Context, ls links, p position.Position) (uint64, error) {
	i := ls.find(p.Ledger)
	switch {
	case len(ls) == 0:
		return 0, nil
	case i == len(ls):
		return ls[i-1].nextIndex(), nil
	case ls[i].ledger != p.Ledger:
		return ls[i].firstIndex, nil
	case p.Entry >= ls[i].end():
		return ls[i].nextIndex(), nil
	}
	l := &ls[i]
	for e := p.Entry - 1; e >= 0; e-- {
		h, err := m.head(ctx, position.Position{Ledger: l.ledger, Entry: e}, false)
		if err != nil {
			return 0, fmt.Errorf("count messages before %v: %w", p, err)
		}
		if h.Kind != entryv1.Kind_KIND_HALF && h.Kind != entryv1.Kind_KIND_RESOLVE {
			return h.Index + 1, nil
		}
	}
	return l.firstIndex, nil
}

// bytesBefore counts the bytes of bodies that can be read before p.
func (m *ManagedLedger) bytesBefore(ctx context.Context, ls links, p position.Position) (int64, error) {
	whole := ls.between(position.Start, position.BeforeLedger(p.Ledger)).Bytes
	i := ls.find(p.Ledger)
	if i == len(ls) || ls[i].ledger != p.Ledger || ls[i].trimmed || p.Entry <= 0 {
		return whole, nil
	}
	if p.Entry >= ls[i].end() {
		return whole + ls[i].bytes, nil
	}
	h, err := m.head(ctx, position.Position{Ledger: p.Ledger, Entry: p.Entry - 1}, true)
	if err != nil {
		return 0, fmt.Errorf("count bytes before %v: %w", p, err)
	}
	return whole + h.totalBytes, nil
}
