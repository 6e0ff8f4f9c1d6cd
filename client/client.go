package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"

	"github.com/magnetar-io/magnetar/internal/topicname"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Client talks to one cluster. Make one with Connect, share it, close it at the
// end; it is safe for concurrent use.
type Client struct {
	opts      options
	log       *slog.Logger
	instance  string // random, so that brokers know this process again
	memory    *semaphore.Weighted
	discovery *discovery
	brokers   *brokers
	ctx       context.Context // ends when the client is closed
	cancel    context.CancelFunc
	wg        sync.WaitGroup // every goroutine of the client
	ended     chan struct{}  // closed at the end of the Close that came first

	mu      sync.Mutex
	closing bool
	over    bool // no goroutine may start any more
	open    map[closer]struct{}
	// attempts to attach that are under way.
	attempts map[*attempt]struct{}
}

// closer is what the client closes at its end: a producer, consumer or reader.
type closer interface {
	close(ctx context.Context) error
	// endpoints are the parts of it that may have to follow a move.
	endpoints() []follower
}

// follower waits for a broker and can tell that it is silent.
type follower interface {
	topicName() string
	stalled(now time.Time) (address string, ok bool)
	moveTo(from, to string)
}

// Connect connects to the cluster behind servers, a list of addresses
// HOST:PORT[,HOST:PORT…] of discovery processes or brokers, of which one has to
// answer before ctx ends.
func Connect(ctx context.Context, servers string, opts ...Option) (*Client, error) {
	var addresses []string
	for _, a := range strings.Split(servers, ",") {
		if a = strings.TrimSpace(a); a != "" {
			addresses = append(addresses, a)
		}
	}
	o := newOptions(opts)
	switch {
	case len(addresses) == 0:
		return nil, fmt.Errorf("connect: no server address: %w", ErrInvalid)
	case o.memory < 1:
		return nil, fmt.Errorf("connect: memory of %d bytes: %w", o.memory, ErrInvalid)
	}
	c := &Client{opts: o, log: o.log, memory: semaphore.NewWeighted(o.memory), open: map[closer]struct{}{},
		attempts: map[*attempt]struct{}{}, ended: make(chan struct{})}
	c.instance = fmt.Sprintf("%016x", o.rand())
	c.ctx, c.cancel = context.WithCancel(context.Background())
	dial := dialer(o)
	c.discovery = newDiscovery(c.ctx, &c.wg, addresses, dial)
	c.brokers = &brokers{dial: dial, done: c.ctx, wg: &c.wg, byAddress: map[string]*brokerConn{}}
	var last error
	for wait := backoffFirst; ; wait = min(2*wait, backoffMost) {
		err := c.discovery.cluster(ctx)
		if err == nil {
			break
		}
		if ctx.Err() == nil && !giveUp(err) {
			last = err
			err = c.sleepAbout(ctx, wait)
		}
		if err != nil {
			c.end()
			return nil, fmt.Errorf("connect to %s: %w", servers, errors.Join(err, notJust(err, last)))
		}
	}
	c.spawn(c.watch)
	return c, nil
}

// Partitions returns the long names of a topic's partitions, the topic's own
// where it is not partitioned. It creates nothing.
func (c *Client) Partitions(ctx context.Context, topic string) ([]string, error) {
	name, err := topicname.Parse(topic)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", err, ErrInvalid)
	}
	m, err := c.topicMap(ctx, name, false)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range m.GetPartitions() {
		names = append(names, p.GetTopic())
	}
	return names, nil
}

// Close closes what is still open, flushing producers and acknowledgements as
// long as ctx allows, then all connections. When it returns, nothing the client
// started is alive. A second call waits for the first one; when its ctx ends, so
// does the first one's patience.
func (c *Client) Close(ctx context.Context) error {
	c.mu.Lock()
	first := !c.closing
	c.closing = true
	var open []closer
	for o := range c.open {
		open = append(open, o)
	}
	c.mu.Unlock()
	errs := make([]error, len(open))
	var wg sync.WaitGroup
	for i, o := range open {
		wg.Go(func() { errs[i] = o.close(ctx) })
	}
	wg.Wait()
	if first {
		c.end()
		close(c.ended)
	}
	<-c.ended
	return errors.Join(errs...)
}

// end stops everything and waits for it.
func (c *Client) end() {
	c.cancel()
	c.brokers.close()
	c.discovery.close()
	c.mu.Lock()
	c.over = true
	c.mu.Unlock()
	c.wg.Wait()
}

// spawn runs f on a goroutine that Close waits for. f ends soon after c.ctx does.
func (c *Client) spawn(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.wg.Go(f)
	}
}

// add keeps o for Close; false: the client is closing.
func (c *Client) add(o closer) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closing {
		c.open[o] = struct{}{}
	}
	return !c.closing
}

func (c *Client) remove(o closer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.open, o)
}

func (c *Client) rand() uint64 { return c.opts.rand() }

// topicMap returns the partitions of a topic, or of the one a partition names. It
// waits while nobody can say.
func (c *Client) topicMap(ctx context.Context, name topicname.Name, create bool) (*discoveryv1.TopicMap, error) {
	for wait := backoffFirst; ; wait = min(2*wait, backoffMost) {
		m, err := c.discovery.topic(ctx, name.Base().String(), create)
		if err == nil {
			return onlyPartition(m, name)
		}
		if ctx.Err() != nil || giveUp(err) || !errors.Is(err, ErrUnavailable) && !errors.Is(err, ErrInternal) {
			return nil, err
		}
		if sleepErr := c.sleepAbout(ctx, wait); sleepErr != nil {
			return nil, errors.Join(sleepErr, err)
		}
	}
}

// onlyPartition narrows a map to the one partition that name names, if it does.
func onlyPartition(m *discoveryv1.TopicMap, name topicname.Name) (*discoveryv1.TopicMap, error) {
	if name.Partition == topicname.Unpartitioned {
		return m, nil
	}
	for _, p := range m.GetPartitions() {
		if int(p.GetNumber()) == name.Partition {
			m.SetPartitions([]*discoveryv1.Partition{p})
			return m, nil
		}
	}
	return nil, fmt.Errorf("topic %s has %d partitions, not number %d: %w", name.Base(), len(m.GetPartitions()), name.Partition, ErrNotFound)
}
