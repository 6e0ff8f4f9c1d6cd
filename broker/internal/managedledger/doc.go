// Package managedledger keeps the chain of ledgers behind one topic partition:
// it opens and recovers it, appends, reads across its ledgers, and trims it.
//
// What it promises: one order for every reader, that of the acknowledgements;
// positions, index and broker time that never go back, across owners, rolls and
// trimming; nothing acknowledged that a later owner does not find; nothing
// trimmed that a durable position or retention still holds.
//
// What it leaves to others: who owns the topic (every transaction is made under
// the owner's guard), what stands in an entry beyond its broker part, cursors.
//
// The chain in the metadata store is one key per ledger. A ledger's key is made
// in the transaction that creates the ledger and goes in the transaction that
// turns the ledger's record into a tombstone, so neither is ever without the
// other. The newest key stays when its ledger is trimmed.
package managedledger
