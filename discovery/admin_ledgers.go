package discovery

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

const (
	// defaultLedgers and maxLedgers are how many ledgers one answer lists.
	defaultLedgers = 1000
	maxLedgers     = 10_000
)

// ListLedgers implements Admin: the ledgers above one, of one topic or of all.
// Those that were deleted are not listed.
func (s *AdminService) ListLedgers(ctx context.Context, r *adminv1.ListLedgersRequest) (*adminv1.ListLedgersResponse, error) {
	limit := int(r.GetLimit())
	switch {
	case limit > maxLedgers:
		return nil, fmt.Errorf("%d ledgers in one answer, at most %d: %w", limit, maxLedgers, rpcerr.ErrInvalid)
	case limit == 0:
		limit = defaultLedgers
	}
	list := s.allLedgers
	if r.GetTopic() != "" {
		n, err := topicname.Parse(r.GetTopic())
		if err != nil {
			return nil, err
		}
		list = func(ctx context.Context, after ledger.ID, limit int) ([]ledger.Metadata, error) {
			return s.ledgersOf(ctx, n, after)
		}
	}
	found, err := list(ctx, ledger.ID(r.GetAfter()), limit+1)
	if err != nil {
		return nil, fmt.Errorf("list ledgers: %w", err)
	}
	b := adminv1.ListLedgersResponse_builder{More: proto.Bool(len(found) > limit)}
	for _, md := range found[:min(limit, len(found))] {
		b.Ledgers = append(b.Ledgers, ledgerSummary(md))
	}
	return b.Build(), nil
}

// allLedgers reads ledgers above after, in order.
func (s *AdminService) allLedgers(ctx context.Context, after ledger.ID, limit int) ([]ledger.Metadata, error) {
	var found []ledger.Metadata
	end := s.opts.Layout.Ledgers() + "g" // behind the last hex digit
	for start := s.opts.Layout.Ledger(int64(after) + 1); len(found) < limit; {
		kvs, _, err := s.opts.Store.Range(ctx, start, end, limit)
		if err != nil {
			return nil, err
		}
		for _, kv := range kvs {
			md, err := s.decodeLedger(kv)
			if err != nil {
				return nil, err
			}
			if md.State != ledger.Deleted && len(found) < limit {
				found = append(found, md)
			}
		}
		if len(kvs) < limit {
			break
		}
		start = kvs[len(kvs)-1].Key + "\x00"
	}
	return found, nil
}

func (s *AdminService) decodeLedger(kv meta.KV) (ledger.Metadata, error) {
	id, ok := s.opts.Layout.ParseLedger(kv.Key)
	if !ok {
		return ledger.Metadata{}, fmt.Errorf("key %s is none of a ledger: %w", kv.Key, ledger.ErrCorrupt)
	}
	return ledger.Decode(ledger.ID(id), kv.Value)
}

// ledgersOf reads the ledgers above after of a topic and all its partitions, in
// order of ids.
func (s *AdminService) ledgersOf(ctx context.Context, n topicname.Name, after ledger.ID) ([]ledger.Metadata, error) {
	names := []topicname.Name{n}
	if n.Partition == topicname.Unpartitioned {
		m, err := s.catalog.Map(ctx, n)
		if err != nil {
			return nil, err
		}
		names = names[:0]
		for _, p := range m.Partitions {
			names = append(names, m.Name(p))
		}
	}
	var found []ledger.Metadata
	for _, name := range names {
		t, err := s.catalog.Topic(ctx, name)
		if err != nil {
			return nil, err
		}
		chain, err := s.chain(ctx, t)
		if err != nil {
			return nil, err
		}
		for _, id := range chain {
			if id <= after {
				continue
			}
			md, err := s.ledger(ctx, id)
			switch {
			case errors.Is(err, ledger.ErrNoLedger):
				continue // trimmed meanwhile
			case err != nil:
				return nil, err
			case md.State != ledger.Deleted:
				found = append(found, md)
			}
		}
	}
	slices.SortFunc(found, func(a, b ledger.Metadata) int { return int(a.ID - b.ID) })
	return found, nil
}

// chain returns the ledgers of a topic partition, oldest first.
func (s *AdminService) chain(ctx context.Context, t catalog.Topic) ([]ledger.ID, error) {
	kvs, _, err := s.opts.Store.Range(ctx, s.opts.Layout.Chain(t.ID), "", 0)
	if err != nil {
		return nil, err
	}
	ids := make([]ledger.ID, len(kvs))
	for i, kv := range kvs {
		var link metav1.ChainLink
		if err := proto.Unmarshal(kv.Value, &link); err != nil {
			return nil, fmt.Errorf("record at %s: %v: %w", kv.Key, err, ledger.ErrCorrupt)
		}
		ids[i] = ledger.ID(link.GetLedger())
	}
	return ids, nil
}

func (s *AdminService) ledger(ctx context.Context, id ledger.ID) (ledger.Metadata, error) {
	kv, err := s.opts.Store.Get(ctx, s.opts.Layout.Ledger(int64(id)))
	if err != nil {
		return ledger.Metadata{}, err
	}
	if !kv.Exists() {
		return ledger.Metadata{}, fmt.Errorf("ledger %d: %w", id, ledger.ErrNoLedger)
	}
	return s.decodeLedger(kv)
}

// DescribeLedger implements Admin; a deleted ledger is described too.
func (s *AdminService) DescribeLedger(ctx context.Context, r *adminv1.DescribeLedgerRequest) (*adminv1.DescribeLedgerResponse, error) {
	if r.GetLedger() < 1 {
		return nil, fmt.Errorf("ledger %d: ids begin with 1: %w", r.GetLedger(), rpcerr.ErrInvalid)
	}
	md, err := s.ledger(ctx, ledger.ID(r.GetLedger()))
	if err != nil {
		return nil, err
	}
	return adminv1.DescribeLedgerResponse_builder{Ledger: ledgerSummary(md)}.Build(), nil
}

func ledgerSummary(md ledger.Metadata) *adminv1.LedgerSummary {
	b := adminv1.LedgerSummary_builder{
		Ledger:      proto.Int64(int64(md.ID)),
		State:       proto.String(md.State.String()),
		WriteQuorum: proto.Uint32(uint32(md.Quorum.Write)),
		AckQuorum:   proto.Uint32(uint32(md.Quorum.Ack)),
		LastEntry:   proto.Int64(int64(md.LastEntry)),
		Length:      proto.Int64(md.Length),
		Parent:      proto.String(parentName(md.Parent)),
		Term:        proto.Int64(md.Term),
		Verify:      proto.Bool(md.Verify),
		CreatedAtMs: proto.Int64(md.Created.UnixMilli()),
	}
	for _, f := range md.Fragments {
		fragment := adminv1.Fragment_builder{FirstEntry: proto.Int64(int64(f.First))}
		for _, m := range f.Ensemble {
			fragment.Ensemble = append(fragment.Ensemble, adminv1.Member_builder{
				Bookie: proto.String(m.Bookie), Incarnation: proto.String(m.Incarnation),
			}.Build())
		}
		b.Fragments = append(b.Fragments, fragment.Build())
	}
	return b.Build()
}

// parentName says which log a ledger is a link of, for people.
func parentName(p ledger.Parent) string {
	switch {
	case p.Bundle != "":
		return "bundle " + p.Bundle + " " + p.Role
	case p.Topic != 0:
		return fmt.Sprintf("topic %d %s", p.Topic, p.Role)
	}
	return ""
}
