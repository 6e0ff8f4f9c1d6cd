// Package remote is a bookie over gRPC, as a ledger client sees it: the twin of
// package bookie's Node in another process.
//
// Promises:
//   - Add never blocks. Its bytes are bounded; above the bound it answers
//     ledger.ErrTooBusy.
//   - An add is answered once. If the connection breaks, or no answer comes in
//     time, the outcome is unknown and the error wraps none of package ledger's.
//   - Nothing is sent twice: what is to be tried again is for the caller to say.
//   - Entries received were checked; one that does not match is Unknown, never
//     absent and never passed on.
//
// Two connections lead to a bookie: one for data, one for fencing and recovery, so
// that a takeover does not queue behind bulk.
package remote
