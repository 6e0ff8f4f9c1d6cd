package subscription

import "github.com/magnetar-io/magnetar/broker/internal/position"

// Stats describe a subscription at one moment.
type Stats struct {
	Name       string
	Type       Type // means nothing while there are no consumers
	Durable    bool
	Properties map[string]string
	// Waiting is why nothing is handed out; "": entries are being read or handed out.
	Waiting string
	// Backlog is what is not acknowledged: entries exactly, messages and bytes as
	// far as the chain can tell without reading, batches in part counted whole.
	Backlog         int64
	BacklogMessages int64
	BacklogBytes    int64

	MarkDelete  position.Position
	DurableMark position.Position // as far as the journal has it
	Read        position.Position // the next new entry
	Epoch       uint64            // seeks so far
	Holes       int64             // entries acknowledged beyond MarkDelete
	Returned    int64             // entries to be delivered again
	Unanswered  int               // acknowledgements not durable yet
	MemoryBytes int64
	Consumers   []ConsumerStats
}

// ConsumerStats describe a consumer.
type ConsumerStats struct {
	Name     string
	Active   bool  // is served
	Permits  int64 // messages it may be sent; may be below 0 by one batch
	Granted  int64 // messages it ever gave permits for
	OutBytes int64 // sent and not given back
	Window   int64
	Held     int64 // shared: entries it holds unacknowledged
	// Totals of what was sent to it.
	Entries, Messages, Bytes uint64
}

// Stats returns a picture of the subscription.
func (s *Subscription) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	cur, links, last := s.saved.Cursor, s.chain(), s.opts.Ledger.LastConfirmed()
	st := Stats{
		Name:        s.saved.Name,
		Durable:     s.Durable(),
		Properties:  s.saved.Properties,
		Waiting:     s.waiting,
		Backlog:     cur.Backlog(links, last),
		MarkDelete:  cur.MarkDelete(),
		DurableMark: s.outbox.durable,
		Read:        links.After(cur.MarkDelete()),
		Epoch:       cur.Epoch(),
		Holes:       cur.Holes(),
		Unanswered:  s.outbox.waiting,
		MemoryBytes: cur.Bytes(),
	}
	if behind := s.opts.Ledger.Between(links.After(cur.MarkDelete()), last.Next()); behind.Entries > 0 {
		share := float64(st.Backlog) / float64(behind.Entries)
		st.BacklogMessages = int64(share * float64(behind.Messages))
		st.BacklogBytes = int64(share * float64(behind.Bytes))
	}
	if s.outbox.given != nil {
		st.MemoryBytes += s.outbox.given.Bytes()
	}
	if s.m == nil {
		return st
	}
	st.Type, st.Read, st.Returned = s.m.kind, s.m.read, s.m.replay.Len()
	st.MemoryBytes += s.m.bytes()
	for _, c := range s.m.consumers {
		st.Consumers = append(st.Consumers, ConsumerStats{
			Name: c.name, Active: c == s.m.active || s.m.kind == Shared,
			Permits: c.permits(), Granted: c.granted, OutBytes: c.out, Window: c.window, Held: c.held.Len(),
			Entries: c.deliveries, Messages: c.messages, Bytes: c.bytes,
		})
	}
	return st
}

// Consumers counts the members.
func (s *Subscription) Consumers() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.m == nil {
		return 0
	}
	return len(s.m.consumers)
}
