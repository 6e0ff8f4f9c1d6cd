package managedledger

import (
	"context"
	"errors"
	"fmt"
	"math"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/internal/entry"
)

// Entry is an entry of the topic. Body is never altered by anyone.
type Entry struct {
	Position position.Position
	Body     []byte
}

// Read returns entries from the read position from on, in order: as many as are
// there, up to maxEntries and maxBytes of bodies, though at least one. None means
// that from is the end for now; Notify tells when that changes. A position in
// what was trimmed reads on after it.
//
// Entries come from the cache as long as they are there, else from one request to
// a bookie; so the run may be shorter than asked. ErrBeyondEnd: from is after the
// end.
func (m *ManagedLedger) Read(ctx context.Context, from position.Position, maxEntries int, maxBytes int64) ([]Entry, error) {
	if maxBytes <= 0 {
		maxBytes = math.MaxInt32
	}
	var out []Entry
	for {
		first, last, more, err := m.run(from)
		if err != nil || !more {
			return out, err
		}
		before := len(out)
		out = m.opts.Cache.Run(out, first, last, maxEntries, maxBytes)
		for _, e := range out[before:] {
			maxBytes -= int64(len(e.Body))
		}
		got := len(out) - before
		m.opts.Metrics.cacheHits.Add(float64(got))
		maxEntries -= got
		if got > 0 {
			from = out[len(out)-1].Position.Next()
			if maxEntries <= 0 || maxBytes <= 0 {
				return out, nil
			}
			continue
		}
		if len(out) > 0 {
			return out, nil // what is here goes out before anyone waits for the rest
		}
		out, err = m.fetch(ctx, first, last, maxEntries, maxBytes, 0)
		if err == nil || !m.trimmedAway(ctx, first, err) {
			return out, err
		}
	}
}

// ReadHeads is Read for the first n bytes of each entry, straight from the
// bookies: what replaying headers needs. Checksums of bodies cannot be checked.
func (m *ManagedLedger) ReadHeads(ctx context.Context, from position.Position, maxEntries, n int) ([]Entry, error) {
	for {
		first, last, more, err := m.run(from)
		if err != nil || !more {
			return nil, err
		}
		out, err := m.fetch(ctx, first, last, maxEntries, math.MaxInt32, n)
		if err == nil || !m.trimmedAway(ctx, first, err) {
			return out, err
		}
	}
}

// run returns the run of readable entries of one ledger that starts at the read
// position from; more is false when there is none yet.
func (m *ManagedLedger) run(from position.Position) (first, last position.Position, more bool, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	first, err = m.links.normalize(from)
	if err != nil || first.IsStart() {
		return first, first, false, err
	}
	i := m.links.find(first.Ledger)
	if i == len(m.links) || m.links[i].ledger != first.Ledger || first.Entry >= ledger.EntryID(m.links[i].readable()) {
		return first, first, false, nil
	}
	return first, position.Position{Ledger: first.Ledger, Entry: m.links[i].end() - 1}, true, nil
}

// fetch reads from a bookie, in one request.
func (m *ManagedLedger) fetch(ctx context.Context, first, last position.Position, maxEntries int, maxBytes int64, heads int) ([]Entry, error) {
	r, err := m.reader(ctx, first.Ledger)
	if err != nil {
		return nil, fmt.Errorf("read from %v: %w", first, err)
	}
	end := min(last.Entry, first.Entry+ledger.EntryID(max(1, maxEntries))-1)
	es, err := r.Read(ctx, first.Entry, end, int(min(maxBytes, math.MaxInt32)), heads)
	if err != nil {
		return nil, fmt.Errorf("read from %v: %w", first, err)
	}
	m.opts.Metrics.cacheMisses.Add(float64(len(es)))
	out := make([]Entry, len(es))
	for i, e := range es {
		out[i] = Entry{Position: position.Position{Ledger: first.Ledger, Entry: e.Envelope.Entry}, Body: e.Body}
		m.opts.Metrics.readBytes.Add(float64(len(e.Body)))
		if heads == 0 {
			m.opts.Cache.Put(out[i].Position, e.Body)
		}
	}
	return out, nil
}

// trimmedAway reports whether a read from p failed because p was trimmed
// meanwhile. The chain may not show that here: a trim of unknown outcome, or one
// that an earlier ManagedLedger of the same owner made, may have arrived late. So
// where the chain does not explain the error it is read again.
func (m *ManagedLedger) trimmedAway(ctx context.Context, p position.Position, err error) bool {
	if !errors.Is(err, ledger.ErrNoLedger) && !errors.Is(err, ledger.ErrDeleted) && !errors.Is(err, ledger.ErrNoEntry) {
		return false
	}
	return m.movesUp(p) || m.record.reread(ctx) == nil && m.movesUp(p)
}

// movesUp reports whether the entry at p is not in the chain any more.
func (m *ManagedLedger) movesUp(p position.Position) bool {
	now, err := m.Normalize(p)
	return err == nil && now != p
}

// reader returns the reader of a ledger of the chain; the one of a ledger that
// was written here sees what its writer confirmed.
func (m *ManagedLedger) reader(ctx context.Context, id ledger.ID) (*ensemble.Reader, error) {
	m.mu.RLock()
	r := m.readers[id]
	m.mu.RUnlock()
	if r != nil {
		return r, nil
	}
	r, err := m.opts.Ledgers.Open(ctx, id)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if i := m.links.find(id); i < len(m.links) && m.links[i].ledger == id {
		m.readers[id] = r
	}
	return r, nil
}

// head returns the head of one entry, from the cache if it is there. Only one
// read from a bookie knows totalBytes.
func (m *ManagedLedger) head(ctx context.Context, p position.Position, exact bool) (head, error) {
	if !exact {
		if hit := m.opts.Cache.Run(nil, p, p, 1, math.MaxInt64); len(hit) == 1 {
			b, _, err := entry.ParseBody(hit[0].Body)
			return head{BrokerPart: b}, err
		}
	}
	r, err := m.reader(ctx, p.Ledger)
	if err != nil {
		return head{}, fmt.Errorf("read head of %v: %w", p, err)
	}
	hs, err := readHeads(ctx, r, p.Entry, p.Entry)
	if err != nil {
		return head{}, err
	}
	return hs[0], nil
}
