package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Cluster is the cluster's own record.
type Cluster struct {
	ID      string // random; minted once, when the cluster is first started
	Name    string
	Created time.Time
}

// Cluster reads the cluster's record. ErrNotFound: nobody has started the
// cluster yet.
func (c *Catalog) Cluster(ctx context.Context) (Cluster, error) {
	kv, err := c.store.Get(ctx, c.layout.Cluster())
	if err != nil {
		return Cluster{}, err
	}
	if !kv.Exists() {
		return Cluster{}, fmt.Errorf("the metadata store holds no cluster at %s: %w", kv.Key, rpcerr.ErrNotFound)
	}
	var r metav1.Cluster
	if err := decode(kv, &r); err != nil {
		return Cluster{}, err
	}
	return Cluster{ID: r.GetId(), Name: r.GetName(), Created: time.UnixMilli(r.GetCreatedAtMs())}, nil
}

// Bootstrap makes what every cluster has and is not there yet: its record, and
// the namespace public/default. Any number of processes may do it at once; all
// get the same record.
func (c *Catalog) Bootstrap(ctx context.Context, name string) (Cluster, error) {
	record := metav1.Cluster_builder{
		Id:          proto.String(fmt.Sprintf("%016x%016x", c.rand(), c.rand())),
		Name:        proto.String(name),
		CreatedAtMs: proto.Int64(c.millis()),
	}.Build()
	_, err := c.commit(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: c.layout.Cluster()}},
		Ops:   []meta.Op{{Key: c.layout.Cluster(), Value: encode(record)}},
	})
	if err != nil {
		return Cluster{}, fmt.Errorf("make the cluster's record: %w", err)
	}
	cluster, err := c.Cluster(ctx)
	if err != nil {
		return Cluster{}, err
	}
	if err := c.CreateTenant(ctx, topicname.DefaultTenant); err != nil && !errors.Is(err, rpcerr.ErrExists) {
		return Cluster{}, err
	}
	err = c.CreateNamespace(ctx, topicname.DefaultTenant+"/"+topicname.DefaultNamespace, Policy{})
	if err != nil && !errors.Is(err, rpcerr.ErrExists) {
		return Cluster{}, err
	}
	return cluster, nil
}
