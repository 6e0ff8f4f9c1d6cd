package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

func (a *app) subscriptionSeek() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "seek TOPIC SUBSCRIPTION PLACE",
		Short: "Move a subscription: to earliest, latest, a message id or a time",
		Long: `Move a subscription to PLACE: earliest, latest, a message id
(LEDGER:ENTRY:PARTITION), a time (2026-01-31T08:00:00Z) or an age (-10m), which
stands last.
A message id moves the partition it names; the others stay.`,
		Args: cobra.ExactArgs(3),
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		var unknown *pflag.NotExistError
		if errors.As(err, &unknown) && isAge("-"+unknown.GetSpecifiedShortnames()) {
			return usagef(c, "-%s stands for a flag here; an age comes last: %s -%[1]s",
				unknown.GetSpecifiedShortnames(), "magnetar subscription seek TOPIC SUBSCRIPTION")
		}
		return usagef(c, "%v", err)
	})
	cmd.RunE = func(c *cobra.Command, args []string) error {
		to, err := parsePlace(args[2])
		if err != nil {
			return usagef(c, "%v", err)
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			moved := 0
			err := q.eachPartition(ctx, args[0], func(ctx context.Context, p partition, admin adminv1.TopicAdminClient) error {
				if to.id != nil && to.id.Partition != p.Number {
					return nil
				}
				req := adminv1.SeekSubscriptionRequest_builder{Topic: new(p.Topic), Subscription: new(args[1])}.Build()
				switch {
				case to.earliest:
					req.SetEarliest(true)
				case to.latest:
					req.SetLatest(true)
				case to.id != nil:
					req.SetId(adminv1.MessageId_builder{Ledger: &to.id.Ledger, Entry: &to.id.Entry,
						Partition: &to.id.Partition, BatchIndex: &to.id.BatchIndex}.Build())
				default:
					req.SetPublishTimeMs(to.time.UnixMilli())
				}
				resp, err := admin.SeekSubscription(ctx, req)
				if err == nil {
					moved++
					fmt.Fprintf(a.err, "%s: %s stands at %s\n", p.Topic, args[1], messageID(resp.GetPosition()))
				}
				return err
			})
			if err == nil && moved == 0 {
				return notFoundf("topic %q has no partition %d; 'magnetar topic describe %s' shows those it has", args[0], to.id.Partition, args[0])
			}
			return err
		})
	}
	return cmd
}

// agePlace puts -- in front of an age at the end of a seek: without it the flags
// are parsed first, and take -10m for one. Elsewhere an age is the value of a flag
// and stands for itself.
func agePlace(root *cobra.Command, args []string) []string {
	last := len(args) - 1
	if last < 1 || !isAge(args[last]) || strings.HasPrefix(args[last-1], "-") {
		return args
	}
	if c, _, err := root.Find(args); err != nil || c.CommandPath() != "magnetar subscription seek" {
		return args
	}
	return append(args[:last:last], "--", args[last])
}

// isAge reports whether text is a time before now, such as -10m.
func isAge(text string) bool {
	d, err := time.ParseDuration(text)
	return err == nil && d < 0
}
