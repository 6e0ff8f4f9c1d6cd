package bookie

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/magnetar-io/magnetar/bookie/internal/wire"
	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/internal/rpc"
	bookiev1 "github.com/magnetar-io/magnetar/proto/bookie/v1"
)

// service serves a node over gRPC. What a ledger client can act on travels as a
// status inside the messages; a call fails as a whole only where its outcome is
// unknown or the peer breaks the protocol.
type service struct {
	bookiev1.UnimplementedBookieServer
	node *Node
}

// Register adds the node's service to a server, which must have been made with
// rpc.ServerOptions: entries travel by reference through its codec.
func (n *Node) Register(r grpc.ServiceRegistrar) {
	bookiev1.RegisterBookieServer(r, &service{node: n})
}

// checkIncarnation refuses a request that was meant for other storage (B5). Every
// request names the incarnation it means.
func (n *Node) checkIncarnation(incarnation string) error {
	if incarnation != n.identity.Incarnation {
		return fmt.Errorf("bookie %s has incarnation %s, the request is for %q: %w",
			n.identity.Bookie, n.identity.Incarnation, incarnation, ledger.ErrIncarnation)
	}
	return nil
}

// answer gives the status and the words for err, or the error the call must fail
// with.
func answer(err error) (bookiev1.Status, string, error) {
	if err == nil {
		return bookiev1.Status_STATUS_OK, "", nil
	}
	if s, ok := wire.StatusOf(err); ok {
		return s, err.Error(), nil
	}
	return 0, "", callError(err)
}

// callError is the error of a call whose outcome is unknown.
func callError(err error) error {
	if s := status.FromContextError(err); s.Code() != codes.Unknown {
		return s.Err()
	}
	return status.Error(codes.Unavailable, err.Error())
}

func (s *service) Fence(ctx context.Context, r *bookiev1.FenceRequest) (*bookiev1.FenceResponse, error) {
	reply := ledger.FenceReply{LastEntry: ledger.NoEntry, LAC: ledger.NoEntry}
	err := s.node.checkIncarnation(r.GetIncarnation())
	if err == nil {
		reply, err = s.node.Fence(ctx, ledger.ID(r.GetLedger()), r.GetTerm())
	}
	code, message, err := answer(err)
	if err != nil {
		return nil, err
	}
	g := s.node.table.Lock(ledger.ID(r.GetLedger()))
	record, _ := g.Record()
	g.Unlock()
	return bookiev1.FenceResponse_builder{
		Status:           code.Enum(),
		LastEntry:        new(int64(reply.LastEntry)),
		LastAddConfirmed: new(int64(reply.LAC)),
		Term:             new(record.Term),
		Message:          new(message),
	}.Build(), nil
}

const (
	// chunkBytes is about how much of a read travels in one message.
	chunkBytes = 512 << 10
	// maxRunEntries is after how many entries a read ends, found or not: a recovery
	// read may ask for more than there are numbers.
	maxRunEntries = 1 << 16
)

func (s *service) Read(r *bookiev1.ReadRequest, stream grpc.ServerStreamingServer[bookiev1.ReadResponse]) error {
	limit := int(r.GetMaxBytes())
	if limit == 0 || limit > maxReadBytes {
		limit = maxReadBytes
	}
	request := ledger.ReadRequest{
		Ledger:    ledger.ID(r.GetLedger()),
		First:     ledger.EntryID(r.GetFirstEntry()),
		Last:      ledger.EntryID(r.GetLastEntry()),
		FenceTerm: r.GetFenceTerm(),
		HeadBytes: int(r.GetHeadBytes()),
	}
	if err := s.node.checkIncarnation(r.GetIncarnation()); err != nil {
		return sendReadError(stream, request.First, err)
	}
	for sent, entries := 0, 0; ; {
		request.MaxBytes = min(limit-sent, chunkBytes)
		reply, err := s.node.Read(stream.Context(), request)
		if err != nil && sent > 0 {
			return nil // what was sent is an answer; the next call will be told
		}
		if err != nil {
			return sendReadError(stream, request.First, err)
		}
		frame, bytes := readFrame(request.First, &reply)
		if err := stream.SendMsg(frame); err != nil {
			return err
		}
		sent, entries = sent+bytes, entries+len(reply.Entries)
		request.First += ledger.EntryID(len(reply.Entries))
		if request.First > request.Last || sent >= limit || entries >= maxRunEntries || endsRun(reply.Entries, request.FenceTerm > 0) {
			return nil
		}
	}
}

// endsRun reports whether a reply is the end of its run though more was asked for.
func endsRun(entries []ledger.ReadEntry, recovery bool) bool {
	switch entries[len(entries)-1].Status {
	case ledger.Found:
		return false
	case ledger.Absent:
		return !recovery
	}
	return true
}

// readFrame puts a reply into a message, the entries by reference.
func readFrame(first ledger.EntryID, reply *ledger.ReadReply) (*rpc.Frame, int) {
	statuses := make([]bookiev1.Status, len(reply.Entries))
	pieces := make([][]byte, 0, 2*len(reply.Entries))
	bytes := 0
	for i := range reply.Entries {
		e := &reply.Entries[i]
		statuses[i] = wire.StatusOfRead(e.Status)
		if e.Status == ledger.Found {
			pieces = wire.Append(pieces, &e.Entry.Envelope, e.Entry.Body)
			bytes += ledger.EnvelopeBytes + len(e.Entry.Body)
		}
	}
	return &rpc.Frame{
		Head: bookiev1.ReadResponse_builder{
			FirstEntry:       new(int64(first)),
			Statuses:         statuses,
			LastAddConfirmed: new(int64(reply.LAC)),
		}.Build(),
		Payload: pieces,
	}, bytes
}

// sendReadError answers a read that was refused as a whole: one status, which is
// not one of an entry, or that of an entry this bookie cannot answer for.
func sendReadError(stream grpc.ServerStreamingServer[bookiev1.ReadResponse], first ledger.EntryID, err error) error {
	code, message, err := answer(err)
	if err != nil {
		return err
	}
	return stream.Send(bookiev1.ReadResponse_builder{
		FirstEntry:       new(int64(first)),
		Statuses:         []bookiev1.Status{code},
		LastAddConfirmed: new(int64(ledger.NoEntry)),
		Message:          new(message),
	}.Build())
}

func (s *service) LedgerInfo(ctx context.Context, r *bookiev1.LedgerInfoRequest) (*bookiev1.LedgerInfoResponse, error) {
	var info ledger.Info
	err := s.node.checkIncarnation(r.GetIncarnation())
	if err == nil {
		info, err = s.node.Info(ctx, ledger.ID(r.GetLedger()))
	}
	code, message, err := answer(err)
	if err != nil {
		return nil, err
	}
	response := bookiev1.LedgerInfoResponse_builder{
		Status:           code.Enum(),
		LastAddConfirmed: new(int64(info.LAC)),
		Term:             new(info.Term),
		Limbo:            new(info.Limbo),
		Message:          new(message),
	}
	for _, r := range info.Ranges {
		response.Ranges = append(response.Ranges, bookiev1.EntryRange_builder{
			FirstEntry: new(int64(r.First)),
			LastEntry:  new(int64(r.Last)),
		}.Build())
	}
	return response.Build(), nil
}

func (s *service) ListLedgers(ctx context.Context, r *bookiev1.ListLedgersRequest) (*bookiev1.ListLedgersResponse, error) {
	var ids []ledger.ID
	var more bool
	err := s.node.checkIncarnation(r.GetIncarnation())
	if err == nil {
		ids, more, err = s.node.List(ctx, ledger.ID(r.GetAfter()), int(r.GetLimit()))
	}
	code, message, err := answer(err)
	if err != nil {
		return nil, err
	}
	response := bookiev1.ListLedgersResponse_builder{
		Status:  code.Enum(),
		Message: new(message),
		More:    new(more),
		Ledgers: make([]int64, len(ids)),
	}
	for i, id := range ids {
		response.Ledgers[i] = int64(id)
	}
	return response.Build(), nil
}

func (s *service) Describe(context.Context, *bookiev1.DescribeRequest) (*bookiev1.DescribeResponse, error) {
	d := s.node.Describe()
	return bookiev1.DescribeResponse_builder{
		Id:             new(d.Member.Bookie),
		Incarnation:    new(d.Member.Incarnation),
		ReadOnly:       new(d.ReadOnly),
		ReadOnlyReason: new(d.ReadOnlyReason),
		Ledgers:        new(d.Ledgers),
		HotBytes:       new(d.HotBytes),
		ColdBytes:      new(d.ColdBytes),
		DiskFreeBytes:  new(d.DiskFreeBytes),
		DiskTotalBytes: new(d.DiskTotalBytes),
		MaxEntryBytes:  new(d.MaxEntryBytes),
	}.Build(), nil
}
