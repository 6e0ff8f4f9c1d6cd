package bundlelog

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// ErrOpen reports that a topic is open: whoever opened it keeps its state.
var ErrOpen = errors.New("bundlelog: topic is open")

// Live is an open topic, which keeps its state itself. Snapshot is as in State;
// base is nil when the topic holds nothing.
type Live interface {
	Snapshot(emit func(base []byte))
}

// Shelf is a State that keeps topics as the bytes they were stored in until
// somebody opens them: a record costs its bytes and nothing is decoded. Safe for
// concurrent use; its lock may be taken while a topic's own is held, never the
// other way round.
type Shelf struct {
	// ends reports whether a record ends its topic, so that nothing is held of it.
	ends func(Record) bool

	mu     sync.Mutex
	topics map[Topic]*shelved
}

// shelved is one topic: parked, or open elsewhere.
type shelved struct {
	parked Parked
	live   Live // nil: not open
	// ahead: parked may say more than the log has durably; not what was replayed.
	ahead bool
}

// NewShelf returns an empty shelf. ends tells which records end their topic.
func NewShelf(ends func(Record) bool) *Shelf {
	return &Shelf{ends: ends, topics: map[Topic]*shelved{}}
}

// Restore implements State.
func (s *Shelf) Restore(t Topic, p Parked) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.topics[t]
	s.topics[t] = &shelved{parked: p, ahead: before != nil && before.ahead}
	return nil
}

// Apply implements State.
func (s *Shelf) Apply(r Record) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.applyLocked(r)
}

func (s *Shelf) applyLocked(r Record) error {
	t := Topic{ID: r.Topic, Hash: r.Hash}
	e := s.topics[t]
	switch {
	case e != nil && e.live != nil:
		return fmt.Errorf("record of kind %d for topic %d: %w", r.Kind, r.Topic, ErrOpen)
	case s.ends(r):
		delete(s.topics, t)
	case e == nil:
		s.topics[t] = &shelved{parked: Parked{Records: []Record{r}}}
	default:
		e.parked.Records = append(e.parked.Records, r)
	}
	return nil
}

// AppendTo appends records of topics that are not open to l and applies them.
// ErrOpen: one of them is open; nothing was done.
func (s *Shelf) AppendTo(l *Log, records []Record, done func(error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range records {
		if e := s.topics[Topic{ID: r.Topic, Hash: r.Hash}]; e != nil && e.live != nil {
			return fmt.Errorf("append for topic %d: %w", r.Topic, ErrOpen)
		}
	}
	if err := l.Append(records, done); err != nil {
		return err
	}
	for _, r := range records {
		if err := s.applyLocked(r); err != nil {
			return err
		}
		if e := s.topics[Topic{ID: r.Topic, Hash: r.Hash}]; e != nil {
			e.ahead = true
		}
	}
	return nil
}

// Open hands a topic's state to live, which keeps it from now on.
func (s *Shelf) Open(t Topic, live Live) (Parked, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.topics[t]
	if e == nil {
		e = &shelved{}
		s.topics[t] = e
	}
	if e.live != nil {
		return Parked{}, fmt.Errorf("topic %d: %w", t.ID, ErrOpen)
	}
	p := e.parked
	e.parked, e.live = Parked{}, live
	return p, nil
}

// Close takes a topic's state back from the one who opened it; nil: nothing is
// held of it any more. Close it only when no append of the topic can follow.
func (s *Shelf) Close(t Topic, base []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if base == nil {
		delete(s.topics, t)
		return
	}
	s.topics[t] = &shelved{parked: Parked{Base: base}, ahead: true}
}

// Peek returns the bytes of a topic that is not open; ok false: open, or nothing
// is held. Nobody may alter them. durable: a later owner will find at least this
// in the log. That is not known of a topic that was open here.
func (s *Shelf) Peek(t Topic) (p Parked, durable, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.topics[t]
	if e == nil || e.live != nil {
		return Parked{}, false, false
	}
	return Parked{Base: e.parked.Base, Records: slices.Clone(e.parked.Records)}, !e.ahead, true
}

// Topics implements State.
func (s *Shelf) Topics() []Topic {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Keys(s.topics))
}

// Snapshot implements State. An open topic may be closed while it is asked; then
// what the shelf has got since counts.
func (s *Shelf) Snapshot(t Topic, emit func(*Parked)) {
	s.mu.Lock()
	e := s.topics[t]
	if e == nil || e.live == nil {
		defer s.mu.Unlock()
		if e == nil {
			emit(nil)
		} else {
			emit(&e.parked)
		}
		return
	}
	live := e.live
	s.mu.Unlock()
	live.Snapshot(func(base []byte) {
		s.mu.Lock()
		if s.topics[t] != e {
			s.mu.Unlock()
			s.Snapshot(t, emit)
			return
		}
		defer s.mu.Unlock()
		if base == nil {
			emit(nil)
		} else {
			emit(&Parked{Base: base})
		}
	})
}
