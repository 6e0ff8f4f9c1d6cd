package explore

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"
)

// Result says what a search saw.
type Result struct {
	Config      Config
	States      int // distinct
	Transitions int
	Depth       int  // steps to the farthest state seen
	Whole       int  // all states up to so many steps were seen
	Exhaustive  bool // every state within the bounds of the Config was seen
	Took        time.Duration
	Fault       string   // the invariant found broken; "": none
	Trace       []string // the way to it: the shortest, if it was found breadth first
}

// node says how a state was first reached.
type node struct {
	parent int32
	choice int32 // which of the parent's steps
	depth  int32
}

// place is a state on the search's frontier, and its node.
type place struct {
	s  *state
	at int32
}

// search is one run of Explore.
type search struct {
	world
	Result
	nodes []node
	seen  map[key]int32 // node of each state
}

// Explore visits the states of c breadth first and stops at the first that breaks
// an invariant: no shorter way leads to one. If there are more than c.Limit it sees
// half as many so, and the rest on walks at random from the start to where nothing
// more can happen, so that ends are tried too and not beginnings alone.
func Explore(c Config) Result {
	began := time.Now()
	x := &search{world: world{Config: c}, Result: Result{Config: c}, seen: make(map[key]int32)}
	first := place{s: x.initial()}
	x.nodes = append(x.nodes, node{parent: -1})
	x.seen[first.s.key()] = 0
	x.breadthFirst(first)
	if x.Fault == "" && !x.Exhaustive {
		x.walk(first)
	}
	x.States, x.Took = len(x.seen), time.Since(began)
	return x.Result
}

// breadthFirst goes on until there is nothing new, something is broken, or half the
// limit is used up.
func (x *search) breadthFirst(first place) {
	level := []place{first}
	for ; len(level) > 0; x.Whole++ {
		var next []place
		for i, p := range level {
			level[i].s = nil // let go of it early
			x.follow(p, func(n place, isNew bool) {
				if isNew {
					next = append(next, n)
				}
			})
			if x.Fault != "" || x.Limit > 0 && len(x.seen) >= x.Limit/2 {
				return
			}
		}
		level = next
	}
	x.Exhaustive = true
}

// walk goes at random until the limit is used up, or until it has made twice as many
// steps as the search before it.
func (x *search) walk(first place) {
	random := rand.New(rand.NewPCG(1, 1))
	for end := 3 * x.Transitions; x.Transitions < end && len(x.seen) < x.Limit; {
		for p := first; p.s != nil; {
			var chosen place
			ways := 0
			x.follow(p, func(n place, _ bool) {
				if ways++; random.IntN(ways) == 0 {
					chosen = n
				}
			})
			if x.Fault != "" {
				return
			}
			p = chosen
		}
	}
}

// follow makes every step that may follow p, until one breaks an invariant.
func (x *search) follow(p place, visit func(n place, isNew bool)) {
	choice := int32(-1)
	x.steps(p.s, func(_ func() string, s *state) {
		choice++
		if x.Fault != "" {
			return
		}
		x.Transitions++
		k := s.key()
		at, ok := x.seen[k]
		if !ok || s.ghost.fault != "" {
			at = int32(len(x.nodes))
			x.nodes = append(x.nodes, node{parent: p.at, choice: choice, depth: x.nodes[p.at].depth + 1})
			x.seen[k] = at
			x.Depth = max(x.Depth, int(x.nodes[at].depth))
		}
		if s.ghost.fault != "" {
			x.Fault, x.Trace = s.ghost.fault, x.trace(at)
			return
		}
		visit(place{s, at}, !ok)
	})
}

// trace goes the way to a node again and tells each step.
func (x *search) trace(at int32) []string {
	var choices []int32
	for ; at > 0; at = x.nodes[at].parent {
		choices = append(choices, x.nodes[at].choice)
	}
	var notes []string
	teller := &world{Config: x.world.Config, notes: &notes}
	s := teller.initial()
	lines := []string{"created: " + recordString(&s.record.md)}
	if n := x.world.Stored; n > 0 {
		lines = append(lines, fmt.Sprintf("entry 0 was appended, and %d bookies have stored and answered it", n))
	}
	notes = nil
	for i := len(choices) - 1; i >= 0; i-- {
		choice, from := int32(-1), s
		teller.steps(from, func(label func() string, n *state) {
			if choice++; choice == choices[i] {
				lines = append(lines, fmt.Sprintf("%2d. %s", len(choices)-i, label()))
				for _, note := range notes {
					lines = append(lines, "      "+note)
				}
				s = n
			}
			notes = nil
		})
	}
	return append(lines, "BROKEN: "+s.ghost.fault)
}

// String is a line for people, and the trace if something is broken.
func (r Result) String() string {
	how := "exhaustive"
	if !r.Exhaustive {
		how = fmt.Sprintf("bounded: all to depth %d, then walks", r.Whole)
	}
	if r.Fault != "" {
		how = "BROKEN"
	}
	line := fmt.Sprintf("%-52s %8d states %9d transitions  depth %3d %6.1fs  %s",
		r.Config.Name, r.States, r.Transitions, r.Depth, r.Took.Seconds(), how)
	if r.Fault != "" {
		line += "\n    " + strings.Join(r.Trace, "\n    ")
	}
	return line
}
