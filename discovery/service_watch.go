package discovery

import (
	"fmt"
	"sort"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/rpcerr"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Watch implements Discovery: all there is, then what changes. A client that is
// slow gets fewer and larger changes, nothing queues up for it.
func (s *Service) Watch(_ *discoveryv1.WatchRequest, stream discoveryv1.Discovery_WatchServer) error {
	select {
	case <-s.opts.View.Ready():
	case <-s.done:
		return fmt.Errorf("this process is stopping: %w", rpcerr.ErrUnavailable)
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
	var told *Snapshot
	for {
		changed := s.opts.View.Changed()
		now := s.opts.View.Snapshot()
		if r := difference(told, now); r != nil {
			if err := stream.Send(r); err != nil {
				return err
			}
		}
		told = now
		select {
		case <-changed:
		case <-s.done:
			return fmt.Errorf("this process is stopping: %w", rpcerr.ErrUnavailable)
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// shown is a bundle's owner as clients see it.
type shown struct {
	broker  string
	address string
	epoch   uint64
}

func (s *Snapshot) shown(name string) shown {
	b := s.Bundles[name]
	owner, _ := s.OwnerOf(b)
	return shown{owner.ID, owner.Address, b.Owner.Epoch}
}

// difference is what a client that knows told has to hear; nil: nothing. A
// client that was told nothing hears all.
func difference(told, now *Snapshot) *discoveryv1.WatchResponse {
	b := discoveryv1.WatchResponse_builder{}
	if told == nil {
		b.Full = proto.Bool(true)
		told = &Snapshot{}
	}
	for _, id := range now.ids {
		was, known := told.Brokers[id]
		is := now.Brokers[id]
		if !known || was.Session != is.Session || was.Address != is.Address {
			b.Brokers = append(b.Brokers, brokerMessage(is))
		}
	}
	for _, id := range told.ids {
		if _, still := now.Brokers[id]; !still {
			b.GoneBrokers = append(b.GoneBrokers, id)
		}
	}
	owner := func(name string, o shown) {
		b.Bundles = append(b.Bundles, discoveryv1.BundleOwner_builder{
			Bundle: proto.String(name), Broker: proto.String(o.broker), Address: proto.String(o.address), Epoch: proto.Uint64(o.epoch),
		}.Build())
	}
	for name := range now.Bundles {
		_, known := told.Bundles[name]
		if is := now.shown(name); !known || told.shown(name) != is {
			owner(name, is)
		}
	}
	for name := range told.Bundles {
		if _, still := now.Bundles[name]; !still {
			owner(name, shown{})
		}
	}
	if b.Full == nil && len(b.Brokers)+len(b.GoneBrokers)+len(b.Bundles) == 0 {
		return nil
	}
	sort.Slice(b.Bundles, func(i, j int) bool { return b.Bundles[i].GetBundle() < b.Bundles[j].GetBundle() })
	return b.Build()
}
