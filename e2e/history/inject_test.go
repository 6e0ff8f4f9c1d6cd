package history

import (
	"math/rand/v2"
	"slices"

	"github.com/magnetar-io/magnetar/client"
)

// spoiler is a copy of a history, to be spoilt.
type spoiler struct {
	record
	r     *rand.Rand
	fresh int64 // ledger of positions that nothing else has
}

func (h *record) spoiler(r *rand.Rand) *spoiler {
	s := &spoiler{record: *h, r: r, fresh: 1 << 40}
	s.events = slices.Clone(h.events)
	s.messages, s.consumers = slices.Clip(h.messages), slices.Clip(h.consumers)
	return s
}

// insert puts events in front of the i-th.
func (s *spoiler) insert(i int, events ...event) {
	for j := range s.events {
		if e := &s.events[j]; int(e.began) >= i {
			e.began += int32(len(events))
		}
	}
	for j := range events {
		events[j].at = s.events[max(0, i-1)].at
	}
	s.events = slices.Insert(s.events, i, events...)
}

// nowhere is a position of a partition that nothing else has, behind all others.
func (s *spoiler) nowhere(partition int32) client.MessageID {
	s.fresh++
	return client.MessageID{Ledger: s.fresh, Partition: partition, BatchIndex: -1}
}

// any returns a random event for which ok holds, -1 if there is none.
func (s *spoiler) any(ok func(i int, e *event) bool) int {
	from := s.r.IntN(len(s.events))
	for k := range s.events {
		if i := (from + k) % len(s.events); ok(i, &s.events[i]) {
			return i
		}
	}
	return -1
}

func (s *spoiler) sub(e *event) *subscription { return &s.subs[s.consumers[e.consumer].sub] }

// calm reports whether nobody ever seeks in the subscription of a delivery.
func (s *spoiler) calm(e *event) bool {
	return e.what == delivered && s.seekless()[s.consumers[e.consumer].sub]
}

func (s *spoiler) seekless() []bool {
	calm := slices.Repeat([]bool{true}, len(s.subs))
	for _, e := range s.events {
		if e.what == seeking {
			calm[s.consumers[e.consumer].sub] = false
		}
	}
	return calm
}

// where returns where each message is known to be.
func (s *spoiler) where() map[int32]client.MessageID {
	at := map[int32]client.MessageID{}
	for _, e := range s.events {
		if e.what == delivered || e.what == published && e.outcome == OK && e.id.Known() {
			at[e.message] = e.id
		}
	}
	return at
}

// first reports whether a delivery is the first of its position in its subscription.
func (s *spoiler) first(i int) bool {
	d := &s.events[i]
	for j := range i {
		if e := &s.events[j]; e.what == delivered && e.id == d.id && s.sub(e) == s.sub(d) {
			return false
		}
	}
	return true
}

// come adds a consumer to the subscription of another one.
func (s *spoiler) come(like int32) int32 {
	s.consumers = append(s.consumers, consumer{"spoiler", s.consumers[like].sub})
	return int32(len(s.consumers) - 1)
}

// forget makes deliveries to a subscription undone.
func (s *spoiler) forget(sub int32, ok func(*event) bool) {
	for i := range s.events {
		if e := &s.events[i]; e.what == delivered && s.consumers[e.consumer].sub == sub && ok(e) {
			*e = event{what: rested, at: e.at}
		}
	}
}

// acknowledgedAt returns whether a publish was acknowledged, by position.
func (s *spoiler) acknowledgedAt() map[client.MessageID]int32 {
	at := map[client.MessageID]int32{}
	for _, e := range s.events {
		if e.what == published && e.outcome == OK && e.id.Known() {
			at[e.id] = e.message
		}
	}
	return at
}

// injections spoil a history at a random place, each with the anomaly of its index.
// They report whether they found a place.
var injections = [anomalies]func(*spoiler) bool{
	InconsistentOffsets: func(s *spoiler) bool {
		i := s.any(func(_ int, e *event) bool { return e.what == delivered })
		j := s.any(func(_ int, e *event) bool {
			return e.what == delivered && e.id != s.events[i].id && e.id.Partition == s.events[i].id.Partition
		})
		if i < 0 || j < 0 {
			return false
		}
		s.events[j].id = s.events[i].id
		return true
	},
	LostWrite: func(s *spoiler) bool {
		calm, acked := s.seekless(), s.acknowledgedAt()
		i := s.any(func(_ int, e *event) bool {
			if _, ok := acked[e.id]; !ok || e.what != delivered || !calm[s.consumers[e.consumer].sub] {
				return false
			}
			return slices.ContainsFunc(s.events, func(o event) bool { // something is behind it
				return o.what == delivered && s.sub(&o) == s.sub(e) && o.id.Partition == e.id.Partition && o.id.Compare(e.id) > 0
			})
		})
		if i < 0 {
			return false
		}
		lost := s.events[i]
		s.forget(s.consumers[lost.consumer].sub, func(e *event) bool { return e.message == lost.message })
		return true
	},
	Unseen: func(s *spoiler) bool {
		calm, acked := s.seekless(), s.acknowledgedAt()
		i := s.any(func(_ int, e *event) bool {
			_, ok := acked[e.id]
			return ok && e.what == delivered && calm[s.consumers[e.consumer].sub]
		})
		if i < 0 {
			return false
		}
		from := s.events[i] // the end of its partition never comes
		s.forget(s.consumers[from.consumer].sub, func(e *event) bool {
			return e.id.Partition == from.id.Partition && e.id.Compare(from.id) >= 0
		})
		return true
	},
	AbortedRead: func(s *spoiler) bool {
		failed := s.any(func(_ int, e *event) bool { return e.what == published && e.outcome == Failed })
		begun := s.any(func(_ int, e *event) bool {
			return e.what == publishing && e.message == s.events[max(0, failed)].message
		})
		to := s.any(func(i int, e *event) bool { return i > begun && e.what == delivered })
		if failed < 0 || to < 0 {
			return false
		}
		e := s.events[to]
		s.insert(to, event{what: delivered, consumer: e.consumer, message: s.events[failed].message, id: s.nowhere(e.id.Partition)})
		return true
	},
	Duplicate: func(s *spoiler) bool {
		i := s.any(func(_ int, e *event) bool { return e.what == delivered })
		again := s.events[i]
		again.id = s.nowhere(again.id.Partition)
		s.insert(i+1+s.r.IntN(len(s.events)-i), again)
		return true
	},
	Invented: func(s *spoiler) bool {
		if s.r.IntN(2) == 0 { // acknowledged at another position
			got := map[int32]bool{}
			for _, e := range s.events {
				got[e.message] = got[e.message] || e.what == delivered
			}
			i := s.any(func(_ int, e *event) bool {
				return e.what == published && e.outcome == OK && e.id.Known() && got[e.message]
			})
			if i < 0 {
				return false
			}
			s.events[i].id = s.nowhere(s.events[i].id.Partition)
			return true
		}
		i := s.any(func(_ int, e *event) bool { return e.what == delivered })
		s.messages = append(s.messages, Message{"nobody", 1})
		s.insert(i, event{what: delivered, consumer: s.events[i].consumer, message: int32(len(s.messages) - 1), id: s.nowhere(s.events[i].id.Partition)})
		return true
	},
	PollSkip: func(s *spoiler) bool {
		// A message comes only after the next one, to a consumer of its own.
		i := s.any(func(i int, e *event) bool {
			return s.calm(e) && s.sub(e).kind.ordered() && s.first(i) && s.skippable(i) >= 0
		})
		if i < 0 {
			return false
		}
		late := s.events[i]
		next := s.skippable(i)
		s.events[i] = event{what: rested, at: late.at}
		c := s.come(late.consumer)
		late.consumer = c
		s.insert(next+1, event{what: joined, consumer: c}, late)
		return true
	},
	NonmonotonicPoll: func(s *spoiler) bool {
		i := s.any(func(_ int, e *event) bool { return s.calm(e) && s.sub(e).kind.ordered() })
		if i < 0 {
			return false
		}
		again := s.events[i]
		again.n = 0
		s.insert(i+1, again)
		return true
	},
	NonmonotonicSend: func(s *spoiler) bool {
		at := s.where()
		i := s.any(func(_ int, e *event) bool { _, ok := at[e.message]; return e.what == publishing && ok })
		if i < 0 {
			return false
		}
		one := s.events[i].message
		j := s.any(func(_ int, e *event) bool {
			id, ok := at[e.message]
			return e.what == publishing && ok && e.message != one && id.Partition == at[one].Partition && s.messages[e.message].Producer == s.messages[one].Producer
		})
		if j < 0 {
			return false
		}
		s.events[i].message, s.events[j].message = s.events[j].message, one
		return true
	},
	OrderOfIDs: func(s *spoiler) bool {
		at := s.where()
		i := s.any(func(i int, e *event) bool {
			return e.what == published && e.outcome == OK && e.id.Known() && slices.ContainsFunc(s.events[i:], func(b event) bool {
				return b.what == publishing && at[b.message].Known() && at[b.message].Partition == e.id.Partition
			})
		})
		if i < 0 {
			return false
		}
		early := s.events[i].id
		j := s.any(func(j int, e *event) bool {
			return j > i && e.what == publishing && at[e.message].Known() && at[e.message].Partition == early.Partition
		})
		late := at[s.events[j].message]
		for k := range s.events {
			switch e := &s.events[k]; e.id {
			case early:
				e.id = late
			case late:
				e.id = early
			}
		}
		return true
	},
	AckUndone: func(s *spoiler) bool {
		calm, holds := s.seekless(), map[client.MessageID]int32{}
		for _, e := range s.events {
			if e.what == delivered {
				holds[e.id] = e.message
			}
		}
		i := s.any(func(_ int, e *event) bool { return e.what == ackEnded && e.ok && calm[s.consumers[e.consumer].sub] })
		if i < 0 {
			return false
		}
		a := s.events[i]
		id := a.id
		if a.all { // any of those that are acknowledged with it
			if j := s.any(func(_ int, e *event) bool {
				return e.what == delivered && e.id.Partition == id.Partition && e.id.Compare(id) < 0
			}); j >= 0 {
				id = s.events[j].id
			}
		}
		c := s.come(a.consumer)
		at := i + 1 + s.r.IntN(len(s.events)-i)
		s.insert(at, event{what: joined, consumer: c}, event{what: delivered, consumer: c, id: id, message: holds[id]})
		return true
	},
	TwoHolders: func(s *spoiler) bool {
		i := s.any(func(i int, e *event) bool {
			return s.calm(e) && s.sub(e).kind == Exclusive && s.first(i) && !slices.ContainsFunc(s.events[:i], func(a event) bool {
				return a.what == acking && a.all && s.sub(&a) == s.sub(e) && a.id.Partition == e.id.Partition && a.id.Compare(e.id) >= 0
			})
		})
		if i < 0 {
			return false
		}
		too := s.events[i]
		too.consumer = s.come(too.consumer)
		s.insert(i+1, event{what: joined, consumer: too.consumer}, too)
		return true
	},
	AfterDelete: func(s *spoiler) bool {
		i := s.any(func(_ int, e *event) bool { return e.what == delivered })
		e := s.events[i]
		c := s.come(e.consumer)
		e.consumer = c
		at := i + 1 + s.r.IntN(len(s.events)-i)
		s.insert(at, event{what: deleted}, event{what: joined, consumer: c}, e)
		return true
	},
}

// skippable returns the delivery of something behind the i-th one, to the same
// consumer and of the same partition, before which nobody can have a reason to pass
// over that one; -1 if there is none.
func (s *spoiler) skippable(i int) int {
	d := &s.events[i]
	for j := i + 1; j < len(s.events); j++ {
		e := &s.events[j]
		switch {
		case e.what == delivered && e.consumer == d.consumer && e.id.Partition == d.id.Partition:
			if e.id.Compare(d.id) <= 0 {
				return -1
			}
			return j
		case e.what == acking && s.sub(e) == s.sub(d) && e.id.Partition == d.id.Partition && (e.id == d.id || e.all),
			e.what == delivered && s.sub(e) == s.sub(d) && e.id == d.id:
			return -1
		}
	}
	return -1
}
