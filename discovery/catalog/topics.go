package catalog

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Topic is the record of one partition, or of a topic that has none. Its ID is
// never used again: chains, logs and cursors go by it, the name is only looked
// up (M3).
type Topic struct {
	Name     topicname.Name
	ID       uint64
	Deleting bool
	Created  time.Time
	Epoch    uint64 // of exclusive producers
	Revision meta.Revision
}

const schemePrefix = "persistent://"

// local is a topic's name within its namespace, with its partition.
func local(n topicname.Name) string {
	return strings.TrimPrefix(n.String(), schemePrefix+n.NamespaceName()+"/")
}

func named(namespace, local string) (topicname.Name, error) {
	return topicname.Parse(schemePrefix + namespace + "/" + local)
}

// TopicKey is where a topic partition's record stands.
func (c *Catalog) TopicKey(n topicname.Name) string {
	return c.layout.Topic(n.NamespaceName(), n.Hash(), local(n))
}

func (c *Catalog) partitionedKey(n topicname.Name) string {
	return c.layout.PartitionedTopic(n.NamespaceName(), n.Local)
}

func (c *Catalog) decodeTopic(n topicname.Name, kv meta.KV) (Topic, error) {
	var r metav1.Topic
	if err := decode(kv, &r); err != nil {
		return Topic{}, err
	}
	return Topic{
		Name:     n,
		ID:       r.GetId(),
		Deleting: r.GetState() == metav1.TopicState_TOPIC_STATE_DELETING,
		Created:  time.UnixMilli(r.GetCreatedAtMs()),
		Epoch:    r.GetEpoch(),
		Revision: kv.Revision,
	}, nil
}

func encodeTopic(t Topic) []byte {
	state := metav1.TopicState_TOPIC_STATE_ACTIVE
	if t.Deleting {
		state = metav1.TopicState_TOPIC_STATE_DELETING
	}
	return encode(metav1.Topic_builder{
		Id:          proto.Uint64(t.ID),
		State:       state.Enum(),
		CreatedAtMs: proto.Int64(t.Created.UnixMilli()),
		Partition:   proto.Int32(int32(t.Name.Partition)),
		Epoch:       proto.Uint64(t.Epoch),
	}.Build())
}

// Topic reads the record of one partition, or of a topic that has none.
func (c *Catalog) Topic(ctx context.Context, n topicname.Name) (Topic, error) {
	kv, err := c.store.Get(ctx, c.TopicKey(n))
	if err != nil {
		return Topic{}, err
	}
	if !kv.Exists() {
		return Topic{}, fmt.Errorf("topic %s: %w", n, rpcerr.ErrNotFound)
	}
	return c.decodeTopic(n, kv)
}

// TopicsOf reads the records of all topic partitions in a bundle, those being
// deleted included.
func (c *Catalog) TopicsOf(ctx context.Context, b bundle.Bundle) ([]Topic, error) {
	start, end := c.layout.TopicRange(b.Namespace, b.Range.First, b.Range.Last)
	return c.topicsIn(ctx, b.Namespace, start, end)
}

func (c *Catalog) topicsIn(ctx context.Context, namespace, start, end string) ([]Topic, error) {
	kvs, _, err := c.store.Range(ctx, start, end, 0)
	if err != nil {
		return nil, fmt.Errorf("list topics of %s: %w", namespace, err)
	}
	topics := make([]Topic, 0, len(kvs))
	for _, kv := range kvs {
		_, name, ok := c.layout.ParseTopic(namespace, kv.Key)
		if !ok {
			return nil, fmt.Errorf("key %s is none of a topic", kv.Key)
		}
		n, err := named(namespace, name)
		if err != nil {
			return nil, err
		}
		t, err := c.decodeTopic(n, kv)
		if err != nil {
			return nil, err
		}
		topics = append(topics, t)
	}
	return topics, nil
}

// Summary is a line in the list of a namespace's topics.
type Summary struct {
	Name       topicname.Name // the base, for a partitioned topic
	Partitions int            // 0: not partitioned
	Created    time.Time
	Deleting   bool
}

// List lists the topics of a namespace by name, a partitioned one once. A
// partition that belongs to no partitioned topic, as a creation or deletion that
// was broken off may leave, is listed by itself.
func (c *Catalog) List(ctx context.Context, namespace string) ([]Summary, error) {
	if _, err := c.Namespace(ctx, namespace); err != nil {
		return nil, err
	}
	topics, err := c.topicsIn(ctx, namespace, c.layout.Topics(namespace), "")
	if err != nil {
		return nil, err
	}
	kvs, _, err := c.store.Range(ctx, c.layout.PartitionedTopics(namespace), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list topics of %s: %w", namespace, err)
	}
	var list []Summary
	partitioned := make(map[topicname.Name]int)
	for _, kv := range kvs {
		n, err := named(namespace, strings.TrimPrefix(kv.Key, c.layout.PartitionedTopics(namespace)))
		if err != nil {
			return nil, err
		}
		m, err := decodeMap(n, kv)
		if err != nil {
			return nil, err
		}
		partitioned[n] = len(m.Partitions)
		list = append(list, Summary{Name: n, Partitions: len(m.Partitions), Created: m.Created, Deleting: m.Deleting})
	}
	for _, t := range topics {
		if t.Name.Partition < partitioned[t.Name.Base()] && t.Name.Partition >= 0 {
			continue
		}
		list = append(list, Summary{Name: t.Name, Created: t.Created, Deleting: t.Deleting})
	}
	slices.SortFunc(list, func(a, b Summary) int { return strings.Compare(a.Name.String(), b.Name.String()) })
	return list, nil
}
