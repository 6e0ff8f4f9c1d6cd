package subscription

// Snapshot states the subscription as it is now, for the journal.
func (s *Subscription) Snapshot() Record {
	var out Record
	s.SnapshotDuring(func(r Record) { out = r })
	return out
}

// SnapshotDuring calls f with what Snapshot would return, with the subscription
// locked: until f returns nothing is appended to the journal for it. f must not
// call the subscription.
func (s *Subscription) SnapshotDuring(f func(Record)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f(Record{Kind: KindCreate, Data: s.saved.AppendCreate(nil)})
}
