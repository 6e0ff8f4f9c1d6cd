package bookie

import (
	"testing"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// TestDefaultSegmentsTakeTheLeast shows that a bookie that was left its default
// segments takes what others rely on every bookie to take, whatever its disk, and the
// largest entry there is where the disk allows.
func TestDefaultSegmentsTakeTheLeast(t *testing.T) {
	for _, disk := range []int64{0, 128 << 20, 129 << 20, 1 << 30, 1 << 40} {
		if got := (Options{DiskBytes: disk}).MaxEntryBytes(); got < ledger.LeastBodyBytes {
			t.Errorf("with a disk of %d bytes it takes %d, less than %d", disk, got, ledger.LeastBodyBytes)
		}
	}
	if got := (Options{}).MaxEntryBytes(); got != ledger.MaxBodyBytes {
		t.Errorf("with all of the disk it takes %d, want %d", got, ledger.MaxBodyBytes)
	}
}
