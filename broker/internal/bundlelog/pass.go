package bundlelog

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// chunkBytes is how much of a snapshot stands between two waits of a pass, so
// that records never wait for more than that; and how much one part holds.
const chunkBytes = 256 << 10

// errGone ends a pass whose log has ended or is being closed.
var errGone = errors.New("bundlelog: log is closing")

// startPassLocked starts a snapshot pass when it is due.
func (l *Log) startPassLocked() {
	if l.passing || l.ended != nil || l.deltaBytes <= max(l.opts.PassBytes, 2*l.snapshotBytes) {
		return
	}
	select {
	case <-l.ctx.Done():
		return
	default:
	}
	l.passing, l.touched = true, map[Topic]bool{}
	l.passes.Go(func() {
		if err := l.pass(l.ctx); err != nil && !errors.Is(err, errGone) && l.ctx.Err() == nil {
			l.opts.Log.Warn("snapshot pass failed", "bundle", l.opts.Bundle, "error", err)
		}
		l.mu.Lock()
		defer l.mu.Unlock()
		l.passing, l.touched = false, nil
	})
}

// pass writes one snapshot of all topics between the records that keep coming,
// then lets the ledgers go that lie before its begin.
//
// Topics are listed after the begin has its place. One that is gone by then was
// ended by a record after the begin, or had no record after it; one that came
// later has all its records after the begin. So what is listed, and what was
// touched since, covers every topic of which a record after the begin builds on
// one before.
func (l *Log) pass(ctx context.Context) error {
	p := &passWriter{log: l, ctx: ctx}
	began, err := p.begin()
	if err != nil {
		return err
	}
	stated := map[Topic]bool{}
	for _, t := range l.opts.State.Topics() {
		stated[t] = true
		if err := p.state(t); err != nil {
			return err
		}
	}
	l.mu.Lock()
	var touched []Topic
	for t := range l.touched {
		if !stated[t] {
			touched = append(touched, t)
		}
	}
	l.mu.Unlock()
	for _, t := range touched {
		if err := p.state(t); err != nil {
			return err
		}
	}
	if err := p.end(); err != nil {
		return err
	}
	l.mu.Lock()
	l.snapshotBytes = p.bytes
	l.mu.Unlock()
	l.opts.Metrics.passes.Inc()
	l.opts.Metrics.snapshotBytes.Add(float64(p.bytes))
	n, err := l.record.trim(ctx, began)
	l.opts.Metrics.trimmed.Add(float64(n))
	if err != nil {
		return fmt.Errorf("let go of ledgers before %d: %w", began, err)
	}
	return nil
}

// passWriter puts the items of a pass into the log.
type passWriter struct {
	log   *Log
	ctx   context.Context
	bytes int64 // of all parts
	since int64 // of parts since the last wait
	last  chan answer
}

type answer struct {
	id  ledger.ID
	err error
}

// put adds an item to the log, at once; wait waits until it is durable.
func (p *passWriter) put(it item) {
	ch := make(chan answer, 1)
	p.last = ch
	l := p.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended != nil {
		ch <- answer{err: errGone}
		return
	}
	if it.kind == itemBegin {
		l.deltaBytes = 0
		clear(l.touched)
	}
	l.makeRoomLocked(int64(it.bytes()))
	l.filling.add(it)
	if err := l.queueLocked(int64(it.bytes()), func(id ledger.ID, err error) { ch <- answer{id, err} }); err != nil {
		ch <- answer{err: err}
	}
}

func (p *passWriter) wait() (ledger.ID, error) {
	p.since = 0
	select {
	case a := <-p.last:
		if a.err != nil {
			return 0, fmt.Errorf("%w: %w", errGone, a.err)
		}
		return a.id, nil
	case <-p.ctx.Done():
		return 0, errGone
	}
}

// begin returns the ledger it stands in.
func (p *passWriter) begin() (ledger.ID, error) {
	p.put(item{kind: itemBegin})
	return p.wait()
}

func (p *passWriter) end() error {
	p.put(item{kind: itemEnd, data: binary.LittleEndian.AppendUint64(nil, uint64(p.bytes))})
	_, err := p.wait()
	return err
}

// state writes the snapshot of one topic. Its first part takes its place in the
// log while the topic's state is being taken; the others follow one at a time,
// with whatever records come between.
func (p *passWriter) state(t Topic) error {
	rest := make(chan []byte, 1)
	p.log.opts.State.Snapshot(t, func(s *Parked) {
		var data []byte
		if s != nil {
			data = s.Encode()
		}
		rest <- p.part(t, data)
	})
	var data []byte
	select {
	case data = <-rest:
	case <-p.ctx.Done():
		return errGone
	}
	for {
		if p.since >= chunkBytes || data != nil {
			if _, err := p.wait(); err != nil {
				return err
			}
		}
		if data == nil {
			return nil
		}
		data = p.part(t, data)
	}
}

// part writes the first piece of data and returns what is left; nil: that was all.
func (p *passWriter) part(t Topic, data []byte) (rest []byte) {
	it := item{kind: itemPart, topic: t.ID, hash: t.Hash, data: data}
	if len(data) > chunkBytes {
		it.data, it.tag, rest = data[:chunkBytes], tagMore, data[chunkBytes:]
	}
	p.bytes += int64(it.bytes())
	p.since += int64(it.bytes())
	p.put(it)
	return rest
}
