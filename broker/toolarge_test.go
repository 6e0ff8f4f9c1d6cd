package broker

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/magnetar-io/magnetar/broker/internal/topic"
	brokerv1 "github.com/magnetar-io/magnetar/proto/broker/v1"
)

// TestBookiesTooSmall shows that a publish is refused at once, with the bookies and
// what to change, where too few of them take the largest batch that the broker
// takes, and that the topic takes publishes by itself once an ack quorum of them was
// started with larger segments.
func TestBookiesTooSmall(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		for i := range 3 {
			w.bookies.At(i).SetMaxBody(1 << 20)
		}
		n := w.start("b1")
		name := w.topic("public/default/large")
		n.open(w.bundleOf(name))
		refused := func(producer string) {
			t.Helper()
			tp, err := n.Broker.topic(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			s := &sink{}
			if _, err := tp.OpenProducer(producer, 0, false, s); err != nil {
				t.Fatal(err)
			}
			s.producer.Publish(batch(producer, 0, 0))
			w.until("a refusal", time.Second, func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return len(s.refused) == 1
			})
			err = s.refused[0]
			for _, want := range []string{"0 of 3 bookies writable", "bookie-1, bookie-2, bookie-3 take entries of at most 1048576 bytes",
				"there may be some of 5308456", "--disk-limit", "--max-message-bytes"} {
				if !errors.Is(err, topic.ErrNoBookies) || !strings.Contains(err.Error(), want) {
					t.Errorf("refused with %v, want %q in it", err, want)
				}
			}
			if code := codeOf(err); code != brokerv1.Code_CODE_QUOTA {
				t.Errorf("code %v", code)
			}
			if s.closed != nil {
				t.Errorf("the producer was closed: %v", s.closed)
			}
			s.producer.Close(true)
		}
		refused("p")
		w.bookies.At(0).SetMaxBody(8 << 20)
		time.Sleep(time.Minute)
		w.bookies.At(1).SetMaxBody(8 << 20)
		s := n.publish(name, "p", 3)
		s.mu.Lock()
		defer s.mu.Unlock()
		if len(s.refused) != 0 || s.closed != nil {
			t.Errorf("with two bookies of larger segments: %v, %v", s.refused, s.closed)
		}
	})
}
