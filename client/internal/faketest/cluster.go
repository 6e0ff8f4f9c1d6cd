// Package faketest is a small working twin of a cluster, for the client's tests:
// discovery and brokers that share one memory, on connections in memory that a
// test can cut. It speaks gRPC with generated code and the stock codec, as any
// other implementation of the protocol might.
//
// It keeps the promises a client builds on: a producer's batches are taken in the
// order of their chain, what was stored is recognised, deliveries follow permits
// and windows, what is not acknowledged comes again. A client that breaks a rule
// of the protocol is reported as a fault.
package faketest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/internal/entry"
	"github.com/magnetar-io/magnetar/internal/topicname"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
	discoveryv1 "github.com/magnetar-io/magnetar/proto/discovery/v1"
)

// Cluster is a cluster in memory. Everything in it is guarded by mu; calls that
// send to clients only queue.
type Cluster struct {
	mu      sync.Mutex
	nodes   map[string]*node
	topics  map[string]*topic // partitions, by long name
	maps    map[string]*discoveryv1.TopicMap
	faults  []string
	rng     *rand.Rand
	cutting int // one in so many requests cuts the connection it came on; 0: none
	cuts    int
	delay   time.Duration // answers wait for up to so long

	// WindowBytes and WindowBatches of producers, MaxMessage bytes; set before use.
	WindowBytes, WindowBatches, MaxMessage int
	// FirstEpoch is that of a new subscription.
	FirstEpoch uint64
	// Discard makes topics forget what they store, for benchmarks.
	Discard bool
}

// node is a discovery process or a broker.
type node struct {
	cluster *Cluster
	address string
	broker  bool
	server  *grpc.Server
	lis     *pipeListener
	down    bool
	frozen  map[string]string // owners by topic, as it knew them when it was cut off
}

// New returns a cluster with brokers at broker-1, broker-2 … and discovery
// processes at discovery-1 …
func New(seed uint64, brokers, discoveries int) *Cluster {
	c := &Cluster{nodes: map[string]*node{}, topics: map[string]*topic{}, maps: map[string]*discoveryv1.TopicMap{},
		rng: rand.New(rand.NewPCG(seed, seed)), WindowBytes: 4 << 20, WindowBatches: 256, MaxMessage: 5 << 20}
	for i := range brokers {
		c.start(fmt.Sprintf("broker-%d", i+1), true)
	}
	for i := range discoveries {
		c.start(fmt.Sprintf("discovery-%d", i+1), false)
	}
	return c
}

func (c *Cluster) start(address string, broker bool) {
	n := &node{cluster: c, address: address, broker: broker, lis: newPipeListener(), server: grpc.NewServer(grpc.MaxRecvMsgSize(64<<20),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second, PermitWithoutStream: true}))}
	discoveryv1.RegisterDiscoveryServer(n.server, &discovery{c: c, node: n})
	if broker {
		brokerv1.RegisterMessagingServer(n.server, &messaging{node: n})
	}
	c.nodes[address] = n
	go n.server.Serve(n.lis)
}

// Dial connects to a node; it is for client.WithDialer.
func (c *Cluster) Dial(ctx context.Context, address string) (net.Conn, error) {
	c.mu.Lock()
	n := c.nodes[address]
	down := n == nil || n.down
	c.mu.Unlock()
	if down {
		return nil, fmt.Errorf("dial %s: connection refused", address)
	}
	return n.lis.dial(ctx)
}

// Close stops all nodes and waits for them.
func (c *Cluster) Close() {
	for _, n := range c.nodes {
		n.lis.cutAll()
		n.server.Stop()
	}
}

// Kill cuts all connections of a node and refuses new ones until Restart.
// Topics of a broker have no owner until they are moved.
func (c *Cluster) Kill(address string) {
	c.mu.Lock()
	n := c.nodes[address]
	n.down = true
	c.mu.Unlock()
	n.lis.cutAll()
}

// Restart lets a node be reached again.
func (c *Cluster) Restart(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes[address].down = false
}

// Freeze cuts a node off from the others: it goes on to answer what it knows now.
func (c *Cluster) Freeze(address string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	frozen := map[string]string{}
	for name, t := range c.topics {
		frozen[name] = t.owner
	}
	c.nodes[address].frozen = frozen
}

// Cut cuts all connections of a node; new ones are taken.
func (c *Cluster) Cut(address string) {
	c.mu.Lock()
	n := c.nodes[address]
	c.mu.Unlock()
	n.lis.cutAll()
}

// CutOneIn makes one in n requests, by the seed, cut all connections of the
// broker it came to, before or after it was served; 0: none.
func (c *Cluster) CutOneIn(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cutting = n
}

// Cuts is how often CutOneIn cut.
func (c *Cluster) Cuts() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.cuts
}

// DelayAnswers makes each answer of a broker wait, by the seed, for up to most
// before it goes out, and those behind it on its stream with it. What is answered
// has taken effect already, so a client hears of it after whatever it did
// meanwhile; answers of different streams overtake each other.
func (c *Cluster) DelayAnswers(most time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay = most
}

// answerDelay draws how long the next answer waits.
func (c *Cluster) answerDelay() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.delay == 0 {
		return 0
	}
	return time.Duration(c.rng.Int64N(int64(c.delay)))
}

// Connected returns the names of the producers that are connected to a partition.
func (c *Cluster) Connected(name string) []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var names []string
	for _, p := range c.topics[topicname.MustParse(name).String()].open {
		names = append(names, p.name)
	}
	return names
}

// cutNow draws whether a request cuts, and whether before it is served.
func (c *Cluster) cutNow() (before, after bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cutting == 0 || c.rng.IntN(c.cutting) != 0 {
		return false, false
	}
	c.cuts++
	before = c.rng.IntN(2) == 0
	return before, !before
}

// Faults are the rules of the protocol that clients broke.
func (c *Cluster) Faults() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]string(nil), c.faults...)
}

func (c *Cluster) faultLocked(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

// CreateTopic makes a topic with so many partitions, 0: not partitioned, owned by
// the brokers in turn.
func (c *Cluster) CreateTopic(name string, partitions int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.createLocked(topicname.MustParse(name), partitions)
}

func (c *Cluster) createLocked(name topicname.Name, partitions int) *discoveryv1.TopicMap {
	m := discoveryv1.TopicMap_builder{Topic: new(name.String()), Found: new(true), Partitioned: new(partitions > 0), RoutingVersion: new(uint64(1))}.Build()
	first := int64(0)
	for i := range max(1, partitions) {
		p := name
		last := int64(1)<<32*int64(i+1)/int64(max(1, partitions)) - 1
		number := int32(-1)
		if partitions > 0 {
			p, number = name.WithPartition(i), int32(i)
		}
		m.SetPartitions(append(m.GetPartitions(), discoveryv1.Partition_builder{Number: &number, Topic: new(p.String()),
			KeyHashFirst: new(uint32(first)), KeyHashLast: new(uint32(last))}.Build()))
		first = last + 1
		c.topics[p.String()] = &topic{c: c, name: p.String(), partition: number, owner: fmt.Sprintf("broker-%d", 1+len(c.topics)%c.brokersLocked()),
			routing: 1, producers: map[string]*producer{}, subscriptions: map[string]*subscription{}}
	}
	c.maps[name.String()] = m
	return m
}

func (c *Cluster) brokersLocked() int {
	n := 0
	for _, x := range c.nodes {
		if x.broker {
			n++
		}
	}
	return n
}

// Move gives a partition to another broker, "" to none. With tell, the old one
// tells its clients where to.
func (c *Cluster) Move(name, to string, tell bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t := c.topics[topicname.MustParse(name).String()]
	t.owner = to
	if tell {
		t.closeAllLocked(brokerv1.Code_CODE_MOVED, to)
	}
}

// Split gives a partition's upper half of keys to a new partition.
func (c *Cluster) Split(name string, partition int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	long := topicname.MustParse(name)
	old := c.maps[long.String()]
	m := proto.CloneOf(old)
	m.SetRoutingVersion(old.GetRoutingVersion() + 1)
	parts := m.GetPartitions()
	from, number := parts[partition], len(parts)
	middle := from.GetKeyHashFirst() + (from.GetKeyHashLast()-from.GetKeyHashFirst())/2
	to := long.WithPartition(number).String()
	m.SetPartitions(append(parts, discoveryv1.Partition_builder{Number: new(int32(number)), Topic: new(to),
		KeyHashFirst: new(middle + 1), KeyHashLast: new(from.GetKeyHashLast())}.Build()))
	from.SetKeyHashLast(middle)
	c.maps[long.String()] = m
	c.topics[to] = &topic{c: c, name: to, partition: int32(number), owner: "broker-1", producers: map[string]*producer{}, subscriptions: map[string]*subscription{}}
	for _, p := range m.GetPartitions() {
		c.topics[p.GetTopic()].routing = m.GetRoutingVersion()
	}
}

// Owner of a partition.
func (c *Cluster) Owner(name string) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.topics[topicname.MustParse(name).String()].owner
}

// Delete deletes a partition and tells its clients.
func (c *Cluster) Delete(name string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	long := topicname.MustParse(name).String()
	c.topics[long].closeAllLocked(brokerv1.Code_CODE_TOPIC_DELETED, "")
	delete(c.topics, long)
	delete(c.maps, long)
}

// Stored is a message as it is stored.
type Stored struct {
	Topic    string
	Producer string
	Sequence uint64
	Key      string
	Value    string
	Batch    int // messages in its entry
	Header   entry.Header
}

// Messages returns all messages of a topic's partitions, each in order.
func (c *Cluster) Messages(name string) []Stored {
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Stored
	for _, p := range c.maps[topicname.MustParse(name).Base().String()].GetPartitions() {
		t := c.topics[p.GetTopic()]
		for _, e := range t.log {
			in, err := entry.Open(e.part, entry.MaxPayloadBytes)
			if err != nil {
				c.faultLocked("stored entry: %v", err)
				continue
			}
			var m entry.Message
			for {
				ok, err := in.Next(&m)
				if err != nil {
					c.faultLocked("stored entry: %v", err)
				}
				if !ok {
					break
				}
				all = append(all, Stored{t.name, in.Header.ProducerName, m.SequenceID, m.Key, string(m.Value), in.Header.Messages, in.Header})
			}
		}
	}
	return all
}

type discovery struct {
	discoveryv1.UnimplementedDiscoveryServer
	c    *Cluster
	node *node
}

func (d *discovery) Topics(_ context.Context, r *discoveryv1.TopicsRequest) (*discoveryv1.TopicsResponse, error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	out := &discoveryv1.TopicsResponse{}
	for _, t := range r.GetTopics() {
		name, err := topicname.Parse(t)
		m := d.c.maps[name.String()]
		switch {
		case err != nil:
			m = discoveryv1.TopicMap_builder{Topic: &t, Error: new(err.Error()), ErrorCode: new(uint32(3))}.Build()
		case m == nil && r.GetCreate():
			m = d.c.createLocked(name, 0)
		case m == nil:
			m = discoveryv1.TopicMap_builder{Topic: &t}.Build()
		}
		out.SetTopics(append(out.GetTopics(), m))
	}
	return out, nil
}

func (d *discovery) Lookup(_ context.Context, r *discoveryv1.LookupRequest) (*discoveryv1.LookupResponse, error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	out := &discoveryv1.LookupResponse{}
	for _, name := range r.GetTopics() {
		o := discoveryv1.Owner_builder{Topic: new(name)}.Build()
		if t := d.c.topics[name]; t == nil {
			o.SetError("no such topic " + name)
			o.SetErrorCode(5)
		} else {
			owner := t.owner
			if d.node.frozen != nil {
				owner = d.node.frozen[name]
			}
			o.SetBroker(owner)
			o.SetAddress(owner)
		}
		out.SetOwners(append(out.GetOwners(), o))
	}
	return out, nil
}

func (d *discovery) Cluster(context.Context, *discoveryv1.ClusterRequest) (*discoveryv1.ClusterResponse, error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	out := &discoveryv1.ClusterResponse{}
	for a, n := range d.c.nodes {
		if n.broker {
			out.SetBrokers(append(out.GetBrokers(), discoveryv1.Broker_builder{Id: new(a), Address: new(a)}.Build()))
		}
	}
	return out, nil
}
