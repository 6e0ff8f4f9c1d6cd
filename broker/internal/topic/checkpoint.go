package topic

import (
	"context"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/broker/internal/position"
	"github.com/magnetar-io/magnetar/broker/internal/producer"
	"github.com/magnetar-io/magnetar/broker/internal/subscription"
	"github.com/magnetar-io/magnetar/internal/entry"
)

// A checkpoint of the producers is due before what lies after it exceeds this, in
// bodies (M22); it is begun at half of it. An open reads the heads of so many
// entries, and no more than so many bytes are kept from being trimmed for them.
const (
	checkpointEntries = 4096
	checkpointBytes   = 64 << 20
)

// A checkpoint that the journal was too busy for is encoded anew only after so much
// more was stored: it may be megabytes, and the log has enough to do. So of the half
// that is left until it is due sixteen tries can be made.
const (
	retryEntries = checkpointEntries / 32
	retryBytes   = checkpointBytes / 32
)

// lag is what was stored after a checkpoint.
type lag struct {
	entries int
	bytes   int64 // of bodies
}

// replayHeadBytes is read of each entry when headers are replayed; longer heads
// are read whole.
const replayHeadBytes = 512

// replayEntries bounds one read of heads.
const replayEntries = 1024

// checkpointLocked writes a checkpoint as of the last stored entry, when it is
// due or at the end. It is one record: producer.Registry bounds what it holds, so
// that the bundle's log has room for it.
func (t *Topic) checkpointLocked(final bool) {
	c, next := &t.sinceCheckpoint, t.nextTry
	due := c.entries >= max(checkpointEntries/2, next.entries) || c.bytes >= max(checkpointBytes/2, next.bytes) || final && c.entries > 0
	if !due || t.checkpointing {
		return
	}
	at := t.storedAt
	record := subscription.Record{Kind: kindProducers, Data: t.producers.AppendCheckpoint(nil, at)}
	err := t.opts.Journal.Append([]subscription.Record{record}, func(err error) { t.checkpointed(at, err) })
	if err != nil {
		t.nextTry = lag{c.entries + retryEntries, c.bytes + retryBytes}
		if !errors.Is(err, subscription.ErrTooBusy) && !t.checkpointRefused {
			t.checkpointRefused = true
			t.opts.Log.Warn("checkpoint of producers is refused, nothing after the last one can be trimmed",
				"topic", t.opts.Name.String(), "bytes", len(record.Data), "error", err)
		}
		return
	}
	t.checkpointing, t.checkpointRefused, t.checkpointSent = true, false, at
	*c, t.nextTry = lag{}, lag{}
}

func (t *Topic) checkpointed(at position.Position, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.checkpointing = false
	if err != nil {
		t.endLocked(fmt.Errorf("checkpoint of producers: %w", err))
		return
	}
	t.checkpointAt = at
}

// replay brings the producers up to date with the entries after from. Only heads
// are read, but whole bodies count towards the next checkpoint, as they do when
// entries are stored: the limit does not grow with each owner that comes and goes.
func (t *Topic) replay(ctx context.Context, from position.Position) error {
	last := t.ledger.LastConfirmed()
	t.storedAt = last
	next, err := t.ledger.Normalize(from.Next())
	if err != nil {
		return fmt.Errorf("checkpoint of producers at %s: %w", from, err)
	}
	first := next
	for next.Compare(last) <= 0 {
		heads, err := t.ledger.ReadHeads(ctx, next, replayEntries, replayHeadBytes)
		if err != nil {
			return fmt.Errorf("replay headers from %s: %w", next, err)
		}
		if len(heads) == 0 {
			break
		}
		for _, e := range heads {
			h, err := t.header(ctx, e.Position, e.Body)
			if err != nil {
				return fmt.Errorf("replay header of %s: %w", e.Position, err)
			}
			t.producers.Replay(h.ProducerName, h.ProducerEpoch, producer.Batch{
				First: h.SequenceID, Last: h.HighestSequence, HasPrevious: h.HasPrevious, Previous: h.PreviousSequence,
			}, e.Position)
			t.sinceCheckpoint.entries++
		}
		if next, err = t.ledger.Next(heads[len(heads)-1].Position); err != nil {
			return err
		}
	}
	if t.sinceCheckpoint.entries > 0 {
		replayed, err := t.ledger.Measure(ctx, first, last.Next())
		if err != nil {
			return fmt.Errorf("measure what was replayed from %s: %w", first, err)
		}
		t.sinceCheckpoint.bytes = replayed.Bytes
	}
	return nil
}

// header parses the header of an entry of which body is the beginning; where
// that is too little it reads the whole entry.
func (t *Topic) header(ctx context.Context, at position.Position, body []byte) (entry.Header, error) {
	_, part, err := entry.ParseBody(body)
	if err == nil {
		var h entry.Header
		if h, _, err = entry.ParseHeader(part); err == nil {
			return h, nil
		}
	}
	if len(body) < replayHeadBytes {
		return entry.Header{}, err
	}
	whole, readErr := t.ledger.Read(ctx, at, 1, 0)
	if readErr != nil {
		return entry.Header{}, readErr
	}
	if len(whole) != 1 || whole[0].Position != at {
		return entry.Header{}, fmt.Errorf("entry is not there to be read whole: %w", err)
	}
	if _, part, err = entry.ParseBody(whole[0].Body); err != nil {
		return entry.Header{}, err
	}
	h, _, err := entry.ParseHeader(part)
	return h, err
}
