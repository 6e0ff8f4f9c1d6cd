package remote

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// Bookie is the client of one incarnation of one bookie. Safe for concurrent use.
type Bookie struct {
	opts Options

	data, control *link

	closing  sync.Once
	closeErr error
}

var _ ensemble.Bookie = (*Bookie)(nil)

// link is one connection and what runs over it.
type link struct {
	conn   *grpc.ClientConn
	client bookiev1.BookieClient
	adds   *adds
}

// New returns a client. Nothing is dialled before the first call.
func New(opts Options) (*Bookie, error) {
	if err := opts.Validate(); err != nil {
		return nil, err
	}
	b := &Bookie{opts: opts.withDefaults()}
	b.opts.Log = b.opts.Log.Named("bookie-client").With("bookie", opts.Member.Bookie, "address", opts.Address)
	var err error
	if b.data, err = b.link(); err != nil {
		return nil, err
	}
	if b.control, err = b.link(); err != nil {
		return nil, errors.Join(err, b.data.conn.Close())
	}
	return b, nil
}

func (b *Bookie) link() (*link, error) {
	dial := b.opts.Dial
	if dial == nil {
		dial = func(ctx context.Context, address string) (net.Conn, error) {
			network := "tcp"
			if path, ok := strings.CutPrefix(address, "unix:"); ok {
				network, address = "unix", path
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
	}
	conn, err := grpc.NewClient("passthrough:///"+b.opts.Address, rpc.DialOptions(rpc.BookieLink,
		grpc.WithTransportCredentials(b.opts.Credentials),
		grpc.WithContextDialer(dial),
	)...)
	if err != nil {
		return nil, fmt.Errorf("remote: bookie %s at %s: %w", b.opts.Member.Bookie, b.opts.Address, err)
	}
	client := bookiev1.NewBookieClient(conn)
	return &link{conn: conn, client: client, adds: newAdds(&b.opts, client)}, nil
}

// Close ends all streams and connections; adds that wait have an unknown outcome.
func (b *Bookie) Close() error {
	b.closing.Do(func() {
		for _, l := range []*link{b.data, b.control} {
			l.adds.close()
			b.closeErr = errors.Join(b.closeErr, l.conn.Close())
		}
	})
	return b.closeErr
}

// Member is whose client this is.
func (b *Bookie) Member() ledger.Member { return b.opts.Member }

// Add sends one entry; see ensemble.Bookie. Recovery adds go with the fences.
func (b *Bookie) Add(a ledger.Add, done func(error)) {
	if a.RecoveryTerm > 0 {
		b.control.adds.add(a, done)
		return
	}
	b.data.adds.add(a, done)
}

// Fence shuts writers below term out; see ensemble.Bookie.
func (b *Bookie) Fence(ctx context.Context, id ledger.ID, term int64) (ledger.FenceReply, error) {
	response, err := b.control.client.Fence(ctx, bookiev1.FenceRequest_builder{
		Incarnation: new(b.opts.Member.Incarnation),
		Ledger:      new(int64(id)),
		Term:        new(term),
	}.Build())
	if err != nil {
		return ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}, b.callError("fence", err)
	}
	reply := ledger.FenceReply{
		LastEntry: ledger.EntryID(response.GetLastEntry()),
		LAC:       ledger.EntryID(response.GetLastAddConfirmed()),
	}
	return reply, b.answer("fence", response.GetStatus(), response.GetMessage())
}

// Info returns what the bookie knows of a ledger; see ensemble.Bookie.
func (b *Bookie) Info(ctx context.Context, id ledger.ID) (ledger.Info, error) {
	response, err := b.data.client.LedgerInfo(ctx, bookiev1.LedgerInfoRequest_builder{
		Incarnation: new(b.opts.Member.Incarnation),
		Ledger:      new(int64(id)),
	}.Build())
	if err != nil {
		return ledger.Info{}, b.callError("info", err)
	}
	if err := b.answer("info", response.GetStatus(), response.GetMessage()); err != nil {
		return ledger.Info{}, err
	}
	info := ledger.Info{
		LAC:   ledger.EntryID(response.GetLastAddConfirmed()),
		Term:  response.GetTerm(),
		Limbo: response.GetLimbo(),
	}
	for _, r := range response.GetRanges() {
		info.Ranges = append(info.Ranges, ledger.EntryRange{First: ledger.EntryID(r.GetFirstEntry()), Last: ledger.EntryID(r.GetLastEntry())})
	}
	return info, nil
}

// List returns ids of ledgers; see ensemble.Bookie.
func (b *Bookie) List(ctx context.Context, after ledger.ID, limit int) (ids []ledger.ID, more bool, err error) {
	response, err := b.data.client.ListLedgers(ctx, bookiev1.ListLedgersRequest_builder{
		Incarnation: new(b.opts.Member.Incarnation),
		After:       new(int64(after)),
		Limit:       new(uint32(max(limit, 0))),
	}.Build())
	if err != nil {
		return nil, false, b.callError("list ledgers", err)
	}
	if err := b.answer("list ledgers", response.GetStatus(), response.GetMessage()); err != nil {
		return nil, false, err
	}
	for _, id := range response.GetLedgers() {
		ids = append(ids, ledger.ID(id))
	}
	return ids, response.GetMore(), nil
}

// Describe returns what the bookie says of itself, whatever its incarnation.
func (b *Bookie) Describe(ctx context.Context) (ledger.Description, error) {
	response, err := b.data.client.Describe(ctx, &bookiev1.DescribeRequest{})
	if err != nil {
		return ledger.Description{}, b.callError("describe", err)
	}
	return ledger.Description{
		Member:         ledger.Member{Bookie: response.GetId(), Incarnation: response.GetIncarnation()},
		ReadOnly:       response.GetReadOnly(),
		ReadOnlyReason: response.GetReadOnlyReason(),
		Ledgers:        response.GetLedgers(),
		HotBytes:       response.GetHotBytes(),
		ColdBytes:      response.GetColdBytes(),
		DiskFreeBytes:  response.GetDiskFreeBytes(),
		DiskTotalBytes: response.GetDiskTotalBytes(),
		MaxEntryBytes:  response.GetMaxEntryBytes(),
	}, nil
}

// Read returns a run of entries; see ensemble.Bookie. A recovery read goes with
// the fences. What does not match its checksum, or is not what was asked for, ends
// the run as Unknown.
func (b *Bookie) Read(ctx context.Context, r ledger.ReadRequest) (ledger.ReadReply, error) {
	client := b.data.client
	if r.FenceTerm > 0 {
		client = b.control.client
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel() // lets go of the stream when the run ends early
	stream, err := client.Read(ctx, bookiev1.ReadRequest_builder{
		Incarnation: new(b.opts.Member.Incarnation),
		Ledger:      new(int64(r.Ledger)),
		FirstEntry:  new(int64(r.First)),
		LastEntry:   new(int64(r.Last)),
		MaxBytes:    new(uint32(min(max(r.MaxBytes, 0), 1<<30))),
		FenceTerm:   new(r.FenceTerm),
		HeadBytes:   new(uint32(min(max(r.HeadBytes, 0), 1<<30))),
	}.Build())
	if err != nil {
		return ledger.ReadReply{}, b.callError("read", err)
	}
	reply := ledger.ReadReply{LAC: ledger.NoEntry}
	head := new(bookiev1.ReadResponse)
	frame := rpc.Frame{Head: head}
	defer frame.Free()
	for {
		err := stream.RecvMsg(&frame)
		if errors.Is(err, io.EOF) && len(reply.Entries) == 0 {
			err = io.ErrUnexpectedEOF
		}
		if errors.Is(err, io.EOF) || err != nil && len(reply.Entries) > 0 {
			return reply, nil // a prefix is an answer
		}
		if err != nil {
			return ledger.ReadReply{}, b.callError("read", err)
		}
		done, err := b.receive(&reply, &r, head, &frame)
		if err != nil || done {
			return reply, err
		}
	}
}

// receive adds a message to a reply; done when nothing behind it may be used.
func (b *Bookie) receive(reply *ledger.ReadReply, r *ledger.ReadRequest, head *bookiev1.ReadResponse, frame *rpc.Frame) (done bool, err error) {
	next := r.First + ledger.EntryID(len(reply.Entries))
	statuses := head.GetStatuses()
	if len(statuses) == 0 || ledger.EntryID(head.GetFirstEntry()) != next || uint64(len(statuses)) > uint64(r.Last-next)+1 {
		return true, fmt.Errorf("remote: bookie %s answered %d entries from %d, asked for %d to %d of ledger %d",
			b.opts.Member.Bookie, len(statuses), head.GetFirstEntry(), next, r.Last, r.Ledger)
	}
	payload := frame.Bytes()
	for i, code := range statuses {
		verdict, ok := wire.ReadStatus(code)
		if !ok {
			return true, b.answer("read", code, head.GetMessage())
		}
		entry := ledger.ReadEntry{Status: verdict}
		if verdict == ledger.Found {
			if payload, err = b.cut(&entry.Entry, r, next+ledger.EntryID(i), payload); err != nil {
				b.opts.Metrics.corrupt.Inc()
				b.opts.Log.Warn("entry received damaged", "ledger", r.Ledger, "entry", next+ledger.EntryID(i), "error", err)
				reply.Entries = append(reply.Entries, ledger.ReadEntry{Status: ledger.Unknown})
				return true, nil
			}
		}
		reply.Entries = append(reply.Entries, entry)
	}
	reply.LAC = max(reply.LAC, ledger.EntryID(head.GetLastAddConfirmed()))
	return false, nil
}

// cut takes entry id off payload and checks it.
func (b *Bookie) cut(e *ledger.Entry, r *ledger.ReadRequest, id ledger.EntryID, payload []byte) (rest []byte, err error) {
	*e, rest, err = wire.Cut(payload, r.HeadBytes)
	switch {
	case err != nil:
		return nil, err
	case r.HeadBytes > 0 && int(e.Envelope.BodyBytes) > r.HeadBytes: // cut: the body's checksum cannot be checked
		if e.Envelope.Ledger != r.Ledger || e.Envelope.Entry != id {
			return nil, fmt.Errorf("got entry %d of ledger %d: %w", e.Envelope.Entry, e.Envelope.Ledger, ledger.ErrCorrupt)
		}
		return rest, nil
	}
	return rest, e.Check(r.Ledger, id)
}

// answer is the error for a status other than OK.
func (b *Bookie) answer(what string, code bookiev1.Status, message string) error {
	if err := wire.ErrorOf(code, message); err != nil {
		return fmt.Errorf("%s at bookie %s: %w", what, b.opts.Member.Bookie, err)
	}
	return nil
}

// callError is the error of a call that had no answer: its outcome is unknown.
func (b *Bookie) callError(what string, err error) error {
	switch status.Code(err) {
	case codes.Canceled:
		err = fmt.Errorf("%w: %w", context.Canceled, err)
	case codes.DeadlineExceeded:
		err = fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
	}
	return fmt.Errorf("%s at bookie %s: %w", what, b.opts.Member.Bookie, err)
}

// reason names an error in a metric.
func reason(err error) string {
	for _, row := range []struct {
		err  error
		name string
	}{
		{errDown, "down"}, {errTimeout, "timeout"}, {errBroken, "broken"},
		{ledger.ErrTooBusy, "too_busy"}, {ledger.ErrFenced, "fenced"}, {ledger.ErrReadOnly, "read_only"},
		{ledger.ErrCorrupt, "corrupt"}, {ledger.ErrIncarnation, "incarnation"},
	} {
		if errors.Is(err, row.err) {
			return row.name
		}
	}
	return "other"
}
