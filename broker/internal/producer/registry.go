// Package producer keeps the order of a topic's producers: which batch each may
// send next, which batch is a retry of one already taken, and where that one
// stands. It is pure.
//
// A batch names the highest sequence id its producer had sent before it. It is
// taken only if that is the highest taken from this producer; so when one batch
// is refused, those behind it are refused too until the producer resumes there,
// and a later retry of the refused one is not mistaken for a duplicate.
package producer

import (
	"errors"
	"slices"

	"github.com/magnetar-io/magnetar/broker/internal/position"
)

// Window is how many of a producer's last batches are remembered with their
// positions, and how many may be in flight.
const Window = 256

// maxSpans bounds the batches remembered of all producers of a topic together.
// Where it is reached each keeps but its newest ones: a retry of an older one is
// still known for a duplicate, and is answered without its position.
const maxSpans = 64 << 10

// ErrBusy reports that a producer of that name is connected already.
var ErrBusy = errors.New("producer: a producer of this name is connected")

// ErrFull reports that a topic remembers as many producers as it may, and every
// one of them is connected or has batches in flight. Close some, or spread them
// over more partitions.
var ErrFull = errors.New("producer: the topic has no room for another producer; close some, or use more partitions")

// Batch is what a batch asserts about its place in its producer's order.
type Batch struct {
	First, Last uint64 // sequence ids
	HasPrevious bool
	Previous    uint64 // highest sequence id sent before it
}

// Verdict is the answer to a batch.
type Verdict uint8

const (
	// Accept: it is the next one; say so with Taken once it was appended.
	Accept Verdict = iota + 1
	// Duplicate: it is stored already, at Answer.Position if Answer.Known.
	Duplicate
	// InFlight: it was taken and its outcome is not known yet; Answer.Tag is that
	// of the one taken.
	InFlight
	// OutOfOrder: it does not follow what was taken; resume after Answer.Expected.
	OutOfOrder
	// TooMany: Window batches are in flight already.
	TooMany
)

// Answer says what to do with a batch.
type Answer struct {
	Verdict  Verdict
	Known    bool
	Position position.Position
	Tag      any
	// HasExpected: the producer goes on after sequence id Expected; else from its
	// first batch on.
	HasExpected bool
	Expected    uint64
}

// Registry is what a topic knows of its producers. It remembers at most a given
// number; the one that was silent longest goes first, never one that is
// connected or has batches in flight. Not safe for concurrent use.
//
// So what it holds is bounded: for 10,000 producers with names as long as a
// topic's, less than 8 MiB in a checkpoint, and about as much in memory.
type Registry struct {
	limit   int
	byName  map[string]*state
	spans   int    // in all of them; at most maxSpans
	clock   uint64 // counts touches
	dropped uint64
	// forgetful: a producer was dropped, so one that is not known may still have
	// sent something.
	forgetful bool
}

// state of one producer. Batches in flight are newer than recent, and both rise.
type state struct {
	epoch     uint64
	connected bool
	touched   uint64

	has      bool // something was taken
	accepted uint64
	stored   bool // something was stored
	last     uint64
	recent   []span // oldest first, at most Window
	flights  []flight
}

type span struct {
	first, last uint64
	at          position.Position
}

type flight struct {
	first, last uint64
	tag         any
}

// New returns an empty Registry that remembers up to limit producers.
func New(limit int) *Registry {
	return &Registry{limit: max(limit, 1), byName: map[string]*state{}}
}

// Open connects a producer. When one of the same name is connected, a higher
// epoch replaces it (replaced is true: shut the older one out), any other is
// refused with ErrBusy; ErrFull: there is no room for a new name. It returns the
// highest sequence id stored for the name.
func (r *Registry) Open(name string, epoch uint64) (last uint64, stored, replaced bool, err error) {
	s := r.byName[name]
	if s == nil {
		if !r.makeRoom() {
			return 0, false, false, ErrFull
		}
		s = r.add(name)
	}
	if s.connected && epoch <= s.epoch {
		return 0, false, false, ErrBusy
	}
	replaced = s.connected
	s.connected, s.epoch = true, epoch
	r.touch(s)
	return s.last, s.stored, replaced, nil
}

// Close disconnects a producer. With forget its name will not come again, and its
// state goes at once; unless something is in flight, whose outcome is yet to be
// told: then it stays until the limit asks for room.
func (r *Registry) Close(name string, forget bool) {
	s := r.byName[name]
	if s == nil {
		return
	}
	s.connected = false
	if forget && len(s.flights) == 0 || !s.has {
		r.remove(name, s)
	}
}

// Admit judges a batch; nothing changes.
func (r *Registry) Admit(name string, b Batch) Answer {
	s := r.byName[name]
	if s == nil || !s.has {
		// Nothing is known. A batch that follows another one cannot be the first to
		// come, unless what came before was forgotten.
		if b.HasPrevious && !r.forgetful {
			return Answer{Verdict: OutOfOrder}
		}
		return Answer{Verdict: Accept}
	}
	expected := Answer{Verdict: OutOfOrder, HasExpected: true, Expected: s.accepted}
	if b.First <= s.accepted {
		return s.old(b, expected)
	}
	if b.HasPrevious && b.Previous != s.accepted {
		return expected
	}
	if len(s.flights) >= Window {
		return Answer{Verdict: TooMany}
	}
	return Answer{Verdict: Accept}
}

// old judges a batch that begins at or below what was taken.
func (s *state) old(b Batch, otherwise Answer) Answer {
	for _, f := range s.flights {
		if f.first == b.First && f.last == b.Last {
			return Answer{Verdict: InFlight, Tag: f.tag}
		}
	}
	i, found := slices.BinarySearchFunc(s.recent, b.First, func(sp span, first uint64) int {
		switch {
		case sp.first < first:
			return -1
		case sp.first > first:
			return 1
		}
		return 0
	})
	if found && s.recent[i].last == b.Last {
		return Answer{Verdict: Duplicate, Known: true, Position: s.recent[i].at}
	}
	// Stored wholly before what is remembered: stored, but where is forgotten.
	oldest := s.last + 1
	if len(s.recent) > 0 {
		oldest = s.recent[0].first
	}
	if s.stored && b.Last < oldest {
		return Answer{Verdict: Duplicate}
	}
	return otherwise // it overlaps what was taken, in part
}

// Last is the highest sequence id stored for a name; stored is false when there
// is none.
func (r *Registry) Last(name string) (last uint64, stored bool) {
	if s := r.byName[name]; s != nil {
		return s.last, s.stored
	}
	return 0, false
}

// Accepted is the highest sequence id taken from a name, stored or in flight; has
// is false when there is none, or none is remembered.
func (r *Registry) Accepted(name string) (accepted uint64, has bool) {
	if s := r.byName[name]; s != nil {
		return s.accepted, s.has
	}
	return 0, false
}

// InFlight reports whether batches of a name have no outcome yet.
func (r *Registry) InFlight(name string) bool {
	s := r.byName[name]
	return s != nil && len(s.flights) > 0
}

// Taken records that an accepted batch was appended. tag comes back with retries
// of it.
func (r *Registry) Taken(name string, b Batch, tag any) {
	s := r.byName[name]
	if s == nil {
		r.makeRoom()
		s = r.add(name)
	}
	s.has, s.accepted = true, b.Last
	s.flights = append(s.flights, flight{b.First, b.Last, tag})
	r.touch(s)
}

// Stored records that the oldest batch in flight of a producer was stored at p.
func (r *Registry) Stored(name string, p position.Position) {
	s := r.byName[name]
	f := s.flights[0]
	s.flights = slices.Delete(s.flights, 0, 1)
	r.store(s, span{f.first, f.last, p})
}

// Replay records a stored batch read back from the topic. Batches come in the
// order of the topic; what a checkpoint had already told changes nothing.
func (r *Registry) Replay(name string, epoch uint64, b Batch, p position.Position) {
	s := r.byName[name]
	if s == nil {
		r.makeRoom() // there is some: nobody is connected yet
		s = r.add(name)
	}
	if s.stored && b.Last <= s.last {
		return
	}
	s.has, s.accepted = true, b.Last
	s.epoch = max(s.epoch, epoch)
	r.store(s, span{b.First, b.Last, p})
	r.touch(s)
}

func (r *Registry) store(s *state, sp span) {
	if len(s.recent) == Window {
		s.recent = slices.Delete(s.recent, 0, 1)
		r.spans--
	}
	s.recent = append(s.recent, sp)
	s.stored, s.last = true, sp.last
	r.spans++
	r.boundSpans()
}

// boundSpans brings the spans down to half of what they may be, once they are
// more, so that this is seldom needed: what a producer has beyond an equal share
// goes, oldest first. The newest of each stays.
func (r *Registry) boundSpans() {
	if r.spans <= maxSpans {
		return
	}
	share := max(1, maxSpans/2/len(r.byName))
	for _, s := range r.byName {
		if n := len(s.recent) - share; n > 0 {
			s.recent = slices.Clone(s.recent[n:]) // gives the memory back
			r.spans -= n
		}
	}
}

func (r *Registry) touch(s *state) {
	r.clock++
	s.touched = r.clock
}

// makeRoom sees to it that a producer can be added, and says whether it can.
func (r *Registry) makeRoom() bool {
	if len(r.byName) >= r.limit {
		r.dropOldest()
	}
	return len(r.byName) < r.limit
}

// add adds a producer, for which room was made if there was any to make.
func (r *Registry) add(name string) *state {
	s := &state{}
	r.touch(s)
	r.byName[name] = s
	return s
}

// dropOldest forgets the sixteenth of the producers, at least one, that were
// silent longest and hold nothing.
func (r *Registry) dropOldest() {
	type candidate struct {
		name    string
		touched uint64
	}
	var idle []candidate
	for name, s := range r.byName {
		if !s.connected && len(s.flights) == 0 {
			idle = append(idle, candidate{name, s.touched})
		}
	}
	slices.SortFunc(idle, func(a, b candidate) int { return int(int64(a.touched) - int64(b.touched)) })
	for _, c := range idle[:min(len(idle), max(1, r.limit/16))] {
		r.remove(c.name, r.byName[c.name])
		r.dropped++
		r.forgetful = true
	}
}

func (r *Registry) remove(name string, s *state) {
	delete(r.byName, name)
	r.spans -= len(s.recent)
}

// Dropped counts the producers forgotten to keep the limit.
func (r *Registry) Dropped() uint64 { return r.dropped }

// Len is how many producers are remembered.
func (r *Registry) Len() int { return len(r.byName) }
