// Package bookie is one storage node: it keeps the entries of ledgers on its
// disk and knows nothing of topics.
//
// Promises, each under the number of its rule:
//   - An add is answered with success only once it is on disk (B1), and only if
//     its checksums match (A2).
//   - A read has four answers: found, surely absent, unknown, fenced. Absent is
//     never said where the truth is "I cannot say" (B2).
//   - A fence is a durable term. It is on disk before any reply, also for a ledger
//     never seen (R4, M13), and in the log behind every add let in before it (B9).
//   - A deleted ledger is never made again (M14).
//   - Storage has an identity; storage that was lost comes back under another (B4).
//   - When the disk runs full, data is refused first; fences, tombstones, recovery
//     adds and control ledgers go on into a reserve, so that trimming can make room
//     again without a person (M28).
//
// Node is the storage and its rules, and serves itself over gRPC; Registration
// makes it known in the metadata store; Collector deletes what was deleted there.
// Under it, hotlog is the log every record goes to, coldstore and index hold what
// outlives the log's segments, and ledgertable decides what may be done.
package bookie
