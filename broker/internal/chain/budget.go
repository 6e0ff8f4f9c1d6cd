package chain

import "sync/atomic"

// Budget bounds the bytes that wait for a ledger to be written to, over all
// chains that share it. What has been sent counts against the ledger client's
// own budget. Safe for concurrent use.
type Budget struct {
	limit int64
	used  atomic.Int64
}

// DefaultBudgetBytes bounds what one chain with no shared Budget lets wait.
const DefaultBudgetBytes = 16 << 20

// NewBudget returns a budget of so many bytes; 0: DefaultBudgetBytes.
func NewBudget(bytes int64) *Budget {
	if bytes == 0 {
		bytes = DefaultBudgetBytes
	}
	return &Budget{limit: bytes}
}

// take reserves n bytes, or nothing when fewer are left.
func (b *Budget) take(n int64) bool {
	if b.used.Add(n) <= b.limit {
		return true
	}
	b.used.Add(-n)
	return false
}

// retake reserves n bytes for adds that were accepted before, also beyond the
// limit: they cannot be refused any more.
func (b *Budget) retake(n int64) { b.used.Add(n) }

// give returns bytes taken.
func (b *Budget) give(n int64) { b.used.Add(-n) }

// Used is how many bytes wait now.
func (b *Budget) Used() int64 { return b.used.Load() }
