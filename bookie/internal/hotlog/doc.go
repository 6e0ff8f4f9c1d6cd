// Package hotlog is the log every entry of a bookie is written to: the journal
// and the hot store in one.
//
// Promises:
//   - A record is answered only once it is on the disk, in append order (unless
//     Options.NoSync gives that up, for the whole log and in plain sight).
//   - What was answered is found again by the next Open, until the caller recycles
//     its segment or the disk loses it; then it is reported as damage, never
//     as absent.
//   - What was never appended is never replayed: bytes of a file's former life
//     carry another segment number and another seed.
//   - After the first failed write or sync nothing more is answered with success.
//
// Shape: Append copies a record into the open group and returns. One goroutine
// (Log.loop) takes group after group, writes and syncs it, then answers. While one
// sync runs the next group fills, so the group size follows the load without a
// timer, and at most one group is in flight (M29). Groups go to segments: files
// written before in full, so that a sync moves no metadata. A second goroutine
// (keeper) pre-writes and recycles them and writes the index file of each full
// one. Every Open starts a new segment: no process writes to a file that another
// run of it wrote, so no question arises which run a frame belongs to.
//
// Left to the caller: fences and terms, which ledgers live (Forget), moving
// survivors elsewhere before Recycle (M27), and acting on Usage before the disk
// is full (M28, M30).
package hotlog
