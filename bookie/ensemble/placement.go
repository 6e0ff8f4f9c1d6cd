package ensemble

import (
	"fmt"
	"strings"

	"github.com/magnetar-io/magnetar/bookie/ledger"
)

// placer chooses bookies for the slots of an ensemble. It is made for one
// decision, from one view of who is alive.
type placer struct {
	candidates []Candidate
	class      ledger.Class
	// bodyBytes is the largest body that is to be stored; 0: any bookie takes it.
	bodyBytes int64
	remedy    string // what an operator can do where bookies do not
	rand      func() uint64
	// avoid: a bookie that failed lately, taken only when there is no other; nil:
	// none.
	avoid func(ledger.Member) bool
	// mayReplaceSlow bounds how often a bookie that is slow, not failed, is
	// replaced; nil: always.
	mayReplaceSlow func(ledger.Member) bool
}

// usable reports whether a candidate takes every add of the ledger.
func (p *placer) usable(c Candidate) bool { return p.hasRoom(c) && c.takes(p.bodyBytes) }

// hasRoom reports whether a candidate's disk has room for the ledger's class.
func (p *placer) hasRoom(c Candidate) bool { return !c.ReadOnly || p.class == ledger.Control }

// listed reports whether m, in this incarnation, is alive.
func (p *placer) listed(m ledger.Member) bool {
	for _, c := range p.candidates {
		if c.Member == m {
			return true
		}
	}
	return false
}

// refuses reports whether m is alive and does not take every add of the ledger.
func (p *placer) refuses(m ledger.Member) bool {
	for _, c := range p.candidates {
		if c.Member == m {
			return !p.usable(c)
		}
	}
	return false
}

// writable counts the usable bookies.
func (p *placer) writable() int { return p.count(p.usable) }

func (p *placer) count(is func(Candidate) bool) int {
	n := 0
	for _, c := range p.candidates {
		if is(c) {
			n++
		}
	}
	return n
}

// tooSmall lists the bookies that would be usable if they took larger entries.
func (p *placer) tooSmall() []Candidate {
	var small []Candidate
	for _, c := range p.candidates {
		if p.hasRoom(c) && !c.takes(p.bodyBytes) {
			small = append(small, c)
		}
	}
	return small
}

// fill puts bookies into the vacant slots of ensemble as far as there are any.
// No bookie is taken twice, nor one of except. It prefers, in this order, bookies
// that did not fail lately, writable ones, and racks that the ensemble does not
// use yet; among equals it draws.
func (p *placer) fill(ensemble []ledger.Member, except ...ledger.Member) {
	for s := range ensemble {
		if !ensemble[s].Vacant() {
			continue
		}
		best, bestScore, equals := -1, -1, uint64(0)
		for i, c := range p.candidates {
			if !p.usable(c) || named(ensemble, c.Member.Bookie) || contains(except, c.Member) {
				continue
			}
			score := p.score(c, ensemble)
			switch {
			case score > bestScore:
				best, bestScore, equals = i, score, 1
			case score == bestScore:
				if equals++; p.rand()%equals == 0 {
					best = i
				}
			}
		}
		if best < 0 {
			return
		}
		ensemble[s] = p.candidates[best].Member
	}
}

func (p *placer) score(c Candidate, ensemble []ledger.Member) int {
	score := 0
	if p.avoid == nil || !p.avoid(c.Member) {
		score += 4
	}
	if !c.ReadOnly {
		score += 2
	}
	if c.Rack == "" || !p.rackUsed(c.Rack, ensemble) {
		score++
	}
	return score
}

func (p *placer) rackUsed(rack string, ensemble []ledger.Member) bool {
	for _, c := range p.candidates {
		if c.Rack == rack && contains(ensemble, c.Member) {
			return true
		}
	}
	return false
}

// missing names what is lacking for people.
func (p *placer) missing(q ledger.Quorum) error {
	text := fmt.Sprintf("%d of %d bookies writable, the ack quorum is %d", p.writable(), len(p.candidates), q.Ack)
	if small := p.tooSmall(); len(small) > 0 {
		most, names := int64(0), make([]string, 0, maxNamed+1)
		for i, c := range small {
			most = max(most, c.MaxBodyBytes)
			if i < maxNamed {
				names = append(names, c.Member.Bookie)
			}
		}
		if more := len(small) - maxNamed; more > 0 {
			names = append(names, fmt.Sprintf("%d more", more))
		}
		text += fmt.Sprintf("; %s take entries of at most %d bytes, there may be some of %d: %s", strings.Join(names, ", "), most, p.bodyBytes, p.remedy)
	}
	return fmt.Errorf("%s: %w", text, ledger.ErrNotEnoughBookies)
}

// maxNamed bounds the bookies that one error names.
const maxNamed = 5

// What helps where bookies do not take entries as large as there may be: of those
// to come, and of those that there are.
const (
	remedyBefore = "give bookies larger segments (a larger --disk-limit) or lower --max-message-bytes of the brokers"
	remedyAfter  = "give bookies larger segments (a larger --disk-limit)"
)

// named reports whether a bookie, in whatever incarnation, is in the ensemble.
func named(ensemble []ledger.Member, bookie string) bool {
	f := ledger.Fragment{Ensemble: ensemble}
	return f.Slot(bookie) >= 0
}

func contains(ms []ledger.Member, m ledger.Member) bool {
	for _, o := range ms {
		if o == m {
			return true
		}
	}
	return false
}
