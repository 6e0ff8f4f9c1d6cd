package meta

import "fmt"

// check reports a transaction no store would take: too many operations, a key
// written twice, an empty key. It is the caller's mistake and never a matter of
// retrying.
func (t Txn) check() error {
	if len(t.Conds) > MaxOps || len(t.Ops) > MaxOps {
		return fmt.Errorf("meta: transaction of %d conditions and %d operations: at most %d of each", len(t.Conds), len(t.Ops), MaxOps)
	}
	for _, c := range t.Conds {
		if c.Key == "" {
			return fmt.Errorf("meta: condition on an empty key")
		}
	}
	seen := make(map[string]struct{}, len(t.Ops))
	for _, op := range t.Ops {
		if op.Key == "" {
			return fmt.Errorf("meta: operation on an empty key")
		}
		if _, twice := seen[op.Key]; twice {
			return fmt.Errorf("meta: key %s written twice in one transaction", op.Key)
		}
		seen[op.Key] = struct{}{}
	}
	return nil
}

// prefixEnd returns the first key after all that start with prefix; "" when
// there is none.
func prefixEnd(prefix string) string {
	b := []byte(prefix)
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] < 0xff {
			b[i]++
			return string(b[:i+1])
		}
	}
	return ""
}
