package broker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

const (
	// verifyReadBytes bounds one read of a copy while it is verified.
	verifyReadBytes = 1 << 20
	// maxReadLedgerEntries bounds one ReadLedger.
	maxReadLedgerEntries = 1000
	maxReadLedgerBytes   = 4 << 20
	// verifyTellEvery is how often a verification tells how far it is.
	verifyTellEvery = time.Second
)

// ledgerAdmin serves LedgerAdmin: it reads ledgers on the bookies, whoever
// owns them, and never fences.
type ledgerAdmin struct {
	adminv1.UnimplementedLedgerAdminServer
	ledgers   *ensemble.Client
	directory ensemble.Directory
}

// ReadLedger implements LedgerAdmin.
func (a *ledgerAdmin) ReadLedger(ctx context.Context, req *adminv1.ReadLedgerRequest) (*adminv1.ReadLedgerResponse, error) {
	if req.GetLedger() < 1 || req.GetFirstEntry() < 0 {
		return nil, fmt.Errorf("entry %d of ledger %d: want a ledger above 0 and an entry of at least 0: %w",
			req.GetFirstEntry(), req.GetLedger(), rpcerr.ErrInvalid)
	}
	reader, err := a.ledgers.Open(ctx, ledger.ID(req.GetLedger()))
	if err != nil {
		return nil, err
	}
	end, _, err := reader.Poll(ctx)
	if err != nil {
		return nil, err
	}
	resp := adminv1.ReadLedgerResponse_builder{LastEntry: new(int64(end))}.Build()
	first := ledger.EntryID(req.GetFirstEntry())
	count := min(max(req.GetEntries(), 1), maxReadLedgerEntries)
	last := min(first+ledger.EntryID(count)-1, end)
	if first > last {
		return resp, nil
	}
	entries, err := reader.Read(ctx, first, last, maxReadLedgerBytes, 0)
	if err != nil {
		return nil, err
	}
	var out []*adminv1.LedgerEntry
	for _, e := range entries {
		out = append(out, adminv1.LedgerEntry_builder{
			Entry:            new(int64(e.Envelope.Entry)),
			LastAddConfirmed: new(int64(e.Envelope.LAC)),
			Body:             e.Body,
		}.Build())
	}
	resp.SetEntries(out)
	return resp, nil
}

// VerifyLedger implements LedgerAdmin: it reads every copy that the record
// names, entry by entry, and checks checksums and identity.
func (a *ledgerAdmin) VerifyLedger(req *adminv1.VerifyLedgerRequest, stream grpc.ServerStreamingServer[adminv1.VerifyLedgerResponse]) error {
	ctx, id := stream.Context(), ledger.ID(req.GetLedger())
	md, _, err := a.ledgers.Metadata(ctx, id)
	if err != nil {
		return err
	}
	end := md.LastEntry
	if md.State != ledger.Closed {
		reader, err := a.ledgers.Open(ctx, id)
		if err != nil {
			return err
		}
		if end, _, err = reader.Poll(ctx); err != nil {
			return err
		}
	}
	v := verification{good: make([]uint8, end+1), copies: map[string]*copyReport{}, tell: stream.Send}
	eachCopy(md, end, func(_ ledger.Member, first, last ledger.EntryID) { v.toCheck += int64(last - first + 1) })
	eachCopy(md, end, func(m ledger.Member, first, last ledger.EntryID) { v.readCopy(ctx, a.directory, id, m, first, last) })
	if err := ctx.Err(); err != nil {
		return err // half a report would look like damage
	}
	return stream.Send(v.response(md, end))
}

// eachCopy calls f for every run of entries up to end that a bookie has to have.
func eachCopy(md ledger.Metadata, end ledger.EntryID, f func(m ledger.Member, first, last ledger.EntryID)) {
	for i, fragment := range md.Fragments {
		last := end
		if i+1 < len(md.Fragments) {
			last = md.Fragments[i+1].First - 1
		}
		for _, m := range fragment.Ensemble {
			if !m.Vacant() && fragment.First <= last {
				f(m, fragment.First, last)
			}
		}
	}
}

// verification collects what the copies of one ledger hold.
type verification struct {
	good   []uint8 // per entry, how many good copies there are
	order  []string
	copies map[string]*copyReport

	checked, toCheck int64     // copies of entries
	told             time.Time // when that was last told
	tell             func(*adminv1.VerifyLedgerResponse) error
}

// progress counts copies that were looked at, and tells of it now and then.
func (v *verification) progress(n int64) {
	v.checked += n
	if time.Since(v.told) < verifyTellEvery {
		return
	}
	v.told = time.Now()
	// Who asked is gone when this fails, and with them the context.
	_ = v.tell(adminv1.VerifyLedgerResponse_builder{Checked: &v.checked, ToCheck: &v.toCheck}.Build())
}

type copyReport struct {
	entries, missing, corrupt, unknown int64
	problem                            string
}

// readCopy reads entries first to last on one member of an ensemble.
func (v *verification) readCopy(ctx context.Context, directory ensemble.Directory, id ledger.ID, m ledger.Member, first, last ledger.EntryID) {
	r := v.copies[m.Bookie]
	if r == nil {
		r = &copyReport{}
		v.copies[m.Bookie] = r
		v.order = append(v.order, m.Bookie)
	}
	node, err := directory.Bookie(m)
	if err != nil {
		r.unknown += int64(last - first + 1)
		r.problem = err.Error()
		v.progress(int64(last - first + 1))
		return
	}
	for next := first; next <= last; {
		reply, err := node.Read(ctx, ledger.ReadRequest{Ledger: id, First: next, Last: last, MaxBytes: verifyReadBytes})
		if err != nil || len(reply.Entries) == 0 {
			if errors.Is(err, ledger.ErrNoLedger) || errors.Is(err, ledger.ErrNoEntry) {
				r.missing += int64(last - next + 1)
			} else {
				r.unknown += int64(last - next + 1)
			}
			if err != nil {
				r.problem = err.Error()
			}
			v.progress(int64(last - next + 1))
			return
		}
		for i, e := range reply.Entries {
			entryID := next + ledger.EntryID(i)
			switch e.Status {
			case ledger.Absent:
				r.missing++
			case ledger.Unknown:
				r.unknown++
			case ledger.Found:
				if err := e.Entry.Check(id, entryID); err != nil {
					r.corrupt++
					r.problem = err.Error()
					continue
				}
				r.entries++
				v.good[entryID]++
			}
		}
		next += ledger.EntryID(len(reply.Entries))
		v.progress(int64(len(reply.Entries)))
	}
}

func (v *verification) response(md ledger.Metadata, end ledger.EntryID) *adminv1.VerifyLedgerResponse {
	resp := adminv1.VerifyLedgerResponse_builder{
		Ledger: new(int64(md.ID)), State: new(md.State.String()), Entries: new(int64(end + 1)),
		Checked: &v.checked, ToCheck: &v.toCheck,
	}.Build()
	var copies []*adminv1.CopyReport
	for _, name := range v.order {
		r := v.copies[name]
		copies = append(copies, adminv1.CopyReport_builder{
			Bookie: new(name), Entries: &r.entries, Missing: &r.missing, Corrupt: &r.corrupt, Unknown: &r.unknown, Problem: &r.problem,
		}.Build())
	}
	resp.SetCopies(copies)
	var short, lost int64
	for _, n := range v.good {
		if int(n) < md.Quorum.Write {
			short++
		}
		if n == 0 {
			lost++
		}
	}
	resp.SetShortEntries(short)
	resp.SetLostEntries(lost)
	return resp
}
