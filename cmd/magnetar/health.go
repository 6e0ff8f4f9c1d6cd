package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/discovery/meta"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

// clusterView is the state of a cluster as printed.
type clusterView struct {
	Cluster        string       `json:"cluster"`
	Healthy        bool         `json:"healthy"`
	Problems       []string     `json:"problems"`
	Brokers        []brokerView `json:"brokers"`
	Bookies        []bookieView `json:"bookies"`
	Bundles        int          `json:"bundles"`
	UnownedBundles int          `json:"unownedBundles"`
}

// examine collects a cluster's state and says what is wrong in one sentence each.
func (q *asker) examine(ctx context.Context) (clusterView, error) {
	v := clusterView{Problems: []string{}, Bookies: []bookieView{}}
	problem := func(format string, args ...any) { v.Problems = append(v.Problems, fmt.Sprintf(format, args...)) }
	var err error
	if v.Brokers, v.Cluster, err = q.brokers(ctx); err != nil {
		return v, err
	}
	bookies, err := q.bookies(ctx)
	var bundles *adminv1.ListBundlesResponse
	if err == nil {
		v.Bookies = bookies
		bundles, err = q.admin.ListBundles(ctx, &adminv1.ListBundlesRequest{})
	}
	if errors.Is(err, meta.ErrUnavailable) { // bookies and bundles are known to it alone
		problem("The metadata store does not answer: start it again. What is open is served meanwhile; nothing is created, moved or deleted.")
		return v, nil
	}
	if err != nil {
		return v, err
	}
	live := map[string]bool{}
	for _, b := range v.Brokers {
		live[b.ID] = true
	}
	for _, b := range bundles.GetBundles() {
		v.Bundles++
		if !live[b.GetBroker()] {
			v.UnownedBundles++
		}
	}
	if len(v.Brokers) == 0 {
		problem("No broker is live: start one with 'magnetar broker start'.")
	} else if v.UnownedBundles > 0 {
		problem("%d of %d bundles have no live owner; a broker takes them over by itself within seconds.", v.UnownedBundles, v.Bundles)
	}
	writable := 0
	for _, b := range v.Bookies {
		switch b.State {
		case "writable":
			writable++
		case "readonly":
			problem("Bookie %s is read-only: free its disk, or trim topics by letting subscriptions acknowledge.", b.ID)
		default:
			problem("Bookie %s is down: start it again, its data is missing from new and old ledgers.", b.ID)
		}
	}
	for _, b := range v.Bookies {
		if w := largestWriter(v.Brokers); b.MaxEntryBytes > 0 && b.MaxEntryBytes < w.LargestBody {
			problem("Bookie %s takes entries of at most %d bytes, broker %s may write %d and gives it no ledger: start the bookie with a larger --disk-limit, or brokers with a lower --max-message-bytes.",
				b.ID, b.MaxEntryBytes, w.ID, w.LargestBody)
		}
	}
	if writable == 0 {
		problem("No bookie is writable: publishes wait.")
	}
	v.Healthy = len(v.Problems) == 0
	return v, nil
}

// largestWriter is the broker that may write the largest entries.
func largestWriter(brokers []brokerView) (w brokerView) {
	for _, b := range brokers {
		if b.LargestBody > w.LargestBody {
			w = b
		}
	}
	return w
}

func (a *app) clusterCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "cluster", Short: "The cluster as a whole"}
	status := &cobra.Command{Use: "status", Short: "Show brokers, bookies and what is wrong", Args: cobra.NoArgs}
	status.RunE = func(c *cobra.Command, _ []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			v, err := q.examine(ctx)
			if err != nil {
				return err
			}
			return a.printCluster(v)
		})
	}
	health := &cobra.Command{Use: "health", Short: "Exit 0 when all is well, 10 when not, saying why", Args: cobra.NoArgs}
	health.RunE = func(c *cobra.Command, _ []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			v, err := q.examine(ctx)
			if err != nil {
				return err
			}
			if err := a.printCluster(v); err != nil {
				return err
			}
			if !v.Healthy {
				return &coded{exitUnhealthy, fmt.Errorf("unhealthy: %s", strings.Join(v.Problems, " "))}
			}
			return nil
		})
	}
	cmd.AddCommand(status, health)
	return cmd
}

func (a *app) printCluster(v clusterView) error {
	return printOne(a, v, []column[clusterView]{
		{"cluster", func(v clusterView) string { return v.Cluster }},
		{"healthy", func(v clusterView) string {
			if v.Healthy {
				return "yes"
			}
			return "no: " + strings.Join(v.Problems, " ")
		}},
		{"brokers", func(v clusterView) string {
			var names []string
			for _, b := range v.Brokers {
				names = append(names, b.ID)
			}
			return strings.Join(names, " ")
		}},
		{"bookies", func(v clusterView) string {
			var names []string
			for _, b := range v.Bookies {
				names = append(names, b.ID+" ("+b.State+")")
			}
			return strings.Join(names, " ")
		}},
		{"bundles", func(v clusterView) string {
			return fmt.Sprintf("%d, %d without a live owner", v.Bundles, v.UnownedBundles)
		}},
	})
}
