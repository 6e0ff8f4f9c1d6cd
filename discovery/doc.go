// Package discovery knows who is alive, which broker owns which bundle, and where
// a topic is served.
//
//   - View follows brokers and bundle owners by watch, and says for how long what
//     it shows has been current.
//   - Registration keeps a broker's record alive under a session.
//   - Keeper takes and gives up bundles for a broker; what it does follows from
//     Decide, which is pure.
//   - Prober finds dead brokers before their lease runs out.
//   - Service and AdminService answer clients and operators.
//
// Ownership here is a hint that makes brokers agree quickly. What makes it safe
// is elsewhere: every owner's transaction compares the owner record, and whoever
// takes a bundle over fences its ledgers.
package discovery
