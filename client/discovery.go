package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

const (
	// askTimeout bounds one call to one address, after which the next is asked.
	askTimeout = 3 * time.Second
	// maxTopicsPerLookup bounds the topics of one call.
	maxTopicsPerLookup = 1000
)

// discovery asks any discovery process or broker about topics: first the one
// that answered last, then the others in turn. Lookups that come while one is
// under way share the next call.
type discovery struct {
	dial func(address string) (*grpc.ClientConn, error)
	done context.Context // ends with the client
	wg   *sync.WaitGroup // the client's goroutines

	mu        sync.Mutex
	given     []string // to Connect; never altered
	addresses []string // the one that answered last comes first
	conns     map[string]*grpc.ClientConn
	waiting   map[string]*lookup // of the next call, by topic
	asking    bool
}

// lookup is one topic's place in a call. done is closed once address or err is
// set.
type lookup struct {
	done    chan struct{}
	address string
	err     error
}

func newDiscovery(done context.Context, wg *sync.WaitGroup, addresses []string, dial func(string) (*grpc.ClientConn, error)) *discovery {
	return &discovery{dial: dial, done: done, wg: wg, given: addresses, addresses: slices.Clone(addresses),
		conns: map[string]*grpc.ClientConn{}, waiting: map[string]*lookup{}}
}

// ask calls f with one address after another until one answers. An error about
// the question, not the one asked, is an answer.
func (d *discovery) ask(ctx context.Context, f func(context.Context, discoveryv1.DiscoveryClient) error) error {
	d.mu.Lock()
	addresses := slices.Clone(d.addresses)
	d.mu.Unlock()
	var errs []error
	for _, a := range addresses {
		conn, err := d.conn(a)
		if errors.Is(err, ErrClosed) {
			return err
		}
		if err == nil {
			callCtx, cancel := context.WithTimeout(ctx, askTimeout)
			err = f(callCtx, discoveryv1.NewDiscoveryClient(conn))
			cancel()
		}
		if err == nil {
			d.prefer(a)
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("ask %s: %w: %w", a, ctx.Err(), err)
		}
		switch status.Code(err) {
		case codes.Unavailable, codes.DeadlineExceeded, codes.Unimplemented, codes.Internal, codes.Unknown, codes.Canceled:
			d.drop(a)
			errs = append(errs, fmt.Errorf("%s: %s", a, status.Convert(err).Message()))
		default:
			return fromStatus(err)
		}
	}
	return fmt.Errorf("nobody answers: %w: %w", errors.Join(errs...), ErrUnavailable)
}

func (d *discovery) conn(address string) (*grpc.ClientConn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if c := d.conns[address]; c != nil {
		return c, nil
	}
	if d.done.Err() != nil {
		return nil, fmt.Errorf("client: %w", ErrClosed)
	}
	c, err := d.dial(address)
	if err == nil {
		d.conns[address] = c
	}
	return c, err
}

// drop closes a connection that did not serve, so that the next try dials anew.
func (d *discovery) drop(address string) {
	d.mu.Lock()
	c := d.conns[address]
	delete(d.conns, address)
	d.mu.Unlock()
	if c != nil {
		c.Close()
	}
}

func (d *discovery) prefer(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if i := slices.Index(d.addresses, address); i > 0 {
		d.addresses = slices.Insert(slices.Delete(d.addresses, i, i+1), 0, address)
	}
}

// preferred is the address that is asked first.
func (d *discovery) preferred() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.addresses[0]
}

// demote makes an address that is asked first the last one.
func (d *discovery) demote(address string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.addresses[0] == address {
		d.addresses = append(slices.Delete(d.addresses, 0, 1), address)
	}
}

// maxAddresses bounds the addresses remembered beside those given.
const maxAddresses = 64

// learn adds addresses of brokers, any of which can answer too.
func (d *discovery) learn(addresses ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, a := range addresses {
		if a != "" && len(d.addresses) < maxAddresses && !slices.Contains(d.addresses, a) {
			d.addresses = append(d.addresses, a)
		}
	}
}

// cluster asks who is there and learns their addresses.
func (d *discovery) cluster(ctx context.Context) error {
	return d.ask(ctx, func(ctx context.Context, c discoveryv1.DiscoveryClient) error {
		r, err := c.Cluster(ctx, &discoveryv1.ClusterRequest{})
		if err == nil {
			d.renew(r.GetBrokers())
		}
		return err
	})
}

// renew forgets the addresses of brokers that are gone, so that there is room for
// those that came. Those given to Connect stay. One that knows no broker knows
// nothing yet.
func (d *discovery) renew(brokers []*discoveryv1.Broker) {
	if len(brokers) == 0 {
		return
	}
	var live []string
	for _, b := range brokers {
		live = append(live, b.GetAddress())
	}
	d.mu.Lock()
	d.addresses = slices.DeleteFunc(d.addresses, func(a string) bool {
		return !slices.Contains(d.given, a) && !slices.Contains(live, a)
	})
	d.mu.Unlock()
	d.learn(live...)
}

// topic returns the partitions of a topic, creating it where asked to.
func (d *discovery) topic(ctx context.Context, name string, create bool) (*discoveryv1.TopicMap, error) {
	var m *discoveryv1.TopicMap
	err := d.ask(ctx, func(ctx context.Context, c discoveryv1.DiscoveryClient) error {
		r, err := c.Topics(ctx, discoveryv1.TopicsRequest_builder{Topics: []string{name}, Create: &create}.Build())
		if err == nil && len(r.GetTopics()) != 1 {
			return status.Errorf(codes.Internal, "asked for 1 topic, got %d", len(r.GetTopics()))
		}
		if err == nil {
			m = r.GetTopics()[0]
		}
		return err
	})
	switch {
	case err != nil:
		return nil, err
	case m.GetError() != "" || m.GetErrorCode() != 0:
		return nil, fmt.Errorf("%s: %w", m.GetError(), fromGRPCCode(codes.Code(m.GetErrorCode())))
	case !m.GetFound() || len(m.GetPartitions()) == 0:
		return nil, fmt.Errorf("topic %s: %w", name, ErrNotFound)
	}
	return m, nil
}

// owner returns the address of the broker that owns a topic partition.
func (d *discovery) owner(ctx context.Context, topic string) (string, error) {
	d.mu.Lock()
	l := d.waiting[topic]
	if l == nil {
		l = &lookup{done: make(chan struct{})}
		d.waiting[topic] = l
	}
	if !d.asking && d.done.Err() == nil {
		d.asking = true
		d.wg.Go(d.lookUp)
	}
	d.mu.Unlock()
	select {
	case <-l.done:
		return l.address, l.err
	case <-ctx.Done():
		return "", ctx.Err()
	case <-d.done.Done():
		return "", ErrClosed
	}
}

// lookUp makes calls until nobody waits for one.
func (d *discovery) lookUp() {
	for {
		d.mu.Lock()
		var topics []string
		batch := map[string]*lookup{}
		for t, l := range d.waiting {
			if len(topics) == maxTopicsPerLookup {
				break
			}
			topics = append(topics, t)
			batch[t] = l
			delete(d.waiting, t)
		}
		d.asking = len(topics) > 0
		d.mu.Unlock()
		if len(topics) == 0 {
			return
		}
		owners, err := d.owners(d.done, topics)
		for i, t := range topics {
			l := batch[t]
			if l.err = err; err == nil {
				l.address, l.err = ownerOf(owners[i])
			}
			close(l.done)
		}
	}
}

// owners asks for the owners of up to maxTopicsPerLookup partitions, in the
// order asked.
func (d *discovery) owners(ctx context.Context, topics []string) ([]*discoveryv1.Owner, error) {
	var owners []*discoveryv1.Owner
	err := d.ask(ctx, func(ctx context.Context, c discoveryv1.DiscoveryClient) error {
		r, err := c.Lookup(ctx, discoveryv1.LookupRequest_builder{Topics: topics}.Build())
		owners = r.GetOwners()
		if err == nil && len(owners) != len(topics) {
			return status.Errorf(codes.Internal, "asked for %d topics, got %d", len(topics), len(owners))
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	for _, o := range owners {
		d.learn(o.GetAddress())
	}
	return owners, nil
}

func ownerOf(o *discoveryv1.Owner) (string, error) {
	switch {
	case o.GetError() != "" || o.GetErrorCode() != 0:
		return "", fmt.Errorf("%s: %w", o.GetError(), fromGRPCCode(codes.Code(o.GetErrorCode())))
	case o.GetAddress() == "":
		return "", fmt.Errorf("topic %s has no owner just now: %w", o.GetTopic(), ErrUnavailable)
	}
	return o.GetAddress(), nil
}

// close closes all connections; calls under way fail.
func (d *discovery) close() {
	d.mu.Lock()
	conns := d.conns
	d.conns = map[string]*grpc.ClientConn{}
	d.mu.Unlock()
	for _, c := range conns {
		c.Close()
	}
}
