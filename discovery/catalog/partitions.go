package catalog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// MaxPartitions bounds the partitions of a topic, so that its map stays a small
// record.
const MaxPartitions = 4096

// Map says of which partitions a topic consists and which message keys go where.
type Map struct {
	Topic          topicname.Name // base
	Partitioned    bool
	RoutingVersion uint64 // rises when the partitions change
	Partitions     []Partition
	Created        time.Time
	Deleting       bool
	revision       meta.Revision
}

// Partition of a topic; the only one, numbered Unpartitioned, of a topic that is
// not partitioned.
type Partition struct {
	Number   int
	Keys     bundle.Range // hashes of the message keys routed here
	Parents  []int        // partitions whose range this one took over
	SealedAt string       // last message id, once its range was taken over
}

// Name is the topic partition's name.
func (m Map) Name(p Partition) topicname.Name { return m.Topic.WithPartition(p.Number) }

func decodeMap(n topicname.Name, kv meta.KV) (Map, error) {
	var r metav1.PartitionedTopic
	if err := decode(kv, &r); err != nil {
		return Map{}, err
	}
	m := Map{
		Topic:          n.Base(),
		Partitioned:    true,
		RoutingVersion: r.GetRoutingVersion(),
		Created:        time.UnixMilli(r.GetCreatedAtMs()),
		Deleting:       r.GetState() == metav1.TopicState_TOPIC_STATE_DELETING,
		revision:       kv.Revision,
	}
	for _, p := range r.GetPartitions() {
		part := Partition{Number: int(p.GetNumber()), Keys: bundle.Range{First: p.GetKeyHashFirst(), Last: p.GetKeyHashLast()}, SealedAt: p.GetSealedAt()}
		for _, parent := range p.GetParents() {
			part.Parents = append(part.Parents, int(parent))
		}
		m.Partitions = append(m.Partitions, part)
	}
	return m, nil
}

func encodeMap(m Map) []byte {
	state := metav1.TopicState_TOPIC_STATE_ACTIVE
	if m.Deleting {
		state = metav1.TopicState_TOPIC_STATE_DELETING
	}
	b := metav1.PartitionedTopic_builder{
		RoutingVersion: proto.Uint64(m.RoutingVersion),
		State:          state.Enum(),
		CreatedAtMs:    proto.Int64(m.Created.UnixMilli()),
	}
	for _, p := range m.Partitions {
		part := metav1.Partition_builder{
			Number:       proto.Int32(int32(p.Number)),
			KeyHashFirst: proto.Uint32(p.Keys.First),
			KeyHashLast:  proto.Uint32(p.Keys.Last),
		}
		for _, parent := range p.Parents {
			part.Parents = append(part.Parents, int32(parent))
		}
		if p.SealedAt != "" {
			part.SealedAt = proto.String(p.SealedAt)
		}
		b.Partitions = append(b.Partitions, part.Build())
	}
	return encode(b.Build())
}

// DecodeMap reads the record of a partitioned topic that a watch on all of them
// told of.
func (c *Catalog) DecodeMap(kv meta.KV) (Map, error) {
	namespace, local, ok := c.layout.ParseAnyPartitionedTopic(kv.Key)
	if !ok {
		return Map{}, fmt.Errorf("key %s is none of a partitioned topic", kv.Key)
	}
	n, err := named(namespace, local)
	if err != nil {
		return Map{}, err
	}
	return decodeMap(n, kv)
}

// Map reads the partitions of a topic, given by its base name, whether it is
// partitioned or not. ErrNotFound: there is no such topic, or it is being
// deleted.
func (c *Catalog) Map(ctx context.Context, n topicname.Name) (Map, error) {
	m, err := c.mapOf(ctx, n)
	if err == nil && m.Deleting {
		err = fmt.Errorf("topic %s is being deleted: %w", n, rpcerr.ErrNotFound)
	}
	return m, err
}

func (c *Catalog) mapOf(ctx context.Context, n topicname.Name) (Map, error) {
	kv, err := c.store.Get(ctx, c.partitionedKey(n))
	if err != nil {
		return Map{}, err
	}
	if kv.Exists() {
		return decodeMap(n, kv)
	}
	t, err := c.Topic(ctx, n.Base())
	if err != nil {
		return Map{}, err
	}
	return unpartitioned(t), nil
}

func unpartitioned(t Topic) Map {
	return Map{
		Topic: t.Name, Created: t.Created, Deleting: t.Deleting, revision: t.Revision,
		Partitions: []Partition{{Number: topicname.Unpartitioned, Keys: bundle.All}},
	}
}

// EnsureTopic returns the map of a topic, creating it with its namespace's
// default number of partitions when there is none.
func (c *Catalog) EnsureTopic(ctx context.Context, n topicname.Name) (Map, error) {
	for {
		m, err := c.Map(ctx, n)
		if !errors.Is(err, rpcerr.ErrNotFound) {
			return m, err
		}
		ns, err := c.Namespace(ctx, n.NamespaceName())
		if err != nil {
			return Map{}, err
		}
		m, err = c.CreateTopic(ctx, n, ns.Policy.DefaultPartitions)
		if !errors.Is(err, rpcerr.ErrExists) { // else another made it meanwhile
			return m, err
		}
	}
}

// CreateTopic makes a topic with the given number of partitions; 0: not
// partitioned. ErrExists: there is one. ErrNotFound: no such namespace.
// ErrRefused: an older one of that name, or its namespace, is being deleted.
//
// The record of a partitioned topic is written last, after those of its
// partitions, in steps; so a topic that is found is whole. What a creation that
// was broken off left of its partitions, the next one takes over.
func (c *Catalog) CreateTopic(ctx context.Context, n topicname.Name, partitions int) (Map, error) {
	if n.Partition != topicname.Unpartitioned {
		return Map{}, fmt.Errorf("create topic %s: partitions are created with their topic: %w", n, rpcerr.ErrInvalid)
	}
	if partitions < 0 || partitions > MaxPartitions {
		return Map{}, fmt.Errorf("create topic %s: %d partitions, at most %d: %w", n, partitions, MaxPartitions, rpcerr.ErrInvalid)
	}
	var m Map
	var err error
	if partitions == 0 {
		m, err = c.createUnpartitioned(ctx, n)
	} else {
		m, err = c.createPartitioned(ctx, n, partitions)
	}
	if err != nil {
		return Map{}, fmt.Errorf("create topic %s: %w", n, err)
	}
	return m, nil
}

// open returns the condition that a topic's namespace takes new topics.
func (c *Catalog) open(ctx context.Context, namespace string) (meta.Cond, error) {
	ns, err := c.Namespace(ctx, namespace)
	if err == nil && ns.Deleting {
		err = fmt.Errorf("namespace %s is being deleted: %w", namespace, rpcerr.ErrRefused)
	}
	return meta.Cond{Key: c.layout.Namespace(namespace), Revision: ns.Revision}, err
}

// free reports why a topic of that name cannot be created.
func (c *Catalog) free(ctx context.Context, n topicname.Name) error {
	m, err := c.mapOf(ctx, n)
	switch {
	case errors.Is(err, rpcerr.ErrNotFound):
		return nil
	case err != nil:
		return err
	case m.Deleting:
		return fmt.Errorf("the topic of that name is being deleted: %w", rpcerr.ErrRefused)
	}
	return rpcerr.ErrExists
}

func (c *Catalog) createUnpartitioned(ctx context.Context, n topicname.Name) (Map, error) {
	for {
		open, err := c.open(ctx, n.NamespaceName())
		if err != nil {
			return Map{}, err
		}
		if err := c.free(ctx, n); err != nil {
			return Map{}, err
		}
		t, err := c.newTopic(ctx, n)
		if err != nil {
			return Map{}, err
		}
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{open, {Key: c.TopicKey(n)}, {Key: c.partitionedKey(n)}},
			Ops:   []meta.Op{{Key: c.TopicKey(n), Value: encodeTopic(t)}},
		})
		if err != nil || done {
			return unpartitioned(t), err
		}
	}
}

func (c *Catalog) newTopic(ctx context.Context, n topicname.Name) (Topic, error) {
	id, err := c.newID(ctx, 0)
	if err != nil {
		return Topic{}, fmt.Errorf("draw an id: %w", err)
	}
	return Topic{Name: n, ID: id, Created: time.UnixMilli(c.millis())}, nil
}

func (c *Catalog) createPartitioned(ctx context.Context, n topicname.Name, partitions int) (Map, error) {
	for {
		open, err := c.open(ctx, n.NamespaceName())
		if err != nil {
			return Map{}, err
		}
		if err := c.free(ctx, n); err != nil {
			return Map{}, err
		}
		if err := c.createPartitions(ctx, n, partitions, open); err != nil {
			if errors.Is(err, errMoved) {
				continue
			}
			return Map{}, err
		}
		m := Map{Topic: n, Partitioned: true, RoutingVersion: 1, Created: time.UnixMilli(c.millis())}
		for i, keys := range bundle.Ranges(partitions) {
			m.Partitions = append(m.Partitions, Partition{Number: i, Keys: keys})
		}
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{open, {Key: c.partitionedKey(n)}, {Key: c.TopicKey(n)}},
			Ops:   []meta.Op{{Key: c.partitionedKey(n), Value: encodeMap(m)}},
		})
		if err != nil || done {
			return m, err
		}
	}
}

// errMoved reports that what a step was decided on changed.
var errMoved = errors.New("catalog: changed meanwhile")

// createStep is how many partitions one transaction makes: each is a condition
// and an operation, and two conditions stand beside them.
const createStep = meta.MaxOps - 2

// createPartitions makes the records of the partitions that are not there yet.
func (c *Catalog) createPartitions(ctx context.Context, n topicname.Name, partitions int, open meta.Cond) error {
	for first := 0; first < partitions; first += createStep {
		txn := meta.Txn{Conds: []meta.Cond{open, {Key: c.partitionedKey(n)}}}
		for i := first; i < min(first+createStep, partitions); i++ {
			p := n.WithPartition(i)
			t, err := c.newTopic(ctx, p)
			if err != nil {
				return err
			}
			txn.Conds = append(txn.Conds, meta.Cond{Key: c.TopicKey(p)})
			txn.Ops = append(txn.Ops, meta.Op{Key: c.TopicKey(p), Value: encodeTopic(t)})
		}
		for len(txn.Ops) > 0 {
			done, err := c.commit(ctx, txn)
			if err != nil {
				return err
			}
			if done {
				break
			}
			missing, err := c.missing(ctx, n, txn)
			if err != nil {
				return err
			}
			if len(missing.Ops) == len(txn.Ops) { // it was another condition
				return errMoved
			}
			txn = missing
		}
	}
	return nil
}

// missing leaves of a step what is not there yet.
func (c *Catalog) missing(ctx context.Context, n topicname.Name, txn meta.Txn) (meta.Txn, error) {
	rest := meta.Txn{Conds: txn.Conds[:2:2]}
	for _, op := range txn.Ops {
		kv, err := c.store.Get(ctx, op.Key)
		if err != nil {
			return meta.Txn{}, err
		}
		if !kv.Exists() {
			rest.Conds = append(rest.Conds, meta.Cond{Key: op.Key})
			rest.Ops = append(rest.Ops, op)
			continue
		}
		t, err := c.decodeTopic(n, kv)
		if err != nil {
			return meta.Txn{}, err
		}
		if t.Deleting {
			return meta.Txn{}, fmt.Errorf("a partition of that name, topic %d, is being deleted: %w", t.ID, rpcerr.ErrRefused)
		}
	}
	return rest, nil
}

// Route returns the number of the partition a key hash belongs to.
func (m Map) Route(keyHash uint32) (int, bool) {
	for _, p := range m.Partitions {
		if p.SealedAt == "" && p.Keys.Contains(keyHash) {
			return p.Number, true
		}
	}
	return math.MinInt, false
}
