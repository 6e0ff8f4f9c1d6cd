package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/internal/config"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

func (a *app) tenantCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "tenant", Short: "Tenants: who the namespaces belong to"}
	type tenant struct {
		Tenant     string   `json:"tenant"`
		Namespaces []string `json:"namespaces,omitempty"`
	}
	cmd.AddCommand(
		&cobra.Command{
			Use: "create TENANT", Short: "Create a tenant", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
					_, err := q.admin.CreateTenant(ctx, adminv1.CreateTenantRequest_builder{Tenant: new(args[0])}.Build())
					return a.did(err, "created tenant %s", args[0])
				})
			},
		},
		&cobra.Command{
			Use: "list", Short: "List the tenants", Args: cobra.NoArgs,
			RunE: func(c *cobra.Command, args []string) error {
				return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
					resp, err := q.admin.ListTenants(ctx, &adminv1.ListTenantsRequest{})
					if err != nil {
						return err
					}
					var rows []tenant
					for _, t := range resp.GetTenants() {
						rows = append(rows, tenant{Tenant: t})
					}
					return printRows(a, rows, []column[tenant]{{"TENANT", func(t tenant) string { return t.Tenant }}})
				})
			},
		},
		&cobra.Command{
			Use: "describe TENANT", Short: "Show a tenant's namespaces", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
					resp, err := q.admin.ListNamespaces(ctx, adminv1.ListNamespacesRequest_builder{Tenant: new(args[0])}.Build())
					if err != nil {
						return err
					}
					return printOne(a, tenant{args[0], resp.GetNamespaces()}, []column[tenant]{
						{"tenant", func(t tenant) string { return t.Tenant }},
						{"namespaces", func(t tenant) string { return fmt.Sprint(t.Namespaces) }},
					})
				})
			},
		},
		&cobra.Command{
			Use: "delete TENANT", Short: "Delete a tenant that has no namespaces", Args: cobra.ExactArgs(1),
			RunE: func(c *cobra.Command, args []string) error {
				return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
					_, err := q.admin.DeleteTenant(ctx, adminv1.DeleteTenantRequest_builder{Tenant: new(args[0])}.Build())
					return a.did(err, "deleted tenant %s", args[0])
				})
			},
		},
	)
	return cmd
}

// namespaceView is a namespace as printed.
type namespaceView struct {
	Namespace         string `json:"namespace"`
	DefaultPartitions uint32 `json:"defaultPartitions"`
	RetentionSeconds  int64  `json:"retentionSeconds"`
	RetentionBytes    int64  `json:"retentionBytes"`
	Bundles           uint32 `json:"bundles"`
	Topics            uint64 `json:"topics"`
	CreatedAt         string `json:"createdAt,omitempty"`
}

func (a *app) namespaceCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "namespace", Short: "Namespaces: where policies are set"}
	create := &cobra.Command{Use: "create TENANT/NAMESPACE", Short: "Create a namespace", Args: cobra.ExactArgs(1)}
	partitions := create.Flags().Uint32("partitions", 0, "partitions of a topic made on first use; 0: not partitioned")
	retention := create.Flags().String("retention", "0", "keep acknowledged messages for this long, such as 24h; -1: for ever")
	retentionBytes := create.Flags().String("retention-bytes", "-1", "keep at most this much of them per partition; -1: no limit")
	bundles := create.Flags().Uint32("bundles", 0, "units of ownership; 0: 32")
	create.RunE = func(c *cobra.Command, args []string) error {
		seconds, err := retentionSeconds(*retention)
		if err != nil {
			return usagef(c, "--retention: %v", err)
		}
		size := config.ByteSize(-1)
		if *retentionBytes != "-1" {
			if size, err = config.ParseByteSize(*retentionBytes); err != nil {
				return usagef(c, "--retention-bytes: %v", err)
			}
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			_, err := q.admin.CreateNamespace(ctx, adminv1.CreateNamespaceRequest_builder{
				Namespace: &args[0],
				Policy: adminv1.NamespacePolicy_builder{
					DefaultPartitions: partitions, RetentionSeconds: &seconds,
					RetentionBytes: new(int64(size)), Bundles: bundles,
				}.Build(),
			}.Build())
			return a.did(err, "created namespace %s", args[0])
		})
	}
	list := &cobra.Command{Use: "list [TENANT]", Short: "List the namespaces", Args: cobra.MaximumNArgs(1)}
	list.RunE = func(c *cobra.Command, args []string) error {
		tenant := ""
		if len(args) == 1 {
			tenant = args[0]
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.ListNamespaces(ctx, adminv1.ListNamespacesRequest_builder{Tenant: new(tenant)}.Build())
			if err != nil {
				return err
			}
			type row struct {
				Namespace string `json:"namespace"`
			}
			var rows []row
			for _, n := range resp.GetNamespaces() {
				rows = append(rows, row{n})
			}
			return printRows(a, rows, []column[row]{{"NAMESPACE", func(r row) string { return r.Namespace }}})
		})
	}
	describe := &cobra.Command{Use: "describe TENANT/NAMESPACE", Short: "Show a namespace and its policies", Args: cobra.ExactArgs(1)}
	describe.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.DescribeNamespace(ctx, adminv1.DescribeNamespaceRequest_builder{Namespace: new(args[0])}.Build())
			if err != nil {
				return err
			}
			p := resp.GetPolicy()
			v := namespaceView{resp.GetNamespace(), p.GetDefaultPartitions(), p.GetRetentionSeconds(), p.GetRetentionBytes(),
				p.GetBundles(), resp.GetTopics(), timeText(resp.GetCreatedAtMs())}
			return printOne(a, v, []column[namespaceView]{
				{"namespace", func(v namespaceView) string { return v.Namespace }},
				{"default partitions", func(v namespaceView) string { return fmt.Sprint(v.DefaultPartitions) }},
				{"retention", func(v namespaceView) string { return retentionText(v.RetentionSeconds, v.RetentionBytes) }},
				{"bundles", func(v namespaceView) string { return fmt.Sprint(v.Bundles) }},
				{"topics", func(v namespaceView) string { return fmt.Sprint(v.Topics) }},
				{"created", func(v namespaceView) string { return v.CreatedAt }},
			})
		})
	}
	remove := &cobra.Command{Use: "delete TENANT/NAMESPACE", Short: "Delete a namespace that has no topics", Args: cobra.ExactArgs(1)}
	remove.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			_, err := q.admin.DeleteNamespace(ctx, adminv1.DeleteNamespaceRequest_builder{Namespace: new(args[0])}.Build())
			return a.did(err, "deleted namespace %s", args[0])
		})
	}
	cmd.AddCommand(create, list, describe, remove)
	return cmd
}

func retentionSeconds(text string) (int64, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil && n >= -1 {
		return n, nil
	}
	d, err := time.ParseDuration(text)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q: want a duration such as 24h, or -1 for ever", text)
	}
	return int64(d / time.Second), nil
}

func retentionText(seconds, size int64) string {
	most := config.ByteSize(size)
	switch {
	case seconds == 0 || size == 0:
		return "until every subscription acknowledged"
	case seconds < 0 && size < 0:
		return "for ever"
	case size < 0:
		return (time.Duration(seconds) * time.Second).String()
	case seconds < 0:
		return fmt.Sprintf("up to %v", &most)
	}
	return fmt.Sprintf("%s, up to %v", time.Duration(seconds)*time.Second, &most)
}

func timeText(ms int64) string {
	if ms == 0 {
		return ""
	}
	return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z")
}
