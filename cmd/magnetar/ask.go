package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/magnetar-io/magnetar/internal/rpcerr"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// asker puts questions to a cluster. It connects to the first of the servers
// that answers, and to the owners of topics as needed. For one command.
type asker struct {
	admin     adminv1.AdminClient
	discovery discoveryv1.DiscoveryClient

	mu    sync.Mutex
	conns map[string]*grpc.ClientConn
}

// ask connects and runs question, which has the time that questions have.
func (a *app) ask(ctx context.Context, question func(context.Context, *asker) error) error {
	ctx, cancel := a.question(ctx)
	defer cancel()
	return a.askUntil(ctx, question)
}

// askUntil connects and runs question, which has until ctx ends.
func (a *app) askUntil(ctx context.Context, question func(context.Context, *asker) error) error {
	q := &asker{conns: map[string]*grpc.ClientConn{}}
	defer q.close()
	servers, err := a.serverList()
	if err != nil {
		return err
	}
	var errs []error
	for _, server := range servers {
		conn, err := q.connect(ctx, server)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		q.admin = adminv1.NewAdminClient(conn)
		q.discovery = discoveryv1.NewDiscoveryClient(conn)
		return question(ctx, q)
	}
	return errors.Join(errs...)
}

// errNoAnswer reports that nobody listens at a server's address.
var errNoAnswer = errors.New("no answer")

// connect returns the connection to address, made on first use. A refused
// connection is an error at once rather than something to wait for.
func (q *asker) connect(ctx context.Context, address string) (*grpc.ClientConn, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if c := q.conns[address]; c != nil {
		return c, nil
	}
	c, err := grpc.NewClient("passthrough:///"+address, append(rpcerr.DialOptions(),
		grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDisableRetry())...)
	if err != nil {
		return nil, fmt.Errorf("server %s: %w", address, err)
	}
	c.Connect()
	limit, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	for state := c.GetState(); state != connectivity.Ready; state = c.GetState() {
		if state == connectivity.TransientFailure || !c.WaitForStateChange(limit, state) {
			c.Close()
			if ctx.Err() != nil {
				return nil, fmt.Errorf("server %s: %w", address, ctx.Err())
			}
			return nil, fmt.Errorf("server %s: %w", address, errNoAnswer)
		}
	}
	q.conns[address] = c
	return c, nil
}

func (q *asker) close() {
	for _, c := range q.conns {
		c.Close()
	}
}

// askBroker asks any live broker about ledgers.
func (a *app) askBroker(ctx context.Context, question func(context.Context, adminv1.LedgerAdminClient) error) error {
	ctx, cancel := a.question(ctx)
	defer cancel()
	return a.askBrokerUntil(ctx, question)
}

// askBrokerUntil asks any live broker what it has to answer until ctx ends.
func (a *app) askBrokerUntil(ctx context.Context, question func(context.Context, adminv1.LedgerAdminClient) error) error {
	return a.askUntil(ctx, func(ctx context.Context, q *asker) error {
		brokers, _, err := q.brokers(ctx)
		if err != nil {
			return err
		}
		var errs []error
		for _, b := range brokers {
			conn, err := q.connect(ctx, b.Address)
			if err != nil {
				errs = append(errs, fmt.Errorf("broker %s: %w", b.ID, err))
				continue
			}
			return question(ctx, adminv1.NewLedgerAdminClient(conn))
		}
		if len(errs) == 0 {
			return errors.New("no broker is live; start one with 'magnetar broker start'")
		}
		return errors.Join(errs...)
	})
}

// partition is one partition of a topic and the broker that owns it.
type partition struct {
	Number  int32
	Topic   string // long form
	Broker  string
	Address string
}

// topicMap asks for a topic's partitions, without making it.
func (q *asker) topicMap(ctx context.Context, topic string) (*discoveryv1.TopicMap, error) {
	resp, err := q.discovery.Topics(ctx, discoveryv1.TopicsRequest_builder{Topics: []string{topic}}.Build())
	if err != nil {
		return nil, err
	}
	if len(resp.GetTopics()) != 1 {
		return nil, fmt.Errorf("topic %s: the server answered for %d topics, want 1", topic, len(resp.GetTopics()))
	}
	m := resp.GetTopics()[0]
	switch {
	case m.GetError() != "" && codes.Code(m.GetErrorCode()) != codes.NotFound:
		return nil, refusedf("topic %q: %s", topic, m.GetError())
	case !m.GetFound():
		return nil, notFoundf("topic %q does not exist; 'magnetar topic create %s' makes it, and so does the first publish", topic, topic)
	}
	return m, nil
}

// namesPerLookup keeps a request within 1 MiB, the most that servers take, however
// long the names are.
const namesPerLookup = 1000

// owners finds a topic's partitions and who owns each, waiting while one has no
// owner just now.
func (q *asker) owners(ctx context.Context, topic string) ([]partition, error) {
	m, err := q.topicMap(ctx, topic)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, p := range m.GetPartitions() {
		names = append(names, p.GetTopic())
	}
	for {
		var owners []*discoveryv1.Owner
		for some := range slices.Chunk(names, namesPerLookup) {
			resp, err := q.discovery.Lookup(ctx, discoveryv1.LookupRequest_builder{Topics: some}.Build())
			if err != nil {
				return nil, err
			}
			owners = append(owners, resp.GetOwners()...)
		}
		if len(owners) != len(names) {
			return nil, fmt.Errorf("topic %s: the server answered for %d partitions, want %d", topic, len(owners), len(names))
		}
		out := make([]partition, len(names))
		missing := ""
		for i, o := range owners {
			out[i] = partition{m.GetPartitions()[i].GetNumber(), names[i], o.GetBroker(), o.GetAddress()}
			if o.GetBroker() == "" {
				missing = names[i] + ": " + o.GetError()
			}
		}
		if missing == "" {
			return out, nil
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("no broker owns %s: %w", missing, ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// eachPartition asks the owner of every partition of a topic in turn.
func (q *asker) eachPartition(ctx context.Context, topic string, f func(context.Context, partition, adminv1.TopicAdminClient) error) error {
	parts, err := q.owners(ctx, topic)
	if err != nil {
		return err
	}
	for _, p := range parts {
		conn, err := q.connect(ctx, p.Address)
		if err != nil {
			return fmt.Errorf("broker %s, owner of %s: %w", p.Broker, p.Topic, err)
		}
		if err := f(ctx, p, adminv1.NewTopicAdminClient(conn)); err != nil {
			return fmt.Errorf("%s: %w", p.Topic, err)
		}
	}
	return nil
}
