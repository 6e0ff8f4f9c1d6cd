package catalog

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Policy is what holds for the topics of a namespace.
type Policy struct {
	// DefaultPartitions is how many partitions a topic made on first use has; 0: it
	// is not partitioned.
	DefaultPartitions int
	// RetentionSeconds and RetentionBytes say how much is kept that every
	// subscription has acknowledged: -1 without limit, 0 nothing.
	RetentionSeconds int64
	RetentionBytes   int64
	// Bundles is how many bundles the namespace begins with; 0: DefaultBundles.
	Bundles int
}

// DefaultBundles of a namespace.
const DefaultBundles = 32

// Validate reports a policy that cannot be.
func (p Policy) Validate() error {
	switch {
	case p.DefaultPartitions < 0 || p.DefaultPartitions > MaxPartitions:
		return fmt.Errorf("%d default partitions, at most %d: %w", p.DefaultPartitions, MaxPartitions, rpcerr.ErrInvalid)
	case p.RetentionSeconds < -1 || p.RetentionBytes < -1:
		return fmt.Errorf("retention of %d seconds and %d bytes, -1 is without limit: %w", p.RetentionSeconds, p.RetentionBytes, rpcerr.ErrInvalid)
	case p.Bundles < 0 || p.Bundles > bundle.MaxBundles:
		return fmt.Errorf("%d bundles, at most %d: %w", p.Bundles, bundle.MaxBundles, rpcerr.ErrInvalid)
	}
	return nil
}

// Namespace is a namespace's record.
type Namespace struct {
	Name     string // TENANT/NAMESPACE
	Created  time.Time
	Policy   Policy
	Deleting bool
	Revision meta.Revision
}

func (c *Catalog) decodeNamespace(kv meta.KV) (Namespace, error) {
	var r metav1.Namespace
	if err := decode(kv, &r); err != nil {
		return Namespace{}, err
	}
	return Namespace{
		Name:    strings.TrimPrefix(kv.Key, c.layout.Namespaces("")),
		Created: time.UnixMilli(r.GetCreatedAtMs()),
		Policy: Policy{
			DefaultPartitions: int(r.GetDefaultPartitions()),
			RetentionSeconds:  r.GetRetentionSeconds(),
			RetentionBytes:    r.GetRetentionBytes(),
			Bundles:           int(r.GetInitialBundles()),
		},
		Deleting: r.GetDeleting(),
		Revision: kv.Revision,
	}, nil
}

func encodeNamespace(n Namespace) []byte {
	return encode(metav1.Namespace_builder{
		CreatedAtMs:       proto.Int64(n.Created.UnixMilli()),
		DefaultPartitions: proto.Uint32(uint32(n.Policy.DefaultPartitions)),
		RetentionSeconds:  proto.Int64(n.Policy.RetentionSeconds),
		RetentionBytes:    proto.Int64(n.Policy.RetentionBytes),
		InitialBundles:    proto.Uint32(uint32(n.Policy.Bundles)),
		Deleting:          proto.Bool(n.Deleting),
	}.Build())
}

// CreateNamespace makes a namespace, given as TENANT/NAMESPACE, and its bundles,
// in one transaction. ErrExists: there is one. ErrNotFound: no such tenant.
func (c *Catalog) CreateNamespace(ctx context.Context, namespace string, p Policy) error {
	tenant, _, err := topicname.ParseNamespace(namespace)
	if err != nil {
		return err
	}
	if err := p.Validate(); err != nil {
		return fmt.Errorf("namespace %s: %w", namespace, err)
	}
	p.Bundles = cmp.Or(p.Bundles, DefaultBundles)
	for {
		t, tenantAt, err := c.tenant(ctx, tenant)
		if err != nil {
			return fmt.Errorf("create namespace %s: %w", namespace, err)
		}
		if t.GetDeleting() {
			return fmt.Errorf("create namespace %s: tenant %s is being deleted: %w", namespace, tenant, rpcerr.ErrRefused)
		}
		key := c.layout.Namespace(namespace)
		txn := meta.Txn{
			Conds: []meta.Cond{{Key: key}, {Key: c.layout.Tenant(tenant), Revision: tenantAt}},
			Ops:   []meta.Op{{Key: key, Value: encodeNamespace(Namespace{Created: c.now(), Policy: p})}},
		}
		for _, b := range bundle.Cut(namespace, p.Bundles) {
			txn.Ops = append(txn.Ops, meta.Op{Key: c.layout.BundleLog(b.String()), Value: encode(&metav1.BundleLog{})})
		}
		done, err := c.commit(ctx, txn)
		if err != nil {
			return fmt.Errorf("create namespace %s: %w", namespace, err)
		}
		if done {
			return nil
		}
		kv, err := c.store.Get(ctx, key)
		if err != nil {
			return fmt.Errorf("create namespace %s: %w", namespace, err)
		}
		if kv.Exists() {
			return fmt.Errorf("create namespace %s: %w", namespace, rpcerr.ErrExists)
		}
	}
}

// Namespace reads one namespace.
func (c *Catalog) Namespace(ctx context.Context, namespace string) (Namespace, error) {
	if _, _, err := topicname.ParseNamespace(namespace); err != nil {
		return Namespace{}, err
	}
	kv, err := c.store.Get(ctx, c.layout.Namespace(namespace))
	if err != nil {
		return Namespace{}, err
	}
	if !kv.Exists() {
		return Namespace{}, fmt.Errorf("namespace %s: %w", namespace, rpcerr.ErrNotFound)
	}
	return c.decodeNamespace(kv)
}

// Namespaces lists the namespaces of a tenant, of all for "", in order.
func (c *Catalog) Namespaces(ctx context.Context, tenant string) ([]Namespace, error) {
	kvs, _, err := c.store.Range(ctx, c.layout.Namespaces(tenant), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	if tenant != "" && len(kvs) == 0 {
		if _, _, err := c.tenant(ctx, tenant); err != nil {
			return nil, fmt.Errorf("list namespaces: %w", err)
		}
	}
	namespaces := make([]Namespace, len(kvs))
	for i, kv := range kvs {
		if namespaces[i], err = c.decodeNamespace(kv); err != nil {
			return nil, err
		}
	}
	return namespaces, nil
}

// SetPolicy changes a namespace's policy. The number of bundles stays what it
// was at the beginning.
func (c *Catalog) SetPolicy(ctx context.Context, namespace string, p Policy) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("namespace %s: %w", namespace, err)
	}
	for {
		n, err := c.Namespace(ctx, namespace)
		if err != nil {
			return err
		}
		p.Bundles = n.Policy.Bundles
		n.Policy = p
		done, err := c.commit(ctx, meta.Txn{
			Conds: []meta.Cond{{Key: c.layout.Namespace(namespace), Revision: n.Revision}},
			Ops:   []meta.Op{{Key: c.layout.Namespace(namespace), Value: encodeNamespace(n)}},
		})
		if err != nil {
			return fmt.Errorf("change the policy of namespace %s: %w", namespace, err)
		}
		if done {
			return nil
		}
	}
}

// DeleteNamespace removes a namespace without topics, its bundles and their
// logs. ErrRefused: it has topics. Owners of its bundles see their owner keys go
// and drop them.
func (c *Catalog) DeleteNamespace(ctx context.Context, namespace string) error {
	if _, _, err := topicname.ParseNamespace(namespace); err != nil {
		return err
	}
	return c.remove(ctx, removal{
		key:  c.layout.Namespace(namespace),
		what: "namespace " + namespace,
		empty: func(ctx context.Context) (string, error) {
			name, err := c.firstKey(ctx, c.layout.PartitionedTopics(namespace))
			if err == nil && name == "" {
				name, err = c.firstKey(ctx, c.layout.Topics(namespace))
				if _, local, ok := strings.Cut(name, "/"); ok {
					name = local
				}
			}
			if name == "" || err != nil {
				return "", err
			}
			return "topic " + name, nil
		},
		mark: func(kv meta.KV, deleting bool) ([]byte, error) {
			n, err := c.decodeNamespace(kv)
			n.Deleting = deleting
			return encodeNamespace(n), err
		},
		before: func(ctx context.Context) error { return c.deleteBundles(ctx, namespace) },
	})
}
