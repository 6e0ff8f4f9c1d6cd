// Package ledgertable holds what a bookie knows of each ledger beside its
// entries, and decides by it what may be done: which adds are let in, which
// fences count, whether an absence is sure. It is pure: it touches no clock, file
// or network. The log around it makes its decisions durable.
//
// The records of all ledgers with something on this bookie stay in memory, about
// a hundred bytes each; deleted ledgers stay for ever, as compressed id sets.
// Loading records on demand was dropped: a fence must find the truth of a ledger
// within one lock, and no disk is touched under a lock.
package ledgertable
