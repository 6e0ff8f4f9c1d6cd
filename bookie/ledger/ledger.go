// Package ledger says what a ledger is: ids, metadata, fragments, quorum
// arithmetic, and the envelope in which an entry is stored. It is pure: it
// touches no clock, file or network.
//
// A ledger is a write-once sequence of entries with one writer. Each entry goes
// to every bookie of the fragment it falls in (ensemble size = write quorum);
// an ack quorum of them must have it on disk before it is acknowledged.
package ledger

import (
	"errors"
	"fmt"
	"time"
)

// ID names a ledger: above 0, below 2^63, never used again.
type ID int64

// EntryID counts the entries of a ledger from 0, without gaps.
type EntryID int64

// NoEntry is the EntryID before the first.
const NoEntry EntryID = -1

// MaxEntry bounds the ids of entries, so that an id and a count never add up to
// more than an EntryID holds, whatever a peer sends.
const MaxEntry EntryID = 1<<62 - 1

var (
	// ErrFenced reports that another writer took the ledger over. Adds in flight
	// may or may not be stored; only recovery decides. Stop writing, do not retry.
	ErrFenced = errors.New("ledger: fenced")
	// ErrClosed reports an add to a ledger that is closed.
	ErrClosed = errors.New("ledger: closed")
	// ErrNoLedger reports that the ledger surely does not exist (where asked).
	ErrNoLedger = errors.New("ledger: no such ledger")
	// ErrDeleted reports that the ledger was deleted.
	ErrDeleted = errors.New("ledger: deleted")
	// ErrNoEntry reports that the entry is surely not there (where asked).
	ErrNoEntry = errors.New("ledger: no such entry")
	// ErrUnknown reports that the one asked cannot say. It is never a "no".
	ErrUnknown = errors.New("ledger: state unknown")
	// ErrBeyondLAC reports a read beyond the last add confirmed.
	ErrBeyondLAC = errors.New("ledger: beyond last add confirmed")
	// ErrCorrupt reports bytes whose checksum or identity does not match.
	ErrCorrupt = errors.New("ledger: corrupt")
	// ErrTooBusy reports too many bytes in flight. Back off.
	ErrTooBusy = errors.New("ledger: too busy")
	// ErrReadOnly reports a bookie that takes no more data (disk full).
	ErrReadOnly = errors.New("ledger: bookie is read-only")
	// ErrIncarnation reports a request meant for another incarnation of a bookie.
	ErrIncarnation = errors.New("ledger: wrong incarnation")
	// ErrNotEnoughBookies reports that fewer than an ack quorum can be written.
	ErrNotEnoughBookies = errors.New("ledger: not enough writable bookies")
	// ErrTooLarge reports an entry above MaxBodyBytes, or above what the one asked
	// takes.
	ErrTooLarge = errors.New("ledger: entry too large")
	// ErrStopping reports a node that is shutting down.
	ErrStopping = errors.New("ledger: stopping")
)

// State of a ledger; it only moves forward.
type State uint8

const (
	Open       State = 1
	InRecovery State = 2
	Closed     State = 3
	Deleted    State = 4 // a tombstone
)

func (s State) String() string {
	switch s {
	case Open:
		return "OPEN"
	case InRecovery:
		return "IN_RECOVERY"
	case Closed:
		return "CLOSED"
	case Deleted:
		return "DELETED"
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Class of the adds of a ledger. A bookie whose disk runs full refuses Data
// first and goes on taking Control, without which nothing could be trimmed.
type Class uint8

const (
	Data    Class = 0
	Control Class = 1 // bundle logs and decision logs
)

// Member is a bookie as an ensemble names it: its id and the incarnation of its
// storage. The zero Member is a vacant slot.
type Member struct {
	Bookie      string
	Incarnation string
}

// Vacant reports whether nobody stands in the slot.
func (m Member) Vacant() bool { return m.Bookie == "" }

func (m Member) String() string {
	if m.Vacant() {
		return "-"
	}
	return m.Bookie
}

// Fragment is a run of entries that share one ensemble, from First to the entry
// before the next fragment's First.
type Fragment struct {
	First    EntryID
	Ensemble []Member // one per write quorum slot, vacant ones included
}

// Quorum says how many bookies get an entry and how many must confirm it.
type Quorum struct {
	Write int
	Ack   int
}

// Coverage is how many bookies of a write set must be heard so that any ack
// quorum has at least one of them: (Write−Ack)+1.
func (q Quorum) Coverage() int { return q.Write - q.Ack + 1 }

// Validate reports a quorum that cannot work.
func (q Quorum) Validate() error {
	if q.Ack < 1 || q.Write < q.Ack || q.Write > 15 {
		return fmt.Errorf("ledger: quorum %d/%d: want 1 <= ack <= write <= 15", q.Write, q.Ack)
	}
	return nil
}

// Parent says which log a ledger is a link of.
type Parent struct {
	Topic  uint64 // topic id, or 0
	Bundle string // bundle whose log it is, or ""
	Role   string // "data", "log"
}

// Metadata is a ledger's record in the metadata store.
//
// Fragments are in order of First; the first has First 0. Keys of older
// fragments never change. LastEntry and Length count once State is Closed.
type Metadata struct {
	ID        ID
	Quorum    Quorum
	State     State
	Term      int64 // 1 for the writer; each recoverer raises it by one
	LastEntry EntryID
	Length    int64 // bytes of all bodies
	Fragments []Fragment
	Class     Class
	Parent    Parent
	Session   string // of the creator; with Nonce it recognises its own write
	Nonce     uint64
	Verify    bool // some entry may have fewer than Quorum.Write copies
	Created   time.Time
	Owed      []Member // Deleted: bookies that have not confirmed the deletion
	DeletedAt time.Time
}

// FragmentOf returns the index in Fragments of the one that holds e.
func (m *Metadata) FragmentOf(e EntryID) int {
	i := len(m.Fragments) - 1
	for i > 0 && m.Fragments[i].First > e {
		i--
	}
	return i
}

// Last returns the last fragment.
func (m *Metadata) Last() *Fragment { return &m.Fragments[len(m.Fragments)-1] }

// Clone copies m and all it holds.
func (m *Metadata) Clone() Metadata {
	c := *m
	c.Fragments = make([]Fragment, len(m.Fragments))
	for i, f := range m.Fragments {
		c.Fragments[i] = Fragment{First: f.First, Ensemble: append([]Member(nil), f.Ensemble...)}
	}
	c.Owed = append([]Member(nil), m.Owed...)
	return c
}
