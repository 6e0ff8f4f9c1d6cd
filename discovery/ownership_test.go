package discovery

import (
	"errors"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/catalog"
	"github.com/magnetar-io/magnetar/discovery/internal/place"
	"github.com/magnetar-io/magnetar/discovery/meta"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// Brokers that come share all bundles evenly, and one that comes later gets its
// part from the others, each bundle by one move. Then all is quiet.
func TestBundlesSpreadOverBrokers(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		if took := c.settle(time.Second); took > time.Second {
			t.Errorf("the first broker had its bundles after %v", took)
		}
		b := c.start("b")
		c.settle(10 * time.Second)
		if len(a.owns()) < 8 || len(b.owns()) < 8 {
			t.Errorf("uneven: %s", c.counts())
		}
		d := c.start("d")
		c.settle(10 * time.Second)
		if d.takings() != len(d.owns()) || a.takings() != catalog.DefaultBundles || b.takings() > catalog.DefaultBundles {
			t.Errorf("bundles moved to and fro: %d, %d, %d taken", a.takings(), b.takings(), d.takings())
		}
		before := c.store.Revision()
		time.Sleep(10 * time.Minute)
		if after := c.store.Revision(); after != before {
			t.Errorf("%d writes in ten quiet minutes", after-before)
		}
	})
}

// The epoch of a bundle rises with every record, whoever writes it, and its
// guard stops holding for the owner before.
func TestRuleM1_OwnerRecordTellsOwnersApart(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		before := a.owns()
		b := c.start("b")
		c.settle(10 * time.Second)
		for name, now := range b.owns() {
			was := before[name]
			if now.Owner.Epoch <= was.Owner.Epoch || now.Revision <= was.Revision {
				t.Errorf("bundle %s: %+v after %+v", name, now, was)
			}
			_, err := WriteOwner(t.Context(), a.client, keys, a.reg.Cond(), now.Bundle, was.Revision, was.Owner)
			if !errors.Is(err, ErrOutrun) {
				t.Errorf("bundle %s was taken back on an old record: %v", name, err)
			}
		}
	})
}

// A record is not written for a bundle that is not there, nor by a broker whose
// session's key is not as it was.
func TestWriteOwnerRefuses(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		owner := catalog.Owner{Broker: "a", Session: a.reg.Session(), Epoch: 1}
		gone := bundle.Bundle{Namespace: "public/default", Range: bundle.All}
		if _, err := WriteOwner(t.Context(), c.store, keys, a.reg.Cond(), gone, 0, owner); !errors.Is(err, ErrOutrun) {
			t.Errorf("a bundle that is not there: %v", err)
		}
		for _, b := range a.owns() {
			own := a.reg.Cond()
			own.Revision--
			owner.Epoch = b.Owner.Epoch + 1
			if _, err := WriteOwner(t.Context(), c.store, keys, own, b.Bundle, b.Revision, owner); !errors.Is(err, ErrOutrun) {
				t.Errorf("without a session: %v", err)
			}
			break
		}
	})
}

// An owner record whose answer was lost is known again; one that was not written
// leaves its writer in doubt only as long as it may still arrive.
func TestWriteOwnerWhenTheAnswerIsLost(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		writer := c.store.Client("writer")
		fault := meta.Fault{}
		c.store.OnCall(func(call meta.Call) meta.Fault {
			if call.Client == "writer" && call.Kind == meta.CallTxn {
				return fault
			}
			return meta.Fault{}
		})
		defer c.store.OnCall(nil)
		for _, b := range a.owns() {
			owner := b.Owner
			owner.Epoch++
			fault = meta.Fault{Err: meta.ErrUncertain}
			if _, err := WriteOwner(t.Context(), writer, keys, a.reg.Cond(), b.Bundle, b.Revision, owner); !errors.Is(err, meta.ErrUncertain) {
				t.Fatalf("request lost: %v", err)
			}
			fault = meta.Fault{Lost: true}
			rev, err := WriteOwner(t.Context(), writer, keys, a.reg.Cond(), b.Bundle, b.Revision, owner)
			if err != nil || rev <= b.Revision {
				t.Fatalf("answer lost: %d, %v", rev, err)
			}
			break
		}
	})
}

// After an outage of the store so long that every session lapsed, each broker
// comes back under a new one and has exactly what it had: nothing moves.
func TestRuleM5_LongOutageMovesNothing(t *testing.T) {
	for _, outage := range []time.Duration{4 * time.Second, 8 * time.Second, 10 * time.Minute} {
		story(t, func(t *testing.T, c *cluster) {
			for _, id := range []string{"a", "b", "d"} {
				c.start(id)
			}
			c.settle(20 * time.Second)
			sessions := make(map[string]string)
			taken := 0
			for id, n := range c.nodes {
				sessions[id] = n.reg.Session()
				taken += n.takings()
			}
			c.store.SetUnavailable(true)
			time.Sleep(outage)
			if wrong := c.misplaced(); wrong != 0 {
				t.Errorf("%d bundles were given up in the outage", wrong)
			}
			c.store.SetUnavailable(false)
			time.Sleep(time.Minute)
			if wrong := c.misplaced(); wrong != 0 {
				t.Errorf("%d bundles are elsewhere after an outage of %v", wrong, outage)
			}
			for id, n := range c.nodes {
				taken -= n.takings()
				if renewed := n.reg.Session() != sessions[id]; renewed != (outage > 5*time.Second) {
					t.Errorf("broker %s: new session %v after an outage of %v", id, renewed, outage)
				}
				for name, b := range n.owns() {
					if b.Owner.Session != n.reg.Session() {
						t.Errorf("bundle %s is held under session %s, not %s", name, b.Owner.Session, n.reg.Session())
					}
				}
			}
			if taken != 0 {
				t.Errorf("%d bundles moved", -taken)
			}
		})
	}
}

// A broker whose session lapsed and that registered anew claims what it wrote
// last, also a bundle that another one ranks first for: that one leaves it alone,
// and gets it later, if at all, handed over in order.
func TestRuleM5_LapsedSessionIsNoReasonToMove(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a, b := c.start("a"), c.start("b")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		before := a.reg.Session()
		var name string
		for name = range b.owns() {
			break
		}
		held := b.owns()[name]
		// a has it for now, as it had before b came.
		owner := catalog.Owner{Broker: "a", Session: before, Epoch: held.Owner.Epoch + 1}
		if _, err := WriteOwner(t.Context(), b.client, keys, b.reg.Cond(), held.Bundle, held.Revision, owner); err != nil {
			t.Fatal(err)
		}
		c.until("a has it", time.Second, func() bool { _, has := a.owns()[name]; return has })
		c.kill(a)
		a = c.start("a") // in place of the lapsed session; it knows only what the record says
		c.until("a has it again", time.Second, func() bool { _, has := a.owns()[name]; return has })
		kv, err := c.store.Get(t.Context(), keys.BundleOwner(name))
		if err != nil {
			t.Fatal(err)
		}
		if now, err := catalog.DecodeOwner(kv); err != nil || now.Broker != "a" || now.Epoch != owner.Epoch+1 {
			t.Errorf("the record is %+v after %+v (%v)", now, owner, err)
		}
		c.settle(20 * time.Second) // in order, once it has been there for a while
	})
}

// The bundles of a broker that dies go to those that rank next once its lease
// ran out, and not before.
func TestRuleM5_DeadBrokersBundlesAreTakenAfterItsLease(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		c.start("a")
		b := c.start("b")
		c.start("d")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		lost := b.owns()
		c.kill(b)
		time.Sleep(2 * time.Second)
		for name := range lost {
			for id, n := range c.nodes {
				if _, taken := n.owns()[name]; taken {
					t.Fatalf("bundle %s was taken by %s before the lease ran out", name, id)
				}
			}
		}
		if took := 2*time.Second + c.settle(10*time.Second); took > DefaultLease+time.Second {
			t.Errorf("the bundles were without an owner for %v", took)
		}
	})
}

// A broker that has just begun to watch judges nobody: it waits for a whole
// lease before it takes what belonged to a session that is over.
func TestRuleM5_NobodyIsJudgedDeadByANewcomer(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		c.kill(a)
		time.Sleep(time.Minute)
		start := time.Now()
		c.start("b")
		c.settle(20 * time.Second)
		if took := time.Since(start); took < DefaultLease {
			t.Errorf("bundles were taken over after %v of watching", took)
		}
	})
}

// A broker that comes back with its old id before its lease ran out replaces its
// record at once and has its bundles again, without any wait.
func TestRuleM5_RestartOfTheSameIDReplacesItsSession(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.start("b")
		c.settle(20 * time.Second)
		old := a.reg.Session()
		c.kill(a)
		again := c.start("a")
		if took := c.settle(5 * time.Second); took > 200*time.Millisecond {
			t.Errorf("its bundles were without an owner for %v", took)
		}
		if again.reg.Session() == old {
			t.Error("the session of the dead process is used again")
		}
		time.Sleep(time.Minute) // the old lease runs out meanwhile
		if c.misplaced() != 0 || again.reg.Session() != c.nodes["b"].view.Snapshot().Brokers["a"].Session {
			t.Error("the old lease took the new record with it")
		}
	})
}

// A broker that closes is gone at once; one that is abandoned, as if it had died,
// is listed until its lease runs out.
func TestCloseAndAbandon(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		listed := func(id string) bool { _, there := a.view.Snapshot().Brokers[id]; return there }
		for id, end := range map[string]func(*Registration){
			"closed":    func(r *Registration) { r.Close(t.Context()) },
			"abandoned": (*Registration).Abandon,
		} {
			r, err := Register(t.Context(), RegisterOptions{Store: c.store, Layout: keys, ID: id})
			if err != nil {
				t.Fatal(err)
			}
			c.until("it is listed", time.Second, func() bool { return listed(id) })
			end(r)
			start := time.Now()
			c.until("it is gone", time.Minute, func() bool { return !listed(id) })
			if took := time.Since(start); (took < 3*time.Second) != (id == "closed") || took > DefaultLease+time.Second {
				t.Errorf("%s: gone after %v", id, took)
			}
		}
	})
}

// A broker whose session another one ended drops all it owns at once, is away
// for ten seconds, then twenty, and comes back under a new session.
func TestRuleM6_EndedBrokerDropsAllAndStaysAway(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a, b := c.start("a"), c.start("b")
		c.settle(20 * time.Second)
		for i, away := range []time.Duration{10 * time.Second, 20 * time.Second, 40 * time.Second} {
			time.Sleep(time.Minute)
			c.settle(20 * time.Second)
			before := a.reg.Session()
			target := b.view.Snapshot().Brokers["a"]
			if err := endSession(t.Context(), b.client, keys, b.reg.Cond(), target); err != nil {
				t.Fatal(err)
			}
			ended := time.Now()
			c.until("the end is noticed", time.Minute, func() bool { return a.reg.Session() == "" })
			if took := time.Since(ended); took > DefaultLease {
				t.Errorf("noticed after %v", took)
			}
			if len(a.owns()) != 0 || a.endings() != i+1 {
				t.Errorf("%d bundles are served on, sessions ended: %d", len(a.owns()), a.endings())
			}
			noticed := time.Now()
			c.until("the broker comes back", time.Hour, func() bool { return a.reg.Session() != "" })
			if took := time.Since(noticed); took < away-100*time.Millisecond || took > away+5*time.Second {
				t.Errorf("back after %v, want %v", took, away)
			}
			if a.reg.Session() == before || len(b.owns()) != catalog.DefaultBundles {
				t.Errorf("came back under the old session, or its bundles were not taken: %s", c.counts())
			}
		}
	})
}

// Ending a session needs the ender's own, and the very session that was proven
// gone; a broker that came back meanwhile is not hit.
func TestRuleM6_OnlyTheProvenSessionEnds(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a, b := c.start("a"), c.start("b")
		c.settle(20 * time.Second)
		target := b.view.Snapshot().Brokers["a"]
		own := b.reg.Cond()
		own.Revision--
		if err := endSession(t.Context(), b.client, keys, own, target); !errors.Is(err, ErrOutrun) {
			t.Errorf("without a session of its own: %v", err)
		}
		c.kill(a)
		c.start("a")
		if err := endSession(t.Context(), b.client, keys, b.reg.Cond(), target); !errors.Is(err, ErrOutrun) {
			t.Errorf("a session that was replaced: %v", err)
		}
	})
}

// A store that went back to an older state is noticed: nothing is taken over
// from what it shows, and what is served is served on.
func TestRuleM7_RolledBackStoreIsNotActedOn(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		old := c.store.Revision()
		b := c.start("b")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		served := a.owns()
		c.store.Rollback(old)
		time.Sleep(time.Minute)
		for _, n := range []*node{a, b} {
			s := n.view.Snapshot()
			if !s.RolledBack {
				t.Fatalf("broker %s did not notice", n.id)
			}
			if actions := Decide(s, n.id, n.reg.Session()); len(actions) != 0 {
				t.Errorf("broker %s would act: %+v", n.id, actions)
			}
			// The same of a view in which something is to be done: a bundle that nobody
			// owns, of whose owner the older store knows nothing.
			s.Brokers = map[string]BrokerInfo{n.id: {ID: n.id, Session: n.reg.Session()}}
			s.ids = []string{n.id}
			for name, b := range s.Bundles {
				b.Owner = catalog.Owner{}
				s.Bundles = map[string]BundleInfo{name: b}
				break
			}
			if actions := Decide(s, n.id, n.reg.Session()); len(actions) != 0 {
				t.Errorf("broker %s would take what has no owner in the older store: %+v", n.id, actions)
			}
		}
		for name := range served {
			if _, still := a.owns()[name]; !still {
				t.Errorf("bundle %s is no longer served", name)
			}
		}
	})
}

// With the store gone the view stays as it was, counts as old, and nobody acts
// on it; lookups go on being answered from it.
func TestRuleM20_ViewOutlivesTheStore(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.start("b")
		c.settle(20 * time.Second)
		time.Sleep(time.Minute)
		if w := a.view.Snapshot().Watched(); w < time.Minute {
			t.Errorf("watched for %v only", w)
		}
		c.store.SetUnavailable(true)
		time.Sleep(10 * time.Minute)
		s := a.view.Snapshot()
		if s.Watched() != 0 || Decide(s, "a", a.reg.Session()) != nil {
			t.Errorf("ten minutes old, yet current for %v", s.Watched())
		}
		for _, hash := range []uint32{0, 1 << 30, 1<<32 - 1} {
			info, ok := s.BundleOf("public/default", hash)
			owner, live := s.OwnerOf(info)
			if !ok || !live || owner.ID != place.Owner(info.Bundle.String(), []string{"a", "b"}) {
				t.Errorf("hash %08x is looked up at %+v", hash, owner)
			}
		}
		c.store.SetUnavailable(false)
		time.Sleep(time.Minute)
		if w := a.view.Snapshot().Watched(); w < 50*time.Second || w > time.Minute {
			t.Errorf("current again for %v", w)
		}
	})
}

// A view whose watch asks for what the store has forgotten lists anew and goes
// on; what it had not seen of before is there.
func TestViewListsAnewAfterCompaction(t *testing.T) {
	story(t, func(t *testing.T, c *cluster) {
		a := c.start("a")
		c.settle(time.Second)
		a.client.Cut(true)
		b := c.start("b")
		time.Sleep(2 * time.Second)
		c.store.Compact()
		a.client.Cut(false)
		time.Sleep(time.Second)
		s := a.view.Snapshot()
		if _, seen := s.Brokers["b"]; !seen {
			t.Error("a broker that came meanwhile is not seen")
		}
		if s.Watched() > 2*time.Second {
			t.Errorf("a view with a gap counts as current for %v", s.Watched())
		}
		c.kill(b)
		time.Sleep(10 * time.Second)
		if _, seen := a.view.Snapshot().Brokers["b"]; seen {
			t.Error("a broker that left is still seen")
		}
	})
}

// Decisions follow from the snapshot alone: table of the cases one by one.
func TestDecide(t *testing.T) {
	b := bundle.Cut("t/n", 1)[0]
	now := time.Unix(1000, 0)
	winner := place.Owner(b.String(), []string{"a", "b"})
	other := map[string]string{"a": "b", "b": "a"}[winner]
	base := func() *Snapshot {
		s := newSnapshot(map[string]BrokerInfo{
			winner: {ID: winner, Session: "w", Seen: now.Add(-time.Hour)},
			other:  {ID: other, Session: "o", Seen: now.Add(-time.Hour)},
		}, map[string]BundleInfo{b.String(): {Bundle: b, Exists: true}})
		s.At, s.Lease, s.MinStay = now, 5*time.Second, 5*time.Second
		s.since, s.heard = now.Add(-time.Hour), now
		s.Revision, s.BrokersRevision = 20, 20
		return s
	}
	set := func(s *Snapshot, owner catalog.Owner, revision meta.Revision, age time.Duration) {
		s.Bundles[b.String()] = BundleInfo{Bundle: b, Exists: true, Owner: owner, Revision: revision, Seen: now.Add(-age)}
	}
	for _, c := range []struct {
		name          string
		change        func(*Snapshot)
		winner, other string // what they do: "", "take" or "give"
	}{
		{"no record", func(*Snapshot) {}, "take", ""},
		{"given up", func(s *Snapshot) { set(s, catalog.Owner{Epoch: 3}, 9, 0) }, "take", ""},
		{"bundle is gone", func(s *Snapshot) { s.Bundles[b.String()] = BundleInfo{Bundle: b, Revision: 9} }, "", ""},
		{"well placed", func(s *Snapshot) { set(s, catalog.Owner{Broker: winner, Session: "w"}, 9, time.Hour) }, "", ""},
		{"misplaced", func(s *Snapshot) { set(s, catalog.Owner{Broker: other, Session: "o"}, 9, time.Hour) }, "", "give"},
		{"misplaced, just now", func(s *Snapshot) { set(s, catalog.Owner{Broker: other, Session: "o"}, 9, time.Second) }, "", ""},
		{"misplaced, newcomer", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: other, Session: "o"}, 9, time.Hour)
			s.Brokers[winner] = BrokerInfo{ID: winner, Session: "w", Seen: now}
		}, "", ""},
		{"misplaced, new view", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: other, Session: "o"}, 9, time.Hour)
			s.since = now.Add(-time.Second)
		}, "", ""},
		{"owner is dead", func(s *Snapshot) { set(s, catalog.Owner{Broker: "x", Session: "x"}, 9, time.Hour) }, "take", ""},
		{"owner is newer than the brokers shown", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: "x", Session: "x"}, 9, time.Hour)
			s.BrokersRevision = 8
		}, "", ""},
		{"owner is dead, new view", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: "x", Session: "x"}, 9, time.Hour)
			s.since = now.Add(-4 * time.Second)
		}, "", ""},
		{"owner is dead, old view", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: "x", Session: "x"}, 9, time.Hour)
			s.heard = now.Add(-4 * time.Second)
		}, "", ""},
		{"record cannot be read", func(s *Snapshot) {
			s.Bundles[b.String()] = BundleInfo{Bundle: b, Exists: true, Revision: 9, Unreadable: true}
		}, "", ""},
		{"earlier session of ours", func(s *Snapshot) {
			set(s, catalog.Owner{Broker: winner, Session: "before"}, 9, time.Hour)
			s.since = now.Add(-time.Second)
		}, "take", ""},
		{"earlier session of the other", func(s *Snapshot) { set(s, catalog.Owner{Broker: other, Session: "before"}, 9, time.Hour) }, "", "take"},
		{"rolled back", func(s *Snapshot) { s.RolledBack = true }, "", ""},
		{"never listed", func(s *Snapshot) { s.since, s.heard = time.Time{}, time.Time{} }, "", ""},
	} {
		s := base()
		c.change(s)
		for id, want := range map[string]string{winner: c.winner, other: c.other} {
			actions := Decide(s, id, s.Brokers[id].Session)
			got := ""
			for _, a := range actions {
				got = "take"
				if a.GiveUp {
					got = "give"
				}
				if a.Bundle != b || a.Revision != s.Bundles[b.String()].Revision || a.GiveUp && a.To.ID != winner || a.Reason == "" {
					t.Errorf("%s: action %+v", c.name, a)
				}
			}
			if got != want || len(actions) > 1 {
				t.Errorf("%s: broker %s does %q, want %q", c.name, id, got, want)
			}
			if actions := Decide(s, id, "a session of before"); len(actions) != 0 {
				t.Errorf("%s: a broker whose session is not listed acts: %+v", c.name, actions)
			}
		}
	}
}

// TestUnreadableOwnerIsNotTakenForNone shows that a bundle whose owner record cannot
// be read keeps that record: who owns it is not known, and it is taken by nobody
// before the record can be read again, or is gone.
func TestUnreadableOwnerIsNotTakenForNone(t *testing.T) {
	b := bundle.Cut("t/n", 1)[0]
	v := NewView(ViewOptions{Layout: keys})
	see := func(revision meta.Revision, value []byte) BundleInfo {
		kv := meta.KV{Key: keys.BundleOwner(b.String()), Value: value, Revision: revision}
		v.hear(feedBundles, revision, false, func() { v.seeBundle(kv) })
		return v.Snapshot().Bundles[b.String()]
	}
	v.hear(feedBundles, 1, true, func() { v.listBundles([]meta.KV{{Key: keys.BundleLog(b.String()), Revision: 1}}) })
	good := marshal(t, metav1.BundleOwner_builder{Broker: new("a"), Session: new("s"), Epoch: new(uint64(2))}.Build())
	if is := see(2, good); is.Unreadable || is.Owner.Broker != "a" {
		t.Errorf("a good record is shown as %+v", is)
	}
	if is := see(3, good[:3]); !is.Unreadable || is.Owner != (catalog.Owner{}) || is.Revision != 3 {
		t.Errorf("a record cut off is shown as %+v", is)
	}
	if is := see(4, good); is.Unreadable || is.Owner.Epoch != 2 {
		t.Errorf("the record written anew is shown as %+v", is)
	}
}
