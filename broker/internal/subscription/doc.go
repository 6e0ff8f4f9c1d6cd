// Package subscription hands the entries of a topic to a named group of
// consumers and keeps what they acknowledged.
//
// What it decides is a pure state machine (machine): who gets which entry, what
// goes back when a consumer leaves, and, whenever nothing moves, for what it
// waits. Around it runs a thin loop (Subscription): it reads entries, calls
// consumers, and answers acknowledgements once they are durable.
//
// Its promises: an entry that is not acknowledged is delivered as long as a
// consumer may be sent something; an acknowledged one is not delivered again
// before a seek; an answered acknowledgement is in the journal. With an
// exclusive or failover subscription entries reach the one consumer served in
// the order of the topic; what goes back on request comes again before what is
// new.
//
// An idle subscription has no goroutine and no timer. What it leaves to others:
// the entries (managedledger), the journal, and the connection to the client.
package subscription
