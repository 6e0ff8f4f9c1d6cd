package client

// queue is a queue of delivered entries; its bytes are bounded by the windows of
// its feeds.
type queue struct {
	items []*delivered
	head  int // items[:head] are taken
}

func (q *queue) len() int { return len(q.items) - q.head }

func (q *queue) push(d *delivered) {
	if q.head > 32 && 2*q.head >= len(q.items) {
		n := copy(q.items, q.items[q.head:])
		clear(q.items[n:])
		q.items, q.head = q.items[:n], 0
	}
	q.items = append(q.items, d)
}

// pop takes the oldest entry, nil when there is none.
func (q *queue) pop() *delivered {
	if q.head == len(q.items) {
		return nil
	}
	d := q.items[q.head]
	q.items[q.head] = nil
	if q.head++; q.head == len(q.items) {
		q.items, q.head = q.items[:0], 0
	}
	return d
}

// drop takes out the entries for which f says so.
func (q *queue) drop(f func(*delivered) bool) {
	kept := q.items[:0]
	for _, d := range q.items[q.head:] {
		if !f(d) {
			kept = append(kept, d)
		}
	}
	clear(q.items[len(kept):])
	q.items, q.head = kept, 0
}
