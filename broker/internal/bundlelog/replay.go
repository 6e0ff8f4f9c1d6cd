package bundlelog

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/magnetar-io/magnetar/bookie/ensemble"
	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// place is an entry of a log: the ledger by its place in the lineage.
type place struct {
	ledger int
	entry  ledger.EntryID
}

// replay brings State to what the log says for the hashes of one lineage. It
// starts at the last begin that has its end; where there is none, at the first
// entry.
func (l *Log) replay(ctx context.Context, li lineage) error {
	readers := make([]*ensemble.Reader, len(li.ledgers))
	for i, id := range li.ledgers {
		r, err := l.opts.Ledgers.Open(ctx, id)
		if err != nil {
			return fmt.Errorf("open ledger %d of the log: %w", id, err)
		}
		readers[i] = r
	}
	start, whole, err := lastPass(ctx, readers)
	if err != nil {
		return err
	}
	p := player{state: l.opts.State, first: li.first, last: li.last, skip: whole}
	for i := start.ledger; i < len(readers); i++ {
		from := ledger.EntryID(0)
		if i == start.ledger {
			from = start.entry
		}
		err := eachGroup(ctx, readers[i], from, 0, func(e ledger.Entry) error {
			items, err := parseGroup(e.Body)
			for _, it := range items {
				if err == nil {
					err = p.play(it)
				}
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	l.deltaBytes += p.deltaBytes
	l.snapshotBytes += p.snapshotBytes
	return nil
}

// lastPass finds the group with the last begin that has its end, from the heads
// of the groups alone; whole is false, and the place the first entry, when there
// is none.
//
// A group with an end and no begin ends the pass of the begin before it. One with
// both holds a whole pass: a new pass begins only after the end of the one before
// is durable, so never in the same group. An end without a begin belongs to a pass
// whose begin was let go after a later pass was whole.
func lastPass(ctx context.Context, readers []*ensemble.Reader) (start place, whole bool, err error) {
	var begin place
	open, cut := false, false
	for i, r := range readers {
		err := eachGroup(ctx, r, 0, groupHeaderBytes, func(e ledger.Entry) error {
			flags, _, err := parseGroupHeader(e.Body)
			if err != nil {
				return err
			}
			if flags&flagBegin != 0 {
				begin, open = place{i, e.Envelope.Entry}, true
			}
			switch {
			case flags&flagEnd == 0:
			case open:
				start, whole, open = begin, true, false
			default:
				cut = true
			}
			return nil
		})
		if err != nil {
			return place{}, false, err
		}
	}
	if cut && !whole {
		return place{}, false, fmt.Errorf("the log begins within a pass, and no whole pass follows: %w", ledger.ErrCorrupt)
	}
	return start, whole, nil
}

// replayBytes is how much one read of replay asks for.
const replayBytes = 2 << 20

// eachGroup calls yield with every entry of a closed ledger from the given one
// on; with heads above 0 bodies are cut to so many bytes.
func eachGroup(ctx context.Context, r *ensemble.Reader, from ledger.EntryID, heads int, yield func(ledger.Entry) error) error {
	last := r.LAC()
	for from <= last {
		es, err := r.Read(ctx, from, last, replayBytes, heads)
		if err != nil {
			return fmt.Errorf("replay ledger %d from entry %d: %w", r.ID(), from, err)
		}
		for _, e := range es {
			if err := yield(e); err != nil {
				return fmt.Errorf("replay entry %d of ledger %d: %w", e.Envelope.Entry, r.ID(), err)
			}
		}
		from += ledger.EntryID(len(es))
	}
	return nil
}

// player gives the items of a lineage to State, in order, for one range of
// hashes.
//
// Within the pass that replay started at, a topic's records before its snapshot
// are in that snapshot already; but a topic that came into being after the begin
// may have no snapshot, and then they are all there is of it. So they are held
// until its snapshot or the end of the pass.
type player struct {
	state       State
	first, last uint32
	skip        bool // until the begin that replay starts at
	inPass      bool

	held    map[Topic][]Record // of topics without a snapshot so far
	stated  map[Topic]bool     // topics whose snapshot came, in this pass
	partial map[Topic]*partial // topics of which some parts came

	deltaBytes    int64 // of records since the begin
	snapshotBytes int64 // that the end tells
}

// partial is a snapshot that comes in several parts, and the records since the
// first of them, which it does not hold.
type partial struct {
	data  []byte
	since []Record
}

func (p *player) play(it item) error {
	t := Topic{ID: it.topic, Hash: it.hash}
	switch it.kind {
	case itemBegin:
		if p.skip { // the one that has its end; any later one is given up
			p.skip, p.inPass = false, true
			p.held, p.stated, p.partial = map[Topic][]Record{}, map[Topic]bool{}, map[Topic]*partial{}
		}
		return nil
	case itemEnd:
		if !p.inPass {
			return nil
		}
		p.snapshotBytes = int64(binary.LittleEndian.Uint64(it.data))
		return p.endPass()
	}
	if it.hash < p.first || it.hash > p.last || p.skip {
		return nil
	}
	switch {
	case it.kind == itemPart && p.inPass:
		return p.playPart(t, it)
	case it.kind == itemRecord:
		p.deltaBytes += int64(it.bytes())
		switch part := p.partial[t]; {
		case part != nil:
			part.since = append(part.since, it.record())
		case p.inPass && !p.stated[t]:
			p.held[t] = append(p.held[t], it.record())
		default:
			return p.state.Apply(it.record())
		}
	}
	return nil
}

func (p *player) playPart(t Topic, it item) error {
	delete(p.held, t)
	part := p.partial[t]
	if part == nil {
		part = &partial{}
		p.partial[t] = part
	}
	part.data = append(part.data, it.data...)
	if it.tag == tagMore {
		return nil
	}
	delete(p.partial, t)
	p.stated[t] = true
	if len(part.data) > 0 { // else: nothing was held of it any more
		parked, err := DecodeParked(part.data)
		if err != nil {
			return fmt.Errorf("topic %d: %w", t.ID, err)
		}
		if err := p.state.Restore(t, parked); err != nil {
			return fmt.Errorf("restore topic %d: %w", t.ID, err)
		}
	}
	return p.applyAll(part.since)
}

func (p *player) endPass() error {
	if len(p.partial) > 0 {
		return fmt.Errorf("pass ends in the middle of %d snapshots: %w", len(p.partial), ledger.ErrCorrupt)
	}
	for _, records := range p.held {
		if err := p.applyAll(records); err != nil {
			return err
		}
	}
	p.inPass, p.held, p.stated = false, nil, nil
	return nil
}

func (p *player) applyAll(records []Record) error {
	for r := range slices.Values(records) {
		if err := p.state.Apply(r); err != nil {
			return fmt.Errorf("apply a record of kind %d to topic %d: %w", r.Kind, r.Topic, err)
		}
	}
	return nil
}
