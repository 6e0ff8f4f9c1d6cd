package catalog

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	"github.com/magnetar-io/magnetar/internal/topicname"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// CreateTenant makes a tenant. ErrExists: there is one.
func (c *Catalog) CreateTenant(ctx context.Context, tenant string) error {
	if err := topicname.ValidateTenant(tenant); err != nil {
		return err
	}
	key := c.layout.Tenant(tenant)
	done, err := c.commit(ctx, meta.Txn{
		Conds: []meta.Cond{{Key: key}},
		Ops:   []meta.Op{{Key: key, Value: encode(metav1.Tenant_builder{CreatedAtMs: proto.Int64(c.millis())}.Build())}},
	})
	if err == nil && !done {
		err = rpcerr.ErrExists
	}
	if err != nil {
		return fmt.Errorf("create tenant %s: %w", tenant, err)
	}
	return nil
}

// Tenants lists all tenants, in order.
func (c *Catalog) Tenants(ctx context.Context) ([]string, error) {
	kvs, _, err := c.store.Range(ctx, c.layout.Tenants(), "", 0)
	if err != nil {
		return nil, fmt.Errorf("list tenants: %w", err)
	}
	tenants := make([]string, len(kvs))
	for i, kv := range kvs {
		tenants[i] = strings.TrimPrefix(kv.Key, c.layout.Tenants())
	}
	return tenants, nil
}

// tenant reads a tenant that is not being deleted, and its revision.
func (c *Catalog) tenant(ctx context.Context, tenant string) (*metav1.Tenant, meta.Revision, error) {
	kv, err := c.store.Get(ctx, c.layout.Tenant(tenant))
	if err != nil {
		return nil, 0, err
	}
	if !kv.Exists() {
		return nil, 0, fmt.Errorf("tenant %s: %w", tenant, rpcerr.ErrNotFound)
	}
	r := new(metav1.Tenant)
	return r, kv.Revision, decode(kv, r)
}

// DeleteTenant removes a tenant without namespaces. ErrRefused: it has some.
//
// It is closed to new namespaces first: a namespace is created on the condition
// that its tenant's record is as it was read, so none can slip in between the
// look and the removal.
func (c *Catalog) DeleteTenant(ctx context.Context, tenant string) error {
	if err := topicname.ValidateTenant(tenant); err != nil {
		return err
	}
	remove := removal{
		key:   c.layout.Tenant(tenant),
		what:  "tenant " + tenant,
		empty: func(ctx context.Context) (string, error) { return c.firstKey(ctx, c.layout.Namespaces(tenant)) },
		mark: func(kv meta.KV, deleting bool) ([]byte, error) {
			var r metav1.Tenant
			if err := decode(kv, &r); err != nil {
				return nil, err
			}
			r.SetDeleting(deleting)
			return encode(&r), nil
		},
	}
	return c.remove(ctx, remove)
}

// firstKey returns what follows prefix in its first key; "" when there is none.
func (c *Catalog) firstKey(ctx context.Context, prefix string) (string, error) {
	kvs, _, err := c.store.Range(ctx, prefix, "", 1)
	if err != nil || len(kvs) == 0 {
		return "", err
	}
	return strings.TrimPrefix(kvs[0].Key, prefix), nil
}
