package ensemble

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/magnetar-io/magnetar/bookie/ledger"
	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/layout"
)

// IDs gives out ledger ids that are never given out again; idblock.Allocator is
// one.
type IDs interface {
	// Next returns an unused id above the one given.
	Next(ctx context.Context, above uint64) (uint64, error)
}

// Options of a Client. Store, Layout, Directory and IDs are required; zero is
// the documented default elsewhere.
type Options struct {
	Store     meta.Store
	Layout    layout.Layout
	Directory Directory
	IDs       IDs
	// Session names the process in the records of ledgers it creates; nil: "".
	Session func() string

	// BudgetBytes bounds the bodies held for all writers, and 128 bytes for each;
	// 0: 256 MiB. An append beyond it is refused with ErrTooBusy.
	BudgetBytes int64
	// BookieBytes bounds what is sent to one bookie and not yet answered, and the
	// acknowledged bodies kept for bookies that lag; 0: a quarter of BudgetBytes.
	// A ledger always has one add on its way to each bookie.
	BookieBytes int64
	// MaxBodyBytes is the largest body that will be appended to ledgers of class Data:
	// bookies that take less get none of them. 0: no demand is made. Control ledgers
	// make none, for a ledger of theirs has to be possible on every bookie.
	MaxBodyBytes int64
	// AddTimeout after which a bookie that does not answer is suspect; 0: 2 s.
	AddTimeout time.Duration
	// RefillAfter is how long a slot may be vacant, failing or silent, while the
	// ledger does without it, before another bookie is put there; 0: 5 s.
	RefillAfter time.Duration
	// RepairAfter is how long an entry may have fewer than write quorum copies
	// before it is copied again; 0: 1 s. It doubles, up to 30 s, while that fails.
	RepairAfter time.Duration
	// CloseGrace is how long Close waits for the last copies of entries that are
	// acknowledged; 0: 200 ms. What is still missing then is left to verification.
	CloseGrace time.Duration
	// SuspectChanges bounds how often in a minute one bookie is replaced for being
	// slow; 0: 300. Replacing a bookie that fails is not counted.
	SuspectChanges int
	// Brake, while it returns true, keeps every ensemble as it is: writers send
	// again to the same bookies and wait. For operators in mass failures; nil:
	// never.
	Brake func() bool
	// HedgeAfter is how long a read waits for one bookie before it asks the next
	// as well; 0: three times the 99th percentile seen lately, between 5 ms and
	// 1 s. At most one read in twenty is hedged.
	HedgeAfter time.Duration
	// RecoveryReadBytes bounds one read of recovery from one bookie; 0: 1 MiB.
	RecoveryReadBytes int

	Log     hclog.Logger     // nil: none
	Metrics *Metrics         // nil: none
	Now     func() time.Time // stamps records; nil: time.Now
	Rand    func() uint64    // nil: math/rand/v2
}

// Validate reports every fault at once.
func (o *Options) Validate() error {
	var faults []error
	if o.Store == nil {
		faults = append(faults, errors.New("ensemble: Options.Store is missing"))
	}
	if o.Layout.Prefix() == "" {
		faults = append(faults, errors.New("ensemble: Options.Layout is missing"))
	}
	if o.Directory == nil {
		faults = append(faults, errors.New("ensemble: Options.Directory is missing"))
	}
	if o.IDs == nil {
		faults = append(faults, errors.New("ensemble: Options.IDs is missing"))
	}
	for name, v := range map[string]int64{
		"BudgetBytes": o.BudgetBytes, "BookieBytes": o.BookieBytes, "AddTimeout": int64(o.AddTimeout),
		"RefillAfter": int64(o.RefillAfter), "RepairAfter": int64(o.RepairAfter), "CloseGrace": int64(o.CloseGrace),
		"SuspectChanges": int64(o.SuspectChanges), "HedgeAfter": int64(o.HedgeAfter), "RecoveryReadBytes": int64(o.RecoveryReadBytes),
		"MaxBodyBytes": o.MaxBodyBytes,
	} {
		if v < 0 {
			faults = append(faults, fmt.Errorf("ensemble: Options.%s is negative", name))
		}
	}
	if o.MaxBodyBytes > ledger.MaxBodyBytes {
		faults = append(faults, fmt.Errorf("ensemble: Options.MaxBodyBytes is %d: an entry has at most %d", o.MaxBodyBytes, ledger.MaxBodyBytes))
	}
	return errors.Join(faults...)
}

// withDefaults fills in what is zero.
func (o Options) withDefaults() Options {
	def(&o.BudgetBytes, 256<<20)
	def(&o.BookieBytes, o.BudgetBytes/4)
	def(&o.AddTimeout, 2*time.Second)
	def(&o.RefillAfter, 5*time.Second)
	def(&o.RepairAfter, time.Second)
	def(&o.CloseGrace, 200*time.Millisecond)
	def(&o.SuspectChanges, 300)
	def(&o.RecoveryReadBytes, 1<<20)
	if o.Session == nil {
		o.Session = func() string { return "" }
	}
	if o.Brake == nil {
		o.Brake = func() bool { return false }
	}
	if o.Log == nil {
		o.Log = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.Uint64
	}
	return o
}

func def[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}
