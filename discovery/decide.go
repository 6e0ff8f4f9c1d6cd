package discovery

import (
	"slices"

	"github.com/magnetar-io/magnetar/discovery/bundle"
	"github.com/magnetar-io/magnetar/discovery/internal/place"
	"github.com/magnetar-io/magnetar/discovery/meta"
)

// Action is a bundle to take or to give up, and why.
type Action struct {
	Bundle   bundle.Bundle
	GiveUp   bool          // hand the owner record over to To; else write it for this broker
	Revision meta.Revision // of the owner record to replace; 0: there is none
	Epoch    uint64        // of that record; the next has one more
	To       BrokerInfo    // who gets it, of one to give up
	Reason   string
}

// Decide says which bundles a broker, registered under session, has to take and
// which to give up, in order of bundles. It is pure, and every broker that sees
// the same comes to a matching answer, so none has to lead.
//
// A bundle without an owner goes to the live broker that ranks first for it. One
// whose owner is gone goes there too, but only once current data was watched for a
// whole lease: after a long outage every session has lapsed, and brokers are given
// that time to come back. Nor is an owner gone whose record is newer than what is
// shown of the brokers: it may be newer, too. Nor one whose record cannot be read:
// that is left as it is. One that is back, under another
// session than the one it took the bundle in, is not gone: it alone claims the
// bundle anew, whoever ranks first, and hands it over in order if another one does
// (M5). Of a store that was rolled back nothing is taken over (M7). A broker that
// comes anew gets its share from the others once it has been there for MinStay.
//
// What follows from a broker's own records is its own to see: a bundle whose
// record moved on is to be dropped, one that names the present session to be
// opened.
func Decide(s *Snapshot, self, session string) []Action {
	if own, registered := s.Brokers[self]; !registered || own.Session != session || s.RolledBack || !s.Current() {
		return nil
	}
	settled := s.settled(self)
	var actions []Action
	for name, b := range s.Bundles {
		if !b.Exists || b.Unreadable {
			continue
		}
		a := Action{Bundle: b.Bundle, Revision: b.Revision, Epoch: b.Owner.Epoch}
		owner, alive := s.OwnerOf(b)
		switch {
		case alive && owner.ID == self:
			winner := place.Owner(name, settled)
			if winner == self || s.At.Sub(b.Seen) < s.MinStay || s.Watched() < s.MinStay {
				continue
			}
			a.GiveUp, a.To, a.Reason = true, s.Brokers[winner], "another broker ranks first"
		case alive:
			continue
		case b.Owner.Broker == self:
			// Nobody is judged: that session's key is now this one's.
			a.Reason = "an earlier session of this broker owned it"
		case s.live(b.Owner.Broker), place.Owner(name, s.ids) != self:
			continue
		case b.Owner.Broker == "":
			a.Reason = "it has no owner"
		case s.Watched() < s.Lease:
			continue
		case s.BrokersRevision < b.Revision:
			continue
		default:
			a.Reason = "the session of its owner is over"
		}
		actions = append(actions, a)
	}
	slices.SortFunc(actions, func(a, b Action) int { return bundle.Compare(a.Bundle, b.Bundle) })
	return actions
}

// settled returns the live brokers that have been there for long enough that
// bundles may move to them for nothing but an even spread.
func (s *Snapshot) settled(self string) []string {
	return slices.DeleteFunc(slices.Clone(s.ids), func(id string) bool {
		return id != self && s.At.Sub(s.Brokers[id].Seen) < s.MinStay
	})
}
