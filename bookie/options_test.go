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

// TestLeastDisk shows that a disk of the size asked for is enough, and no smaller one.
func TestLeastDisk(t *testing.T) {
	takes := func(disk int64) int64 { return Options{DiskBytes: disk}.MaxEntryBytes() }
	for _, body := range []int64{1, ledger.LeastBodyBytes, 8 << 20, 32<<20 + 64<<10 + 40, 33<<20 - 8328, 33<<20 - 8327, ledger.MaxBodyBytes} {
		disk := LeastDiskBytes(body)
		if err := (Options{Dir: "d", ID: "i", Cluster: "c", DiskBytes: disk}).Validate(); err != nil || takes(disk) < body {
			t.Errorf("a disk of %d bytes takes %d, not %d; %v", disk, takes(disk), body, err)
		}
		if least := int64(128 << 20); disk < least || disk > least && takes(disk-1) >= body {
			t.Errorf("a disk of %d bytes would do for %d, %d were asked for", disk-1, body, disk)
		}
	}
}
