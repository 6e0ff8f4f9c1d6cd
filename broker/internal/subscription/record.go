package subscription

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/cursor"
	"github.com/magnetar-io/magnetar/broker/internal/position"
)

var (
	// ErrCorrupt reports bytes that are no record of a subscription.
	ErrCorrupt = errors.New("subscription: corrupt record")
	// ErrVersion reports a record written by a newer build.
	ErrVersion = errors.New("subscription: unknown version of a record")
)

// Kind tells the records of subscriptions apart, in the journal and in the
// snapshot of a topic.
type Kind uint8

const (
	// KindCreate states a subscription and its whole cursor.
	KindCreate Kind = 1
	// KindCursor states what changed in a cursor, or a seek.
	KindCursor Kind = 2
	// KindDelete ends a subscription.
	KindDelete Kind = 3
)

// Integers are unsigned varints; every string and every cursor has its length
// before it.
//
//	create  | version 1 | id | name | created ms | properties | {key | value} … | cursor |
//	cursor  | version 1 | id | cursor |
//	delete  | version 1 | id |
const recordVersion = 1

// maxText bounds a name, a key and a value in a record.
const maxText = 64 << 10

// Saved is a subscription as the journal knows it.
type Saved struct {
	ID         uint64 // unique in the topic, never used again
	Name       string
	Created    time.Time
	Properties map[string]string
	Cursor     *cursor.Cursor
}

// AppendCreate encodes s as the data of a record of KindCreate.
func (s *Saved) AppendCreate(dst []byte) []byte {
	dst = binary.AppendUvarint(append(dst, recordVersion), s.ID)
	dst = appendText(dst, s.Name)
	dst = binary.AppendUvarint(dst, uint64(max(0, s.Created.UnixMilli())))
	dst = binary.AppendUvarint(dst, uint64(len(s.Properties)))
	for _, k := range slices.Sorted(maps.Keys(s.Properties)) {
		dst = appendText(appendText(dst, k), s.Properties[k])
	}
	return appendText(dst, string(s.Cursor.AppendWhole(nil)))
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// appendCursor encodes the data of a record of KindCursor.
func appendCursor(dst []byte, id uint64, cursor []byte) []byte {
	dst = binary.AppendUvarint(append(dst, recordVersion), id)
	return appendText(dst, string(cursor))
}

// AppendDelete encodes the data of a record of KindDelete.
func AppendDelete(dst []byte, id uint64) []byte {
	return binary.AppendUvarint(append(dst, recordVersion), id)
}

// Restored are the subscriptions of a topic, as records are replayed.
type Restored struct {
	ByID   map[uint64]*Saved
	NextID uint64 // above every id seen
}

// Apply takes one record over. A record of a subscription that is not known is
// ignored: it was deleted, or a snapshot that follows states it anew.
func (r *Restored) Apply(rec Record) error {
	b := rec.Data
	if len(b) == 0 {
		return fmt.Errorf("empty record of kind %d: %w", rec.Kind, ErrCorrupt)
	}
	if b[0] != recordVersion {
		return fmt.Errorf("record of version %d, this build reads %d: %w", b[0], recordVersion, ErrVersion)
	}
	id, b, err := position.CutUvarint(b[1:])
	if err != nil || id == math.MaxUint64 {
		return fmt.Errorf("id of a record of kind %d: %w", rec.Kind, ErrCorrupt)
	}
	switch rec.Kind {
	case KindCreate:
		s, err := cutSaved(id, b)
		if err != nil {
			return err
		}
		if r.ByID == nil {
			r.ByID = map[uint64]*Saved{}
		}
		r.ByID[id] = s
	case KindCursor:
		text, b, err := cutText(b, math.MaxInt32)
		if err != nil || len(b) != 0 {
			return fmt.Errorf("cursor record of subscription %d: %w", id, ErrCorrupt)
		}
		if s := r.ByID[id]; s != nil {
			if err := s.Cursor.Apply(text); err != nil {
				return fmt.Errorf("cursor of subscription %d (%s): %w", id, s.Name, err)
			}
		}
	case KindDelete:
		if len(b) != 0 {
			return fmt.Errorf("delete record of subscription %d: %w", id, ErrCorrupt)
		}
		delete(r.ByID, id)
	default:
		return fmt.Errorf("record of kind %d: %w", rec.Kind, ErrVersion)
	}
	r.NextID = max(r.NextID, id+1)
	return nil
}

func cutSaved(id uint64, b []byte) (*Saved, error) {
	broken := func(what string, err error) error {
		return fmt.Errorf("%s of subscription %d: %w", what, id, errors.Join(ErrCorrupt, err))
	}
	s := &Saved{ID: id, Cursor: cursor.New(position.Start)}
	name, b, err := cutText(b, maxText)
	if err != nil {
		return nil, broken("name", err)
	}
	s.Name = string(name)
	ms, b, err := position.CutUvarint(b)
	if err != nil || ms > math.MaxInt64/2 {
		return nil, broken("creation time", err)
	}
	s.Created = time.UnixMilli(int64(ms))
	count, b, err := position.CutUvarint(b)
	if err != nil {
		return nil, broken("properties", err)
	}
	for ; count > 0; count-- {
		var k, v []byte
		if k, b, err = cutText(b, maxText); err != nil {
			return nil, broken("property", err)
		}
		if v, b, err = cutText(b, maxText); err != nil {
			return nil, broken("property", err)
		}
		if s.Properties == nil {
			s.Properties = map[string]string{}
		}
		s.Properties[string(k)] = string(v)
	}
	whole, b, err := cutText(b, math.MaxInt32)
	if err != nil || len(b) != 0 {
		return nil, broken("cursor", err)
	}
	if err := s.Cursor.Apply(whole); err != nil {
		return nil, fmt.Errorf("cursor of subscription %d (%s): %w", id, s.Name, err)
	}
	return s, nil
}

// cutText cuts a string of at most limit bytes; it shares b's memory.
func cutText(b []byte, limit uint64) (text, rest []byte, err error) {
	n, b, err := position.CutUvarint(b)
	if err != nil {
		return nil, nil, err
	}
	if n > limit || n > uint64(len(b)) {
		return nil, nil, fmt.Errorf("text of %d bytes in %d: %w", n, len(b), ErrCorrupt)
	}
	return b[:n], b[n:], nil
}
