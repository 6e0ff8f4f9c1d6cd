// Package ensemble keeps a ledger on many bookies: it writes entries to a write
// quorum, acknowledges them at an ack quorum, replaces bookies that fail, closes
// ledgers, takes them over from a writer that may still live, and reads them.
//
// What it promises: an entry whose append was answered without an error is on
// the disks of an ack quorum of bookies named by the ledger's record, and every
// later reader of the closed ledger finds it. Entries are acknowledged in the
// order of their ids. A writer that was shut out acknowledges nothing more.
//
// The rules live in state machines without clock, goroutine or IO: writerCore
// and recoveryCore take events and give back what should happen; Writer and
// Client.Recover are the loops that do it. They alone touch bookies and the
// metadata store.
//
// What it leaves to others: who owns a topic, which ledgers form its chain, when
// to roll, and the repair of closed ledgers.
package ensemble
