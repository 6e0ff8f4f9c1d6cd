package catalog

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
)

// Deletion of a topic takes these steps (M3); a crash anywhere leaves a state
// from which the next owner goes on:
//
//	1  MarkDeleting: the records of the topic and then of its partitions are
//	   ACTIVE → DELETING, each by compare-and-swap. It is not found any more.
//	2  the owner of each partition drops its state from the bundle log and takes
//	   its ledgers out of the chain, tombstoning each
//	3  Remove: the partition's record goes, once its chain is empty; with the last
//	   partition goes the record of the partitioned topic

// MarkDeleting begins the deletion of a topic, given by its base name, and
// returns the partitions that are still there, for their owners to go on with.
// ErrNotFound: there is no such topic. Doing it again is no error.
//
// A partition that belongs to no partitioned topic can be named itself.
func (c *Catalog) MarkDeleting(ctx context.Context, n topicname.Name) ([]Topic, error) {
	m, err := c.mapOf(ctx, n.Base())
	switch {
	case errors.Is(err, rpcerr.ErrNotFound) && n.Partition != topicname.Unpartitioned:
		m = Map{Topic: n.Base(), Partitions: []Partition{{Number: n.Partition}}}
	case err != nil:
		return nil, fmt.Errorf("delete topic %s: %w", n, err)
	case n.Partition >= len(m.Partitions) && m.Partitioned:
		m = Map{Topic: n.Base(), Partitions: []Partition{{Number: n.Partition}}}
	case n.Partition != topicname.Unpartitioned:
		return nil, fmt.Errorf("delete topic %s: a partition goes with its topic: %w", n, rpcerr.ErrRefused)
	}
	if m.Partitioned {
		if err := c.markMap(ctx, m); err != nil {
			return nil, fmt.Errorf("delete topic %s: %w", n, err)
		}
	}
	var left []Topic
	for _, p := range m.Partitions {
		t, err := c.markTopic(ctx, m.Name(p))
		if errors.Is(err, rpcerr.ErrNotFound) {
			if !m.Partitioned {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("delete topic %s: %w", n, err)
		}
		left = append(left, t)
	}
	if m.Partitioned && len(left) == 0 {
		return nil, c.removeMap(ctx, n.Base())
	}
	return left, nil
}

func (c *Catalog) markMap(ctx context.Context, m Map) error {
	for !m.Deleting {
		marked := m
		marked.Deleting = true
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: c.partitionedKey(m.Topic), Revision: m.revision}},
			Ops:   []meta.Op{{Key: c.partitionedKey(m.Topic), Value: encodeMap(marked)}},
		})
		if err != nil || done {
			return err
		}
		if m, err = c.mapOf(ctx, m.Topic); err != nil {
			return err
		}
	}
	return nil
}

func (c *Catalog) markTopic(ctx context.Context, n topicname.Name) (Topic, error) {
	for {
		t, err := c.Topic(ctx, n)
		if err != nil || t.Deleting {
			return t, err
		}
		marked := t
		marked.Deleting = true
		if _, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: c.TopicKey(n), Revision: t.Revision}},
			Ops:   []meta.Op{{Key: c.TopicKey(n), Value: encodeTopic(marked)}},
		}); err != nil {
			return Topic{}, err
		}
	}
}

// Remove takes away the record of a topic partition that is being deleted and
// whose chain is empty, under the owner's guard; with a partitioned topic's last
// partition goes the topic's own record. ErrRefused: it is not being deleted,
// its chain has ledgers, or the guard does not hold.
func (c *Catalog) Remove(ctx context.Context, t Topic, guard []meta.Cond) error {
	now, err := c.Topic(ctx, t.Name)
	if err == nil && now.ID == t.ID {
		err = c.removeTopic(ctx, now, guard)
	} else if err == nil || errors.Is(err, rpcerr.ErrNotFound) {
		err = nil // removed before, and perhaps made anew
	}
	if err == nil && t.Name.Partition != topicname.Unpartitioned {
		err = c.removeMapIfLast(ctx, t.Name)
	}
	if err != nil {
		return fmt.Errorf("remove topic %s: %w", t.Name, err)
	}
	return nil
}

func (c *Catalog) removeTopic(ctx context.Context, t Topic, guard []meta.Cond) error {
	if !t.Deleting {
		return fmt.Errorf("it is not being deleted: %w", rpcerr.ErrRefused)
	}
	link, err := c.firstKey(ctx, c.layout.Chain(t.ID))
	if err != nil {
		return err
	}
	if link != "" {
		return fmt.Errorf("its chain has ledgers: %w", rpcerr.ErrRefused)
	}
	done, err := c.commit(ctx, meta.Txn{
		Conds: append([]meta.Cond{{Key: c.TopicKey(t.Name), Revision: t.Revision}}, guard...),
		Ops:   []meta.Op{{Key: c.TopicKey(t.Name), Delete: true}},
	})
	if err == nil && !done {
		err = fmt.Errorf("its record or its owner changed: %w", rpcerr.ErrRefused)
	}
	return err
}

// removeMapIfLast removes the record of a partitioned topic that is being
// deleted when none of its partitions is left. It looks at the partition after
// n's first, so that removing them in order looks once each.
func (c *Catalog) removeMapIfLast(ctx context.Context, n topicname.Name) error {
	next, err := c.store.Get(ctx, c.TopicKey(n.WithPartition(n.Partition+1)))
	if err != nil || next.Exists() {
		return err
	}
	m, err := c.mapOf(ctx, n.Base())
	if errors.Is(err, rpcerr.ErrNotFound) {
		return nil
	}
	if err != nil || !m.Partitioned || !m.Deleting {
		return err
	}
	for _, p := range m.Partitions {
		kv, err := c.store.Get(ctx, c.TopicKey(m.Name(p)))
		if err != nil || kv.Exists() {
			return err
		}
	}
	return c.removeMap(ctx, n.Base())
}

func (c *Catalog) removeMap(ctx context.Context, n topicname.Name) error {
	m, err := c.mapOf(ctx, n)
	if errors.Is(err, rpcerr.ErrNotFound) {
		return nil
	}
	if err != nil || !m.Partitioned || !m.Deleting {
		return err
	}
	_, err = c.commit(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: c.partitionedKey(n), Revision: m.revision}},
		Ops:   []meta.Op{{Key: c.partitionedKey(n), Delete: true}},
	})
	return err
}
