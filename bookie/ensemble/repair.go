package ensemble

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

const (
	maxRepairs      = 4 // under way at once in a client
	maxRepairWait   = 30 * time.Second
	repairReadBytes = 1 << 20 // of one step
)

// planRepairLocked sets the time of the next attempt to copy what the short list
// names (A9), or starts it when that time has come.
func (w *Writer) planRepairLocked(now time.Duration) {
	if w.repairing || w.core.failed != nil {
		return
	}
	if w.core.short.empty() {
		w.repairAt, w.repairWait = 0, 0
		return
	}
	if w.repairAt == 0 {
		w.repairWait = min(max(2*w.repairWait, w.c.opts.RepairAfter), max(maxRepairWait, w.c.opts.RepairAfter))
		w.repairAt = now + w.repairWait
	}
	if now >= w.repairAt && w.c.background(w.repair) {
		w.repairing, w.repairAt = true, 0
	}
}

// repair tries once to bring every entry of the short list to the bookie that
// lacks it. It uses ordinary adds, so that a fence stops it.
func (w *Writer) repair() {
	select {
	case w.c.repairs <- struct{}{}:
		w.repairAll()
		<-w.c.repairs
	case <-w.ctx.Done():
	}
	now := w.c.now()
	w.mu.Lock()
	w.repairing = false
	w.settleLocked(now)
	w.runUnlock(true)
}

func (w *Writer) repairAll() {
	w.mu.Lock()
	runs := slices.Clone(w.core.short.runs)
	w.mu.Unlock()
	for _, run := range runs {
		for first := run.first; first <= run.last; {
			last, err := w.copyRun(run, first)
			if err != nil {
				w.c.log.Debug("copies are still missing", "ledger", w.id, "bookie", run.member, "first", first, "last", run.last, "error", err)
				break
			}
			first = last + 1
		}
	}
}

// copyRun copies entries of a run from first on, and returns the last it copied.
func (w *Writer) copyRun(run shortRun, first ledger.EntryID) (last ledger.EntryID, err error) {
	ctx, cancel := context.WithTimeout(w.ctx, 5*w.c.opts.AddTimeout)
	defer cancel()
	ref := w.c.ref(run.member)
	b, err := ref.bookie()
	if err != nil {
		return 0, err
	}
	entries, err := w.Reader().readOthers(ctx, run.member, first, run.last)
	if err != nil {
		return 0, err
	}
	answers := make(chan error, len(entries))
	for _, e := range entries {
		b.Add(ledger.Add{Envelope: e.Envelope, Body: e.Body, Create: run.create}, func(err error) { answers <- err })
	}
	for range entries {
		select {
		case err := <-answers:
			if err != nil {
				if judge(err) != shutOut {
					ref.noteFailure(w.c.now())
				}
				return 0, fmt.Errorf("copy entries of ledger %d to %v: %w", w.id, run.member, err)
			}
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	last = first + ledger.EntryID(len(entries)) - 1
	w.mu.Lock()
	w.core.short.confirm(run.member, first, last)
	w.mu.Unlock()
	w.c.met.copied(len(entries))
	return last, nil
}

// readOthers reads a run of entries from the bookies of their fragment other
// than the one that lacks them.
func (r *Reader) readOthers(ctx context.Context, lacks ledger.Member, first, last ledger.EntryID) ([]ledger.Entry, error) {
	md, lac := r.view()
	i := md.FragmentOf(first)
	f := ledger.Fragment{First: md.Fragments[i].First, Ensemble: slices.Clone(md.Fragments[i].Ensemble)}
	if s := slices.Index(f.Ensemble, lacks); s >= 0 {
		f.Ensemble[s] = ledger.Member{}
	}
	if f.Live() == 0 {
		return nil, fmt.Errorf("entry %d of ledger %d has no other bookie: %w", first, r.id, ledger.ErrUnknown)
	}
	return r.readFragment(ctx, &f, ledger.ReadRequest{
		Ledger: r.id, First: first, Last: min(last, lac, md.End(i, lac+1)-1), MaxBytes: repairReadBytes,
	})
}
