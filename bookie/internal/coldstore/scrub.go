package coldstore

import (
	"context"
	"errors"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// Scrub reads all that lives in a segment and checks it, at the background rate.
// Entries that are damaged, or cannot be read, are told to report, by rising
// (ledger, entry). A segment that is gone has nothing to report.
func (s *Store) Scrub(ctx context.Context, segment uint32, report func(ledger.ID, ledger.EntryRange, error)) error {
	seg, err := s.acquire(segment)
	if errors.Is(err, errGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.release(seg)
	pieces, err := s.livePieces(seg, nil)
	if err != nil {
		return err
	}
	for _, p := range pieces {
		bad := func(first, last ledger.EntryID, err error) {
			s.setDamaged(seg, err)
			report(p.run.ledger, ledger.EntryRange{First: max(first, p.first), Last: min(last, p.last)}, err)
		}
		err := seg.file.scan(p.run, p.first, p.last, s.throttle(ctx), func(first, last ledger.EntryID, b []byte, err error) error {
			if err != nil {
				bad(first, last, err)
				return nil
			}
			next := first
			return eachEntry(b, p.run.ledger, first, last, func(_ ledger.Entry, err error) error {
				if err != nil && p.first <= next && next <= p.last {
					bad(next, next, err)
				}
				next++
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}
