// Package bundlelog keeps the small state of a bundle's topics: cursors,
// checkpoints, intents. Everything is appended to one log per bundle, a chain of
// ledgers, group-committed across topics; a take-over fences and replays that one
// log.
//
// What it promises: records of one Append are atomic; what was answered without
// an error is replayed by every later owner, in the order of the appends;
// snapshots never stop appends, and nothing is let go before a whole snapshot
// pass that covers it is durable.
//
// What it leaves to others: what a record means (State), and that a record refers
// only to positions that are acknowledged.
package bundlelog
