// Package chain writes one sequence of entries over successive ledgers: behind a
// topic, and behind a bundle's log.
//
// Its promises: entries are acknowledged in the order they were appended, none
// twice and none left out, across rolls and write failures. At most two ledgers
// of a chain are not closed. Once another owner has taken a ledger over nothing
// more is acknowledged, and what was in flight is answered as unknown.
//
// What it leaves to others: how the list of ledgers is recorded (Links), what is
// in an entry, and reading. An idle chain has no goroutine.
package chain
