package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/magnetar-io/magnetar/internal/entry"
	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
)

// peekedView is a message that nobody received.
type peekedView struct {
	MessageID   string `json:"messageId"`
	Index       uint64 `json:"index"`
	Key         string `json:"key,omitempty"`
	Producer    string `json:"producerName"`
	PublishTime string `json:"publishTime"`
	Bytes       int    `json:"bytes"`
	Value       string `json:"value"`
}

func (a *app) topicPeek() *cobra.Command {
	cmd := &cobra.Command{Use: "peek TOPIC", Short: "Show messages without a subscription", Args: cobra.ExactArgs(1)}
	count := cmd.Flags().IntP("count", "n", 10, "how many messages of each partition")
	cmd.RunE = func(c *cobra.Command, args []string) error {
		if *count < 1 {
			return usagef(c, "--count %d: want at least 1", *count)
		}
		return a.ask(c.Context(), func(ctx context.Context, q *asker) error {
			var rows []peekedView
			err := q.eachPartition(ctx, args[0], func(ctx context.Context, p partition, admin adminv1.TopicAdminClient) error {
				resp, err := admin.Peek(ctx, adminv1.PeekRequest_builder{Topic: &p.Topic, Entries: new(uint32(*count))}.Build())
				if err != nil {
					return err
				}
				shown := 0
				for _, e := range resp.GetEntries() {
					if shown >= *count {
						break
					}
					messages, err := peekEntry(e, p.Number)
					if err != nil {
						return fmt.Errorf("entry %d:%d: %w", e.GetLedger(), e.GetEntry(), err)
					}
					messages = messages[:min(len(messages), *count-shown)]
					shown += len(messages)
					rows = append(rows, messages...)
				}
				return nil
			})
			if err != nil {
				return err
			}
			return printRows(a, rows, []column[peekedView]{
				{"ID", func(v peekedView) string { return v.MessageID }},
				{"KEY", func(v peekedView) string { return v.Key }},
				{"PUBLISHED", func(v peekedView) string { return v.PublishTime }},
				{"BYTES", func(v peekedView) string { return fmt.Sprint(v.Bytes) }},
				{"VALUE", func(v peekedView) string { return fmt.Sprintf("%.60q", v.Value) }},
			})
		})
	}
	return cmd
}

// maxPeekPayload bounds what a batch may unpack to.
const maxPeekPayload = 64 << 20

func peekEntry(e *adminv1.PeekedEntry, partition int32) ([]peekedView, error) {
	broker, part, err := entry.ParseBody(e.GetBody())
	if err != nil {
		return nil, err
	}
	if _, err := entry.VerifyProducerPart(part); err != nil {
		return nil, err
	}
	messages, err := entry.Open(part, maxPeekPayload)
	if err != nil {
		return nil, err
	}
	h := messages.Header
	var out []peekedView
	for i := 0; ; i++ {
		var m entry.Message
		if ok, err := messages.Next(&m); err != nil || !ok {
			return out, err
		}
		id := fmt.Sprintf("%d:%d:%d", e.GetLedger(), e.GetEntry(), partition)
		if h.Batched {
			id += fmt.Sprintf(":%d", i)
		}
		out = append(out, peekedView{
			MessageID: id, Index: broker.Index - uint64(h.Messages-1-i), Key: m.Key, Producer: h.ProducerName,
			PublishTime: timeText(int64(h.PublishTime)), Bytes: len(m.Value), Value: string(m.Value),
		})
	}
}
