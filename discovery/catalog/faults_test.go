package catalog

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"

	"google.golang.org/protobuf/proto"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/internal/rpcerr"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

func logWith(ledger int64) []byte {
	return encode(metav1.BundleLog_builder{Segments: []*metav1.LogSegment{
		metav1.LogSegment_builder{Ledger: proto.Int64(ledger), HashLast: proto.Uint32(1<<30 - 1)}.Build(),
	}}.Build())
}

// lifeOf makes a topic, deletes it, and makes it again. It goes on after an
// error as a caller would: by doing the step again.
func lifeOf(t *testing.T, c *Catalog, partitions int) {
	t.Helper()
	again := func(step func() error, ends ...error) {
		t.Helper()
		for range 3 {
			err := step()
			if err == nil {
				return
			}
			for _, end := range ends {
				if errors.Is(err, end) {
					return
				}
			}
			if !errors.Is(err, meta.ErrUnavailable) && !errors.Is(err, meta.ErrUncertain) {
				t.Fatal(err)
			}
		}
		t.Fatal("two faults, three errors")
	}
	create := func() error { _, err := c.CreateTopic(t.Context(), topic, partitions); return err }
	again(create)
	again(func() error {
		left, err := c.MarkDeleting(t.Context(), topic)
		for _, d := range left {
			if err := c.Remove(t.Context(), d, nil); err != nil {
				return err
			}
		}
		return err
	}, rpcerr.ErrNotFound)
	again(create)
}

// Whichever call to the store fails, and whether it was done or not, a topic is
// afterwards whole and there once. A first creation whose answer was lost is not
// mistaken for another's.
func TestEveryCallMayFail(t *testing.T) {
	const partitions = 130
	for name, faults := range map[string][]meta.Fault{
		"not done":                        {{Err: meta.ErrUnavailable}},
		"unknown, not done":               {{Err: meta.ErrUncertain}},
		"done, answer lost":               {{Lost: true}},
		"done, answer lost, nor read":     {{Lost: true}, {Err: meta.ErrUnavailable}},
		"unknown, not done, nor readable": {{Err: meta.ErrUncertain}, {Err: meta.ErrUnavailable}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, partitions := range []int{0, partitions} {
				step := 1
				if partitions > 0 {
					step = 53 // a sample: one run makes hundreds of calls
				}
				tried := 0
				for k := 1; ; k += step {
					over := false
					synctest.Test(t, func(t *testing.T) {
						c, m := bootstrapped(t)
						n := 0
						m.OnCall(func(call meta.Call) meta.Fault {
							n++
							if n < k || n >= k+len(faults) || faults[n-k].Err == meta.ErrUncertain && call.Kind != meta.CallTxn {
								return meta.Fault{}
							}
							return faults[n-k]
						})
						lifeOf(t, c, partitions)
						over = n < k
						checkWhole(t, c, m, partitions)
					})
					if over {
						break
					}
					tried++
				}
				if tried < 10 {
					t.Errorf("only %d calls failed", tried)
				}
			}
		})
	}
}

func checkWhole(t *testing.T, c *Catalog, m *meta.Mem, partitions int) {
	t.Helper()
	m.OnCall(nil)
	got := must[Map](t)(c.Map(t.Context(), topic))
	if got.Partitioned != (partitions > 0) || len(got.Partitions) != max(1, partitions) {
		t.Fatalf("map of %d partitions", len(got.Partitions))
	}
	ids := make(map[uint64]bool)
	for _, p := range got.Partitions {
		record := must[Topic](t)(c.Topic(t.Context(), got.Name(p)))
		if record.Deleting || ids[record.ID] {
			t.Fatalf("record %+v, or another with its id", record)
		}
		ids[record.ID] = true
	}
	if list := must[[]Summary](t)(c.List(t.Context(), defaultNamespace)); len(list) != 1 {
		t.Fatalf("list %+v", list)
	}
}

// A creation or deletion that is broken off at any transaction leaves nothing
// that is found half; doing it again ends well.
func TestBrokenOffAnywhere(t *testing.T) {
	const partitions = 300
	for k := 1; ; k += 1 + k/8 { // the marking of one partition is like that of the next
		c, m := bootstrapped(t)
		client := m.Client("dies")
		dying := newCatalog(client)
		txns := 0
		m.OnCall(func(call meta.Call) meta.Fault {
			if call.Client == "dies" && call.Kind == meta.CallTxn {
				if txns++; txns == k {
					client.Cut(true)
				}
			}
			return meta.Fault{}
		})
		_, err := dying.CreateTopic(t.Context(), topic, partitions)
		if err == nil {
			_, err = dying.MarkDeleting(t.Context(), topic)
		}
		m.OnCall(nil)
		if err == nil {
			if k < 5 {
				t.Fatalf("only %d transactions", k)
			}
			return
		}
		if found, err := c.Map(t.Context(), topic); err == nil && len(found.Partitions) != partitions {
			t.Fatalf("cut at transaction %d: %d partitions are found", k, len(found.Partitions))
		}
		left, err := c.MarkDeleting(t.Context(), topic)
		if errors.Is(err, rpcerr.ErrNotFound) {
			must[Map](t)(c.CreateTopic(t.Context(), topic, partitions))
			left, err = c.MarkDeleting(t.Context(), topic)
		}
		if err != nil {
			t.Fatal(fmt.Errorf("cut at transaction %d: %w", k, err))
		}
		for _, d := range left {
			if err := c.Remove(t.Context(), d, nil); err != nil {
				t.Fatal(err)
			}
		}
		if list := must[[]Summary](t)(c.List(t.Context(), defaultNamespace)); len(list) != 0 {
			t.Fatalf("cut at transaction %d: %v is left", k, list)
		}
	}
}
