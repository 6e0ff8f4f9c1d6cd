package managedledger

import (
	"fmt"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// link is one ledger of a topic's chain, as its key in the metadata store says
// and, for the ledger being written, as the acknowledgements so far say.
//
// While the ledger before it is not closed, firstIndex and firstTime are lower
// bounds; closing that one settles them in the same transaction.
type link struct {
	sequence   uint64 // position of the key in the chain; rises, never used again
	ledger     ledger.ID
	firstIndex uint64 // index of the first message in it
	firstTime  int64  // broker time of its first entry, milliseconds
	closed     bool
	trimmed    bool // the ledger is deleted; only the newest link may be in this state
	// Final once closed; what is acknowledged so far before that.
	entries  int64
	bytes    int64 // of bodies
	messages uint64
	lastTime int64 // broker time of its last entry; at least firstTime

	revision meta.Revision // of its key; 0: not known, read it
}

// nextIndex is the index of the message after the last one in l.
func (l *link) nextIndex() uint64 { return l.firstIndex + l.messages }

// end is the entry id after the last one in l.
func (l *link) end() ledger.EntryID { return ledger.EntryID(l.entries) }

// readable is how many entries of l can be read.
func (l *link) readable() int64 {
	if l.trimmed {
		return 0
	}
	return l.entries
}

// encode gives the value of the link's key. The counts of an open ledger are not
// in it: only closing makes them true.
func (l *link) encode() []byte {
	b := metav1.ChainLink_builder{
		Ledger:            proto.Int64(int64(l.ledger)),
		FirstIndex:        proto.Uint64(l.firstIndex),
		FirstBrokerTimeMs: proto.Int64(l.firstTime),
	}
	if l.closed {
		b.Closed = proto.Bool(true)
		b.Entries = proto.Int64(l.entries)
		b.Bytes = proto.Int64(l.bytes)
		b.Messages = proto.Uint64(l.messages)
		b.LastBrokerTimeMs = proto.Int64(l.lastTime)
	}
	if l.trimmed {
		b.Trimmed = proto.Bool(true)
	}
	value, err := proto.MarshalOptions{Deterministic: true}.Marshal(b.Build())
	if err != nil {
		panic(fmt.Sprintf("managedledger: a chain link of numbers does not encode: %v", err))
	}
	return value
}

// decodeLink reads the value of the key with the given sequence.
func decodeLink(sequence uint64, value []byte) (link, error) {
	var m metav1.ChainLink
	if err := proto.Unmarshal(value, &m); err != nil {
		return link{}, fmt.Errorf("chain link %d: %v: %w", sequence, err, ledger.ErrCorrupt)
	}
	l := link{
		sequence:   sequence,
		ledger:     ledger.ID(m.GetLedger()),
		firstIndex: m.GetFirstIndex(),
		firstTime:  m.GetFirstBrokerTimeMs(),
		closed:     m.GetClosed(),
		trimmed:    m.GetTrimmed(),
		entries:    m.GetEntries(),
		bytes:      m.GetBytes(),
		messages:   m.GetMessages(),
		lastTime:   max(m.GetLastBrokerTimeMs(), m.GetFirstBrokerTimeMs()),
	}
	if l.ledger < 1 || l.entries < 0 || l.bytes < 0 || l.trimmed && !l.closed {
		return link{}, fmt.Errorf("chain link %d: ledger %d with %d entries of %d bytes: %w",
			sequence, l.ledger, l.entries, l.bytes, ledger.ErrCorrupt)
	}
	return l, nil
}
