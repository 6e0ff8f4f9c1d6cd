package ensemble

import (
	"sync/atomic"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// addCall is one add on its way to one bookie. It is used again once both its
// sender and its answer are through with it, so that an add costs no allocation.
type addCall struct {
	w     *Writer
	ref   *bookieRef
	slot  int
	gen   uint32
	entry ledger.EntryID
	bytes int64
	// left counts who still uses it: the sender, until Add returned, and the
	// answer.
	left atomic.Int32
	fn   func(error) // answer, bound once
}

func newAddCall() *addCall {
	a := &addCall{}
	a.fn = a.answer
	return a
}

// dispatch sends one entry. Called without locks.
func (w *Writer) dispatch(s *send, ref *bookieRef) {
	a := w.c.calls.Get().(*addCall)
	a.w, a.ref, a.slot, a.gen, a.entry = w, ref, s.slot, s.gen, s.add.Envelope.Entry
	a.bytes = int64(len(s.add.Body))
	a.left.Store(2)
	ref.bytes.Add(a.bytes)
	if b, err := ref.bookie(); err != nil {
		a.answer(err)
	} else {
		b.Add(s.add, a.fn)
	}
	if a.left.Add(-1) == 0 {
		w.c.putCall(a)
	}
}

// answer takes the bookie's answer, on whatever goroutine it comes.
func (a *addCall) answer(err error) {
	w, ref, slot, gen, entry := a.w, a.ref, a.slot, a.gen, a.entry
	ref.bytes.Add(-a.bytes)
	inAdd := a.left.Add(-1) == 1 // the sender is not back: perhaps it is this very goroutine
	if !inAdd {
		w.c.putCall(a)
	}
	if v := judge(err); v == refused || v == uncertain {
		ref.noteFailure(w.c.now())
	}
	w.answered(slot, gen, entry, err, !inAdd)
}

// putCall keeps a call nobody uses any more.
func (c *Client) putCall(a *addCall) {
	a.w, a.ref = nil, nil
	c.calls.Put(a)
}
