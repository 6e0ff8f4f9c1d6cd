package ledger

// The words in which a ledger client and a bookie speak; package ensemble
// declares the calls.

// Add is one entry on its way to one bookie.
type Add struct {
	Envelope Envelope // BodyBytes and BodyCRC filled in
	Body     []byte   // not altered by anyone until the add is answered
	// Create is set until this slot has answered one add of the ledger with OK. An
	// add without it to a ledger the bookie does not know is refused (ErrNoLedger).
	Create bool
	// RecoveryTerm above 0 marks a recovery or repair add, which passes a fence of
	// at most that term.
	RecoveryTerm int64
}

// ReadRequest asks for a run of entries, First to Last, both included.
type ReadRequest struct {
	Ledger   ID
	First    EntryID
	Last     EntryID
	MaxBytes int // stop after this many, but give at least one entry; 0: the bookie's limit
	// FenceTerm above 0 makes it a recovery read: the ledger is fenced at that term,
	// durably, before the answer, and absences do not end the run.
	FenceTerm int64
	HeadBytes int // above 0: only so many bytes of each body; BodyCRC cannot be checked then
}

// ReadStatus is a bookie's answer for one entry.
type ReadStatus uint8

const (
	Found   ReadStatus = iota
	Absent             // surely not here
	Unknown            // cannot say: damage, limbo, an error
)

// ReadEntry is the answer for one entry; Entry is set when Status is Found.
type ReadEntry struct {
	Status ReadStatus
	Entry  Entry
}

// ReadReply answers a ReadRequest: Entries[i] is entry First+i. It may be
// shorter than asked, but never empty without an error.
type ReadReply struct {
	Entries []ReadEntry
	LAC     EntryID // highest LAC in any envelope of the ledger held here
}

// FenceReply answers a fence: what the bookie holds of the ledger.
type FenceReply struct {
	LastEntry EntryID
	LAC       EntryID
}

// EntryRange is a run of entries, both ends included.
type EntryRange struct{ First, Last EntryID }

// Info is what a bookie knows of a ledger.
type Info struct {
	Ranges []EntryRange
	LAC    EntryID
	Term   int64 // highest fence term; 0: never fenced
	Limbo  bool  // absences here are answered Unknown
}

// Description is what a bookie says of itself.
type Description struct {
	Member         Member
	ReadOnly       bool // refuses data; control goes on
	ReadOnlyReason string
	Ledgers        uint64
	HotBytes       uint64 // on disk, in the log
	ColdBytes      uint64 // on disk, sorted
	DiskFreeBytes  uint64
	DiskTotalBytes uint64
	MaxEntryBytes  uint64 // largest body taken
}
