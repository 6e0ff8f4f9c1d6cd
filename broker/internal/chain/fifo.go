package chain

// fifo is a queue of adds.
//
// Invariant: adds[head:] are in it, bytes is the sum of their bodies.
type fifo struct {
	adds  []add
	head  int
	bytes int64
}

func (q *fifo) len() int { return len(q.adds) - q.head }

// push puts one at the end; unpush takes it off again.
func (q *fifo) push(one add) {
	q.adds = append(q.adds, one)
	q.bytes += int64(len(one.body))
}

func (q *fifo) unpush() {
	last := len(q.adds) - 1
	q.bytes -= int64(len(q.adds[last].body))
	q.adds[last] = add{}
	q.adds = q.adds[:last]
}

func (q *fifo) front() add { return q.adds[q.head] }

// pop takes the front off. The room it leaves is used again once it is half of
// the whole, and given back when the queue runs empty after a burst.
func (q *fifo) pop() {
	q.bytes -= int64(len(q.adds[q.head].body))
	q.adds[q.head] = add{}
	q.head++
	switch {
	case q.head == len(q.adds):
		q.head = 0
		if q.adds = q.adds[:0]; cap(q.adds) > 1024 {
			q.adds = nil
		}
	case q.head > 64 && q.head > len(q.adds)/2:
		n := copy(q.adds, q.adds[q.head:])
		clear(q.adds[n:])
		q.adds, q.head = q.adds[:n], 0
	}
}

// prepend puts all of first, in order, before the rest.
func (q *fifo) prepend(first *fifo) {
	adds := make([]add, 0, first.len()+q.len())
	adds = append(append(adds, first.adds[first.head:]...), q.adds[q.head:]...)
	q.adds, q.head = adds, 0
	q.bytes += first.bytes
}
