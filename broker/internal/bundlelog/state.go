package bundlelog

import "errors"

// ErrVersion reports bytes written by a newer build.
var ErrVersion = errors.New("bundlelog: unknown format version")

// Topic names a topic of the bundle.
type Topic struct {
	ID   uint64
	Hash uint32 // of its name
}

// State is what the log's records add up to. Shelf is one that keeps topics as
// encoded bytes until they are opened.
//
// While the log is being opened Restore and Apply are called, from one goroutine.
// Afterwards only Topics and Snapshot are, from a goroutine of the log.
type State interface {
	// Restore replaces all that is held of a topic.
	Restore(t Topic, p Parked) error
	// Apply adds a record to a topic's state. A record that ends a topic of which
	// nothing is held is to be ignored.
	Apply(r Record) error
	// Topics returns all topics of which anything is held.
	Topics() []Topic
	// Snapshot calls emit once, now or later, from any goroutine: with the topic's
	// state, or nil when nothing is held of it.
	//
	// The state must hold exactly the topic's records that Append has taken, durable
	// or not: what is still to be appended is no part of it, for it may never be. So
	// the taking of the state together with emit, and a change of it together with
	// its Append, exclude each other. emit does not block.
	Snapshot(t Topic, emit func(*Parked))
}
