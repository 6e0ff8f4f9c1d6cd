package ensemble

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Reader reads entries of one ledger, checks them, and asks another bookie when
// one fails. It never fences. Safe for concurrent use; it holds nothing that
// must be closed.
type Reader struct {
	c  *Client
	id ledger.ID
	w  *Writer // whose ledger it is, in this process; nil: none

	mu        sync.Mutex // guards what follows, which is unused when w is set
	md        ledger.Metadata
	lac       ledger.EntryID // never falls
	refreshed time.Duration
}

// Open returns a reader of a ledger in any state but deleted. Of a ledger that
// is not closed it reads what it knows to be acknowledged; Poll asks for news.
// ErrNoLedger, ErrDeleted: there is none.
func (c *Client) Open(ctx context.Context, id ledger.ID) (*Reader, error) {
	r := &Reader{c: c, id: id, lac: ledger.NoEntry}
	if _, err := r.refresh(ctx); err != nil {
		return nil, fmt.Errorf("open ledger %d: %w", id, err)
	}
	return r, nil
}

// Reader reads the ledger while it is written, up to this writer's LAC.
func (w *Writer) Reader() *Reader { return &Reader{c: w.c, id: w.id, w: w} }

// ID of the ledger.
func (r *Reader) ID() ledger.ID { return r.id }

// Metadata is the ledger's record as last read.
func (r *Reader) Metadata() ledger.Metadata {
	md, _ := r.view()
	return md.Clone()
}

// LAC is the highest entry known to be acknowledged; the last entry once the
// ledger is known to be closed.
func (r *Reader) LAC() ledger.EntryID {
	_, lac := r.view()
	return lac
}

// view returns the record, whose slices are not to be altered, and the LAC.
func (r *Reader) view() (ledger.Metadata, ledger.EntryID) {
	if r.w != nil {
		r.w.mu.Lock()
		defer r.w.mu.Unlock()
		return r.w.core.md, r.w.core.lac
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.md, r.lac
}

// refresh reads the record again and reports whether its fragments changed.
func (r *Reader) refresh(ctx context.Context) (changed bool, err error) {
	md, _, err := r.c.Metadata(ctx, r.id)
	if err == nil && md.State == ledger.Deleted {
		err = fmt.Errorf("ledger %d: %w", r.id, ledger.ErrDeleted)
	}
	if err != nil {
		return false, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	changed = !sameFragments(&r.md, &md)
	r.md, r.refreshed = md, r.c.now()
	if md.State == ledger.Closed {
		r.lac = md.LastEntry
	}
	return changed, nil
}

func sameFragments(a, b *ledger.Metadata) bool {
	if len(a.Fragments) != len(b.Fragments) {
		return false
	}
	for i := range a.Fragments {
		if !ledger.SameFragment(&a.Fragments[i], &b.Fragments[i]) {
			return false
		}
	}
	return true
}

// learn takes a LAC that a bookie told. It is what some writer had acknowledged,
// so it is true for ever; it says nothing new about a closed ledger (R13).
func (r *Reader) learn(lac ledger.EntryID) {
	if r.w != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.md.State != ledger.Closed {
		r.lac = max(r.lac, lac)
	}
}

// Read returns entries from first on, at least one, at most up to last. The run
// may end early: at maxBytes of bodies (0: the bookie's limit), at the LAC, or at
// the end of a fragment. With headBytes above 0 each body is cut to so many
// bytes, and its checksum cannot be checked.
//
// ErrBeyondLAC: first is beyond what is known to be acknowledged. An entry that
// no bookie gives is an error, never the end of the ledger (D1): ErrCorrupt when
// all say that they lack it, ErrUnknown when some could not say.
func (r *Reader) Read(ctx context.Context, first, last ledger.EntryID, maxBytes, headBytes int) ([]ledger.Entry, error) {
	if first < 0 || last < first {
		return nil, fmt.Errorf("read entries %d to %d of ledger %d: no such range", first, last, r.id)
	}
	for again := false; ; again = true {
		md, lac := r.view()
		if first > lac {
			return nil, fmt.Errorf("read entry %d of ledger %d, LAC %d: %w", first, r.id, lac, ledger.ErrBeyondLAC)
		}
		i := md.FragmentOf(first)
		req := ledger.ReadRequest{
			Ledger: r.id, First: first, Last: min(last, lac, md.End(i, lac+1)-1), MaxBytes: maxBytes, HeadBytes: headBytes,
		}
		entries, err := r.readFragment(ctx, &md.Fragments[i], req)
		if err == nil || again || ctx.Err() != nil {
			return entries, err
		}
		// Repair may have moved the fragment to other bookies (D6).
		changed, metaErr := r.refreshFragments(ctx, &md)
		if metaErr != nil {
			return nil, errors.Join(err, metaErr)
		}
		if !changed {
			return nil, err
		}
	}
}

// refreshFragments reports whether the fragments differ from those in seen. A
// reader beside a writer sees the changes of the writer only.
func (r *Reader) refreshFragments(ctx context.Context, seen *ledger.Metadata) (bool, error) {
	if r.w == nil {
		return r.refresh(ctx)
	}
	md, _ := r.view()
	return !sameFragments(&md, seen), nil
}

// pollRefresh is how often Poll reads the record when the LAC stands still.
const pollRefresh = time.Second

// Poll asks for news of an open ledger: it returns the LAC, which never falls,
// and whether the ledger is known to be closed, which makes that its last entry.
// It never fences.
func (r *Reader) Poll(ctx context.Context) (lac ledger.EntryID, closed bool, err error) {
	md, before := r.view()
	if r.w != nil || md.State == ledger.Closed {
		return before, md.State == ledger.Closed, nil
	}
	fenced, pollErr := r.pollBookies(ctx, md.Last())
	r.mu.Lock()
	stale := r.lac == before && r.c.now()-r.refreshed >= pollRefresh
	r.mu.Unlock()
	if fenced || stale || pollErr != nil {
		if _, err := r.refresh(ctx); err != nil {
			return before, false, errors.Join(pollErr, err)
		}
		pollErr = nil
	}
	md, lac = r.view()
	return lac, md.State == ledger.Closed, pollErr
}

// pollBookies asks the bookies of a fragment for their LAC until most of them
// have answered. Any LAC is true, so fewer make it late, not wrong.
func (r *Reader) pollBookies(ctx context.Context, f *ledger.Fragment) (fenced bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.c.opts.AddTimeout)
	defer cancel()
	type answer struct {
		info ledger.Info
		err  error
	}
	answers := make(chan answer, len(f.Ensemble))
	asked := 0
	for _, m := range f.Ensemble {
		if m.Vacant() {
			continue
		}
		ref := r.c.ref(m)
		if r.c.background(func() {
			b, err := ref.bookie()
			if err != nil {
				answers <- answer{err: err}
				return
			}
			info, err := b.Info(ctx, r.id)
			answers <- answer{info, err}
		}) {
			asked++
		}
	}
	heard := 0
	for range asked {
		select {
		case a := <-answers:
			switch {
			case errors.Is(a.err, ledger.ErrNoLedger): // it has got no entry yet
				heard++
			case a.err != nil:
				err = a.err
			default:
				heard++
				fenced = fenced || a.info.Term > 0
				r.learn(a.info.LAC)
			}
		case <-ctx.Done():
			return fenced, context.Cause(ctx)
		}
		if heard > f.Live()/2 {
			return fenced, nil
		}
	}
	if heard > 0 {
		return fenced, nil
	}
	return fenced, fmt.Errorf("ask for the LAC of ledger %d: %w", r.id, errors.Join(err, ledger.ErrUnknown))
}
