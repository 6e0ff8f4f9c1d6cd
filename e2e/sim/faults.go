package sim

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/magnetar-io/magnetar/internal/simnet"
	"github.com/magnetar-io/magnetar/internal/vfs"
)

// storm does harm to a cluster, one fault after another, several at a time, and
// undoes each after a while. It keeps within what the promises allow: at most
// Qa-1 disks are lost for good.
type storm struct {
	c    *cluster
	rand *chance
	wg   sync.WaitGroup

	disksLost int
	next      int // number of the next new bookie
}

// fault is a kind of harm. do does it and undoes it; it returns false when there
// was nothing to do it to just now.
type fault struct {
	name   string
	weight int
	do     func(s *storm, ctx context.Context) bool
}

// faults lists every kind, with how often it comes.
var faults = []fault{
	{"broker killed", 4, (*storm).killBroker},
	{"broker stopped in order", 2, (*storm).stopBroker},
	{"broker paused", 3, pauseOne(brokerRole)},
	{"bookie killed", 4, (*storm).killBookie},
	{"bookie without power", 4, (*storm).cutPower},
	{"all without power", 1, (*storm).cutAllPower},
	{"bookie paused", 3, pauseOne(bookieRole)},
	{"disk slow", 3, (*storm).slowDisk},
	{"sync fails", 2, (*storm).failSync},
	{"disk lost", 1, (*storm).loseDisk},
	{"discovery killed", 1, (*storm).killDiscovery},
	{"one way cut", 4, (*storm).cutOneWay},
	{"host cut off", 3, (*storm).isolate},
	{"packets lost", 3, (*storm).losePackets},
	{"connections broken", 3, (*storm).breakConnections},
	{"metadata unavailable", 2, (*storm).metaDown},
	{"metadata out of reach for one", 3, (*storm).metaCut},
	{"metadata slow", 2, (*storm).metaSlow},
	{"metadata answers get lost", 3, (*storm).metaLost},
	{"metadata full", 1, (*storm).metaFull},
	{"watches behind", 2, (*storm).watchBehind},
	{"metadata compacted", 2, (*storm).compact},
	{"session expired", 2, (*storm).expire},
	{"clock jumps", 2, (*storm).jumpClock},
}

// run does harm until ctx ends, and returns once all of it is undone.
func (s *storm) run(ctx context.Context) {
	defer s.wg.Wait()
	s.next = s.c.plan.Bookies + 1
	total := 0
	for _, f := range faults {
		total += f.weight
	}
	for {
		if sleep(ctx, s.rand.span(s.c.plan.FaultEvery/8, 3*s.c.plan.FaultEvery)) != nil {
			return
		}
		n := s.rand.n(total)
		for _, f := range faults {
			if n -= f.weight; n < 0 {
				if f.do(s, ctx) {
					s.c.counts.add("fault: "+f.name, 1)
				}
				break
			}
		}
	}
}

// harm notes a fault and begins it; undo runs after d, or when ctx ends.
func (s *storm) harm(ctx context.Context, who string, d time.Duration, undo func(), what string, args ...any) bool {
	s.c.journal.note(who, "FAULT %s for %v", fmt.Sprintf(what, args...), d)
	s.wg.Go(func() {
		_ = sleep(ctx, d)
		undo()
		s.c.journal.note(who, "over: %s", fmt.Sprintf(what, args...))
	})
	return true
}

// take chooses a host of a role that runs and is not harmed; nil when there is
// none.
func (s *storm) take(roles ...role) *host {
	var of []*host
	for _, r := range roles {
		of = append(of, s.c.of(r)...)
	}
	h := pick(s.rand, of)
	if !h.running() || !h.taken.CompareAndSwap(false, true) {
		return nil
	}
	return h
}

func (h *host) giveBack() { h.taken.Store(false) }

// down kills a host and has it back after d.
func (s *storm) down(ctx context.Context, h *host, image vfs.ImageOptions, what string) bool {
	d := s.rand.span(50*time.Millisecond, 15*time.Second)
	s.c.journal.note(h.name, "FAULT %s for %v", what, d)
	h.kill(image)
	s.wg.Go(func() {
		defer h.giveBack()
		_ = sleep(ctx, d)
		h.restart(context.WithoutCancel(ctx))
	})
	return true
}

// written is the image that a killed process leaves: the machine lives, and so
// does all it wrote.
var written = vfs.ImageOptions{KeepUnsynced: 1, OrderedNames: true}

// powerless is an image that a power cut leaves.
func (s *storm) powerless() vfs.ImageOptions {
	return vfs.ImageOptions{
		Rand: s.rand.Uint64, KeepUnsynced: pick(s.rand, []float64{0, 0.1, 0.5, 1}), OrderedNames: true, TornSectors: s.rand.once(2),
	}
}

func (s *storm) killBroker(ctx context.Context) bool {
	h := s.take(brokerRole)
	return h != nil && s.down(ctx, h, vfs.ImageOptions{}, "killed")
}

func (s *storm) killDiscovery(ctx context.Context) bool {
	h := s.take(discoveryRole)
	return h != nil && s.down(ctx, h, vfs.ImageOptions{}, "killed")
}

func (s *storm) killBookie(ctx context.Context) bool {
	h := s.take(bookieRole)
	return h != nil && s.down(ctx, h, written, "killed")
}

func (s *storm) cutPower(ctx context.Context) bool {
	h := s.take(bookieRole)
	return h != nil && s.down(ctx, h, s.powerless(), "without power")
}

// cutAllPower cuts the power of every host that is not harmed already.
func (s *storm) cutAllPower(ctx context.Context) bool {
	var taken []*host
	for _, h := range s.c.all() {
		if h.running() && h.taken.CompareAndSwap(false, true) {
			taken = append(taken, h)
		}
	}
	var wg sync.WaitGroup
	for _, h := range taken {
		image := s.powerless()
		wg.Go(func() { h.kill(image) })
	}
	wg.Wait()
	d := s.rand.span(100*time.Millisecond, 10*time.Second)
	s.c.journal.note("all", "FAULT without power for %v: %d hosts", d, len(taken))
	for _, h := range taken {
		s.wg.Go(func() {
			defer h.giveBack()
			_ = sleep(ctx, d)
			h.restart(context.WithoutCancel(ctx))
		})
	}
	return len(taken) > 0
}

func (s *storm) stopBroker(ctx context.Context) bool {
	h := s.take(brokerRole)
	if h == nil {
		return false
	}
	s.c.journal.note(h.name, "FAULT stopped in order")
	s.wg.Go(func() {
		defer h.giveBack()
		stopping, cancel := context.WithTimeout(context.WithoutCancel(ctx), 20*time.Second)
		defer cancel()
		if err := h.stop(stopping); err != nil {
			s.c.journal.note(h.name, "stopped in order: %v", err)
		}
		_ = sleep(ctx, s.rand.span(100*time.Millisecond, 5*time.Second))
		h.restart(context.WithoutCancel(ctx))
	})
	return true
}

// pauseOne pauses a host of a role, up to several leases long.
func pauseOne(r role) func(*storm, context.Context) bool {
	return func(s *storm, ctx context.Context) bool {
		h := s.take(r)
		if h == nil {
			return false
		}
		h.pause()
		return s.harm(ctx, h.name, s.rand.span(100*time.Millisecond, 20*time.Second), func() { h.resume(); h.giveBack() }, "paused")
	}
}

func (s *storm) slowDisk(ctx context.Context) bool {
	h := s.take(bookieRole)
	if h == nil {
		return false
	}
	delay := s.rand.span(5*time.Millisecond, 2*time.Second)
	h.setDisk(delay, false)
	return s.harm(ctx, h.name, s.rand.span(time.Second, 15*time.Second), func() { h.setDisk(0, false); h.giveBack() }, "disk takes %v", delay)
}

// failSync makes a bookie's disk fail until the bookie ends itself, and then
// starts it on what such a disk may hold.
func (s *storm) failSync(ctx context.Context) bool {
	h := s.take(bookieRole)
	if h == nil {
		return false
	}
	s.c.journal.note(h.name, "FAULT syncs fail")
	h.setDisk(0, true)
	s.wg.Go(func() {
		defer h.giveBack()
		h.mu.Lock()
		broken := h.broken
		h.mu.Unlock()
		select {
		case err := <-broken:
			s.c.journal.note(h.name, "ended itself: %v", err)
		case <-time.After(2 * time.Second):
			s.c.journal.note(h.name, "did not sync for 2 s")
		}
		h.kill(s.powerless())
		h.setDisk(0, false)
		h.restart(context.WithoutCancel(ctx))
	})
	return true
}

// loseDisk ends a bookie for good, disk and all, and adds an empty one.
func (s *storm) loseDisk(ctx context.Context) bool {
	if s.disksLost >= s.c.plan.Quorum.Ack-1 {
		return false
	}
	h := s.take(bookieRole)
	if h == nil {
		return false
	}
	s.disksLost++
	h.kill(vfs.ImageOptions{})
	s.c.remove(h)
	fresh := s.c.add(bookieRole, s.next)
	s.next++
	fresh.taken.Store(true)
	s.c.journal.note(h.name, "FAULT lost with its disk; %s takes its place", fresh.name)
	s.wg.Go(func() {
		defer fresh.giveBack()
		fresh.restart(context.WithoutCancel(ctx))
	})
	return true
}

// names are all who talk over the network.
func (s *storm) names() []string {
	var names []string
	for _, h := range s.c.all() {
		names = append(names, h.name)
	}
	return append(names, s.c.clients()...)
}

// two chooses two who may talk to each other, one of them a node.
func (s *storm) two() (a, b string) {
	a = pick(s.rand, s.c.all()).name
	for b = a; b == a; {
		b = pick(s.rand, s.names())
	}
	if s.rand.once(2) {
		return b, a
	}
	return a, b
}

func (s *storm) cutOneWay(ctx context.Context) bool {
	from, to := s.two()
	s.c.net.SetLink(from, to, simnet.Link{Cut: true})
	return s.harm(ctx, from, s.rand.span(50*time.Millisecond, 20*time.Second), func() { s.c.net.Mend(from, to) }, "cannot reach %s", to)
}

// isolate cuts one node off from some or all of the others, both ways.
func (s *storm) isolate(ctx context.Context) bool {
	h := pick(s.rand, s.c.all()).name
	others := slices.DeleteFunc(s.names(), func(n string) bool { return n == h || s.rand.once(3) })
	for _, o := range others {
		s.c.net.SetLink(h, o, simnet.Link{Cut: true})
		s.c.net.SetLink(o, h, simnet.Link{Cut: true})
	}
	return s.harm(ctx, h, s.rand.span(50*time.Millisecond, 20*time.Second), func() {
		for _, o := range others {
			s.c.net.Mend(h, o)
			s.c.net.Mend(o, h)
		}
	}, "cut off from %d others", len(others))
}

func (s *storm) losePackets(ctx context.Context) bool {
	h := pick(s.rand, s.names())
	l := simnet.Link{Delay: s.rand.span(time.Millisecond, 300*time.Millisecond), Loss: float64(s.rand.from(1, 20)) / 100}
	l.Jitter = l.Delay
	others := slices.DeleteFunc(s.names(), func(n string) bool { return n == h })
	for _, o := range others {
		s.c.net.SetLink(h, o, l)
	}
	return s.harm(ctx, h, s.rand.span(time.Second, 15*time.Second), func() {
		for _, o := range others {
			s.c.net.Mend(h, o)
		}
	}, "sends late (%v) and loses %.0f %%", l.Delay, l.Loss*100)
}

func (s *storm) breakConnections(context.Context) bool {
	a, b := s.two()
	s.c.journal.note(a, "FAULT connections with %s broken", b)
	s.c.net.Break(a, b)
	return true
}

func (s *storm) metaDown(ctx context.Context) bool {
	s.c.store.SetUnavailable(true)
	return s.harm(ctx, "metadata", s.rand.span(100*time.Millisecond, 20*time.Second), func() { s.c.store.SetUnavailable(false) }, "unavailable")
}

func (s *storm) metaCut(ctx context.Context) bool {
	h := pick(s.rand, s.c.all())
	h.mu.Lock()
	p := h.process
	h.mu.Unlock()
	if p == nil {
		return false
	}
	p.store.Cut(true)
	return s.harm(ctx, h.name, s.rand.span(100*time.Millisecond, 20*time.Second), func() { p.store.Cut(false) }, "cannot reach the metadata store")
}

func (s *storm) metaSlow(ctx context.Context) bool {
	t := s.c.trouble
	d := s.rand.span(10*time.Millisecond, 3*time.Second)
	t.set(func() { t.slow = d })
	return s.harm(ctx, "metadata", s.rand.span(time.Second, 15*time.Second), func() { t.set(func() { t.slow = 0 }) }, "slow by up to %v", d)
}

func (s *storm) metaLost(ctx context.Context) bool {
	t := s.c.trouble
	n := s.rand.from(5, 50)
	t.set(func() { t.lost = n })
	return s.harm(ctx, "metadata", s.rand.span(time.Second, 15*time.Second), func() { t.set(func() { t.lost = 0 }) }, "loses %d of 100 answers", n)
}

func (s *storm) metaFull(ctx context.Context) bool {
	s.c.store.SetNoSpace(true)
	return s.harm(ctx, "metadata", s.rand.span(100*time.Millisecond, 10*time.Second), func() { s.c.store.SetNoSpace(false) }, "full")
}

func (s *storm) watchBehind(ctx context.Context) bool {
	t := s.c.trouble
	d := s.rand.span(100*time.Millisecond, 5*time.Second)
	t.set(func() { t.watch = d })
	return s.harm(ctx, "metadata", s.rand.span(time.Second, 15*time.Second), func() { t.set(func() { t.watch = 0 }) }, "watches are %v behind", d)
}

func (s *storm) compact(context.Context) bool {
	s.c.journal.note("metadata", "FAULT compacted")
	s.c.store.Compact()
	return true
}

// expire ends the session of a node whose process lives.
func (s *storm) expire(context.Context) bool {
	sessions := s.c.store.Sessions()
	if len(sessions) == 0 {
		return false
	}
	id := pick(s.rand, sessions)
	s.c.journal.note("metadata", "FAULT session %s expires", id)
	s.c.store.Expire(id)
	return true
}

func (s *storm) jumpClock(ctx context.Context) bool {
	h := pick(s.rand, s.c.all())
	offset := s.rand.span(time.Second, 48*time.Hour)
	if s.rand.once(2) {
		offset = -offset
	}
	drift := float64(s.rand.from(-20, 20)) / 100
	h.clock.set(offset, drift)
	return s.harm(ctx, h.name, s.rand.span(time.Second, 20*time.Second), func() { h.clock.set(0, 0) }, "clock is %v off and gains %.0f %%", offset, drift*100)
}
