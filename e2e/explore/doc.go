// Package explore tries the ledger protocol in every order of events, in worlds
// small enough for that.
//
// It drives the real state machines: the writer and the recovery of bookie/ensemble,
// the answers of a bookie (bookie/admission), the checks of records (bookie/ledger).
// What stands around them is modelled: bookies keep what they have answered for;
// the record changes by compare-and-swap; requests and answers arrive in any order,
// late after their sender gave them up, or never; bookies go away, come back, or are
// replaced by empty ones of the same name; recoverers die at any step; the ledger is
// deleted at any time. A Config says who takes part and how often what may go wrong.
//
// In every state seen it holds that
//   - a ledger is closed once: its end never changes, and no record changes as
//     ledger.CheckTransition forbids;
//   - entries are acknowledged in order, and none above the closed end, nor is the
//     writer's LAC; no add carries a LAC above what was acknowledged;
//   - every acknowledged entry, and every entry of the closed ledger, is held by an
//     ack quorum of the bookies that the record names for it, not counting those
//     whose storage is gone;
//   - first ids of fragments rise, and each fragment names an ack quorum;
//   - a bookie takes no add below the term at which it said to be fenced, nor any
//     after it confirmed the deletion; what is appended after all confirmed is never
//     acknowledged.
//
// With a Flaw a rule is broken in the world around the machines, and the search has
// to find what is lost for it: that shows that the search can fail.
//
// A search that is "exhaustive" has seen every state within the bounds of its Config.
// One that is "bounded" has seen all states up to a depth and, beyond it, those on
// random walks; it proves nothing about the others. States are told apart by 128
// bits of a hash of their encoding.
//
// What it does not show: anything beyond the bounds; that a ledger is closed in the
// end (only that nothing wrong happens); the loops around the machines, for which
// processes.go stands; disks, group commit, moves and limbo of a bookie; ordinary
// reads; the repair of short copies; writers that drop what they hold for want of
// memory; ownership and chains of ledgers. Among equal bookies the first is always
// chosen, and time passes in jumps longer than every timeout. A writer that dies is
// one whose answers never arrive.
package explore
