package subscription

// Snapshot calls f with a record that states a durable subscription as the journal
// was given it, with the subscription locked: until f returns nothing is appended
// for it. f must not call the subscription.
func (s *Subscription) Snapshot(f func(Record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	given := s.saved
	if s.outbox.given != nil {
		given.Cursor = s.outbox.given
	}
	f(Record{Kind: KindCreate, Data: given.AppendCreate(nil)})
}
