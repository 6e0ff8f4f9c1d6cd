package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

func (a *app) topicCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "topic", Short: "Topics and their partitions"}
	cmd.AddCommand(a.topicCreate(), a.topicList(), a.topicDescribe(), a.topicStats(), a.topicDelete(), a.topicLookup(), a.topicPeek())
	return cmd
}

func (a *app) topicCreate() *cobra.Command {
	cmd := &cobra.Command{Use: "create TOPIC", Short: "Create a topic", Args: cobra.ExactArgs(1)}
	partitions := cmd.Flags().Uint32("partitions", 0, "how many partitions; 0: not partitioned")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.CreateTopic(ctx, adminv1.CreateTopicRequest_builder{Topic: new(args[0]), Partitions: partitions}.Build())
			return a.did(err, "created %s", resp.GetTopic())
		})
	}
	return cmd
}

func (a *app) topicList() *cobra.Command {
	cmd := &cobra.Command{Use: "list [TENANT/NAMESPACE]", Short: "List the topics of a namespace (default public/default)", Args: cobra.MaximumNArgs(1)}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		namespace := "public/default"
		if len(args) == 1 {
			namespace = args[0]
		}
		type row struct {
			Topic      string `json:"topic"`
			Partitions uint32 `json:"partitions"`
			CreatedAt  string `json:"createdAt"`
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			resp, err := q.admin.ListTopics(ctx, adminv1.ListTopicsRequest_builder{Namespace: new(namespace)}.Build())
			if err != nil {
				return err
			}
			var rows []row
			for _, t := range resp.GetTopics() {
				rows = append(rows, row{t.GetTopic(), t.GetPartitions(), timeText(t.GetCreatedAtMs())})
			}
			return printRows(a, rows, []column[row]{
				{"TOPIC", func(r row) string { return r.Topic }},
				{"PARTITIONS", func(r row) string { return fmt.Sprint(r.Partitions) }},
				{"CREATED", func(r row) string { return r.CreatedAt }},
			})
		})
	}
	return cmd
}

// partitionView is a partition and its owner as printed.
type partitionView struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Broker    string `json:"broker"`
	Address   string `json:"address"`
}

func (a *app) topicLookup() *cobra.Command {
	cmd := &cobra.Command{Use: "lookup TOPIC", Short: "Show which broker owns each partition", Args: cobra.ExactArgs(1)}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			parts, err := q.owners(ctx, args[0])
			if err != nil {
				return err
			}
			var rows []partitionView
			for _, p := range parts {
				rows = append(rows, partitionView{p.Topic, p.Number, p.Broker, p.Address})
			}
			return printRows(a, rows, []column[partitionView]{
				{"TOPIC", func(r partitionView) string { return r.Topic }},
				{"PARTITION", func(r partitionView) string { return fmt.Sprint(r.Partition) }},
				{"BROKER", func(r partitionView) string { return r.Broker }},
				{"ADDRESS", func(r partitionView) string { return r.Address }},
			})
		})
	}
	return cmd
}

func (a *app) topicDelete() *cobra.Command {
	cmd := &cobra.Command{Use: "delete TOPIC", Short: "Delete a topic, its messages and its subscriptions", Args: cobra.ExactArgs(1)}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			// The server answers a deletion that is asked for twice as it did the first
			// time; a person wants to know of a name that was never one.
			if _, err := q.topicMap(ctx, args[0]); err != nil {
				return err
			}
			_, err := q.admin.DeleteTopic(ctx, adminv1.DeleteTopicRequest_builder{Topic: new(args[0])}.Build())
			return a.did(err, "deleted topic %s", args[0])
		})
	}
	return cmd
}

// topicView is what a topic's owner knows of a partition, as printed. Names are
// Pulsar's where Pulsar has the figure.
type topicView struct {
	Topic         string             `json:"topic"`
	ID            uint64             `json:"id"`
	Broker        string             `json:"broker"`
	LastMessageID string             `json:"lastMessageId"`
	MsgInCounter  uint64             `json:"msgInCounter"`
	BytesIn       uint64             `json:"bytesInCounter"`
	MsgOutCounter uint64             `json:"msgOutCounter"`
	BytesOut      uint64             `json:"bytesOutCounter"`
	StorageSize   uint64             `json:"storageSize"`
	Producers     uint32             `json:"producers"`
	Subscriptions []subscriptionView `json:"subscriptions"`
	Ledgers       []topicLedgerView  `json:"ledgers"`
}

type topicLedgerView struct {
	Ledger  int64 `json:"ledger"`
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	Closed  bool  `json:"closed"`
}

func messageID(m *adminv1.MessageId) string {
	if m == nil {
		return ""
	}
	id := fmt.Sprintf("%d:%d:%d", m.GetLedger(), m.GetEntry(), m.GetPartition())
	if m.GetBatchIndex() >= 0 {
		id += fmt.Sprintf(":%d", m.GetBatchIndex())
	}
	return id
}

func viewTopic(s *adminv1.TopicStatsResponse) topicView {
	v := topicView{s.GetTopic(), s.GetId(), s.GetBroker(), messageID(s.GetLastMessageId()), s.GetMsgInCounter(), s.GetBytesInCounter(),
		s.GetMsgOutCounter(), s.GetBytesOutCounter(), s.GetStorageSize(), s.GetProducers(), []subscriptionView{}, []topicLedgerView{}}
	for _, sub := range s.GetSubscriptions() {
		v.Subscriptions = append(v.Subscriptions, viewSubscription(s.GetTopic(), sub))
	}
	for _, l := range s.GetLedgers() {
		v.Ledgers = append(v.Ledgers, topicLedgerView{l.GetLedger(), l.GetEntries(), l.GetBytes(), l.GetClosed()})
	}
	return v
}

// stats asks every partition's owner.
func (q *asker) stats(ctx context.Context, topic string) ([]topicView, error) {
	var rows []topicView
	err := q.eachPartition(ctx, topic, func(ctx context.Context, p partition, admin adminv1.TopicAdminClient) error {
		resp, err := admin.TopicStats(ctx, adminv1.TopicStatsRequest_builder{Topic: new(p.Topic)}.Build())
		if err == nil {
			rows = append(rows, viewTopic(resp))
		}
		return err
	})
	return rows, err
}

func (a *app) topicStats() *cobra.Command {
	cmd := &cobra.Command{Use: "stats TOPIC", Short: "Show counters, storage and subscriptions of each partition", Args: cobra.ExactArgs(1)}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, err := q.stats(ctx, args[0])
			if err != nil {
				return err
			}
			return printRows(a, rows, []column[topicView]{
				{"TOPIC", func(r topicView) string { return r.Topic }},
				{"BROKER", func(r topicView) string { return r.Broker }},
				{"LAST", func(r topicView) string { return r.LastMessageID }},
				{"IN", func(r topicView) string { return fmt.Sprint(r.MsgInCounter) }},
				{"OUT", func(r topicView) string { return fmt.Sprint(r.MsgOutCounter) }},
				{"BYTES", func(r topicView) string { return fmt.Sprint(r.StorageSize) }},
				{"PRODUCERS", func(r topicView) string { return fmt.Sprint(r.Producers) }},
				{"SUBSCRIPTIONS", func(r topicView) string { return fmt.Sprint(len(r.Subscriptions)) }},
			})
		})
	}
	return cmd
}

func (a *app) topicDescribe() *cobra.Command {
	cmd := &cobra.Command{Use: "describe TOPIC", Short: "Show a topic's partitions, how keys are routed, and owners", Args: cobra.ExactArgs(1)}
	type row struct {
		partitionView
		KeyHashes string `json:"keyHashes"`
		Sealed    bool   `json:"sealed"`
	}
	cmd.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			m, err := q.topicMap(ctx, args[0])
			if err != nil {
				return err
			}
			parts, err := q.owners(ctx, args[0])
			if err != nil {
				return err
			}
			var rows []row
			for i, p := range parts {
				mp := m.GetPartitions()[i]
				rows = append(rows, row{partitionView{p.Topic, p.Number, p.Broker, p.Address},
					fmt.Sprintf("%08x-%08x", mp.GetKeyHashFirst(), mp.GetKeyHashLast()), mp.GetSealed()})
			}
			return printRows(a, rows, []column[row]{
				{"TOPIC", func(r row) string { return r.Topic }},
				{"PARTITION", func(r row) string { return fmt.Sprint(r.Partition) }},
				{"KEY HASHES", func(r row) string { return r.KeyHashes }},
				{"BROKER", func(r row) string { return r.Broker }},
				{"ADDRESS", func(r row) string { return r.Address }},
			})
		})
	}
	return cmd
}

// subscriptionView is a subscription of one partition as printed.
type subscriptionView struct {
	Topic              string         `json:"topic"`
	Subscription       string         `json:"subscription"`
	Type               string         `json:"type"`
	MsgBacklog         uint64         `json:"msgBacklog"`
	UnackedMessages    uint64         `json:"unackedMessages"`
	MarkDeletePosition string         `json:"markDeletePosition"`
	LagSeconds         float64        `json:"lagSeconds"`
	Waiting            string         `json:"waiting,omitempty"`
	Consumers          []consumerView `json:"consumers"`

	backlogEntries uint64
}

type consumerView struct {
	Name            string `json:"consumerName"`
	Address         string `json:"address"`
	Permits         int64  `json:"availablePermits"`
	UnackedMessages uint64 `json:"unackedMessages"`
	Active          bool   `json:"active"`
}

func viewSubscription(topic string, s *adminv1.SubscriptionStats) subscriptionView {
	v := subscriptionView{topic, s.GetName(), s.GetType(), s.GetMsgBacklog(), s.GetUnackedMessages(),
		messageID(s.GetMarkDeletePosition()), s.GetLagSeconds(), s.GetWaiting(), []consumerView{}, s.GetBacklogEntries()}
	for _, c := range s.GetConsumerStats() {
		v.Consumers = append(v.Consumers, consumerView{c.GetName(), c.GetAddress(), c.GetPermits(), c.GetUnackedMessages(), c.GetActive()})
	}
	return v
}

func (a *app) subscriptionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "subscription", Short: "Subscriptions: who reads a topic, and how far"}
	columns := []column[subscriptionView]{
		{"TOPIC", func(r subscriptionView) string { return r.Topic }},
		{"SUBSCRIPTION", func(r subscriptionView) string { return r.Subscription }},
		{"TYPE", func(r subscriptionView) string { return r.Type }},
		{"BACKLOG", func(r subscriptionView) string { return fmt.Sprint(r.MsgBacklog) }},
		{"UNACKED", func(r subscriptionView) string { return fmt.Sprint(r.UnackedMessages) }},
		{"LAG", func(r subscriptionView) string {
			return time.Duration(r.LagSeconds * float64(time.Second)).Round(time.Millisecond).String()
		}},
		{"CONSUMERS", func(r subscriptionView) string { return fmt.Sprint(len(r.Consumers)) }},
		{"WAITING", func(r subscriptionView) string { return r.Waiting }},
	}
	collect := func(ctx context.Context, q *asker, topic, name string) ([]subscriptionView, error) {
		topics, err := q.stats(ctx, topic)
		if err != nil {
			return nil, err
		}
		var rows []subscriptionView
		for _, t := range topics {
			for _, s := range t.Subscriptions {
				if name == "" || s.Subscription == name {
					rows = append(rows, s)
				}
			}
		}
		if name != "" && len(rows) == 0 {
			return nil, notFoundf("topic %q has no subscription %q; 'magnetar subscription list %s' shows those it has", topic, name, topic)
		}
		return rows, nil
	}
	list := &cobra.Command{Use: "list TOPIC", Short: "List a topic's subscriptions, partition by partition", Args: cobra.ExactArgs(1)}
	list.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, err := collect(ctx, q, args[0], "")
			if err != nil {
				return err
			}
			return printRows(a, rows, columns)
		})
	}
	describe := &cobra.Command{Use: "describe TOPIC SUBSCRIPTION", Short: "Show a subscription, its consumers and what it waits for", Args: cobra.ExactArgs(2)}
	describe.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			rows, err := collect(ctx, q, args[0], args[1])
			if err != nil {
				return err
			}
			return printRows(a, rows, append(columns, column[subscriptionView]{"MARK-DELETE", func(r subscriptionView) string { return r.MarkDeletePosition }}))
		})
	}
	remove := &cobra.Command{Use: "delete TOPIC SUBSCRIPTION", Short: "Delete a subscription and its progress", Args: cobra.ExactArgs(2)}
	force := remove.Flags().Bool("force", false, "also when consumers are connected")
	remove.RunE = func(c *cobra.Command, args []string) error {
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			if _, err := collect(ctx, q, args[0], args[1]); err != nil {
				return err
			}
			err := q.eachPartition(ctx, args[0], func(ctx context.Context, p partition, admin adminv1.TopicAdminClient) error {
				_, err := admin.DeleteSubscription(ctx, adminv1.DeleteSubscriptionRequest_builder{
					Topic: &p.Topic, Subscription: &args[1], Force: force}.Build())
				return err
			})
			return a.did(err, "deleted subscription %s of %s", args[1], args[0])
		})
	}
	cmd.AddCommand(list, describe, remove, a.subscriptionSeek())
	return cmd
}
