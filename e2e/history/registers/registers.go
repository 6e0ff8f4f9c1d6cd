// Package registers records what clients of compare-and-swap registers were told,
// and checks that it is linearizable: that there is one order, in keeping with the
// order of time, in which single steps explain every answer.
//
// Every value written is another one, so a value stands for the version that a swap
// compares. The empty value is that of a register that does not exist.
package registers

import (
	"math"
	"slices"
	"sync"
	"time"

	"github.com/anishathalye/porcupine"
)

// Outcome of a swap.
type Outcome uint8

const (
	Done    Outcome = iota + 1 // compared equal, and written
	NotDone                    // compared unequal
	Unknown                    // may have been done, and may be done at any time to come
)

// Log is a running record. Safe for concurrent use.
type Log struct {
	mu         sync.Mutex
	clock      int64
	operations []porcupine.Operation
}

type input struct {
	key      string
	swap     bool
	old, new string
}

type output struct {
	value   string // of a read
	outcome Outcome
}

// Operation is one that has no answer yet. One that surely was not done, or is a
// read without an answer, is left alone; then it is not in the history.
type Operation struct {
	l      *Log
	client int
	in     input
	began  int64
}

func (l *Log) now() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clock++
	return l.clock
}

// Reading records that a client is about to read.
func (l *Log) Reading(client int, key string) *Operation {
	return &Operation{l, client, input{key: key}, l.now()}
}

// Swapping records that a client is about to write new where old is.
func (l *Log) Swapping(client int, key, old, new string) *Operation {
	return &Operation{l, client, input{key: key, swap: true, old: old, new: new}, l.now()}
}

// Read records what a read found.
func (o *Operation) Read(value string) { o.end(output{value: value}) }

// Swapped records how a swap ended.
func (o *Operation) Swapped(outcome Outcome) { o.end(output{outcome: outcome}) }

func (o *Operation) end(out output) {
	o.l.mu.Lock()
	defer o.l.mu.Unlock()
	o.l.clock++
	ended := o.l.clock
	if out.outcome == Unknown {
		ended = math.MaxInt64
	}
	o.l.operations = append(o.l.operations, porcupine.Operation{ClientId: o.client, Input: o.in, Call: o.began, Output: out, Return: ended})
}

// model is a register; histories of several fall apart by key.
var model = porcupine.Model{
	Partition: func(all []porcupine.Operation) [][]porcupine.Operation {
		numbers := map[string]int{}
		var parts [][]porcupine.Operation
		for _, o := range all {
			key := o.Input.(input).key
			n, ok := numbers[key]
			if !ok {
				n = len(parts)
				numbers[key] = n
				parts = append(parts, nil)
			}
			parts[n] = append(parts[n], o)
		}
		return parts
	},
	Init: func() any { return "" },
	Step: func(state, in, out any) (bool, any) {
		i, o, value := in.(input), out.(output), state.(string)
		equal := value == i.old
		switch {
		case !i.swap:
			return o.value == value, state
		case o.outcome == NotDone:
			return !equal, state
		case equal:
			return true, i.new
		}
		// One of unknown outcome that was never done stands at the end of time, where
		// nothing sees it.
		return o.outcome == Unknown, state
	},
}

// Check tells whether the history is linearizable: Ok, Illegal, or Unknown when it
// took longer than patience to find out.
func (l *Log) Check(patience time.Duration) porcupine.CheckResult {
	l.mu.Lock()
	operations := slices.Clone(l.operations)
	l.mu.Unlock()
	return porcupine.CheckOperationsTimeout(model, operations, patience)
}
