package broker

import (
	"context"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	adminv1 "github.com/magnetar-io/magnetar/proto/admin/v1"
	metav1 "github.com/magnetar-io/magnetar/proto/meta/v1"
)

// verifyStream is the stream of one VerifyLedger, as its server sees it.
type verifyStream struct {
	grpc.ServerStreamingServer[adminv1.VerifyLedgerResponse] // for what is not called
	ctx                                                      context.Context
	sent                                                     []*adminv1.VerifyLedgerResponse
}

func (s *verifyStream) Context() context.Context { return s.ctx }

func (s *verifyStream) Send(r *adminv1.VerifyLedgerResponse) error {
	s.sent = append(s.sent, r)
	return nil
}

// A verification tells after its first read how much there is to do, then at most once
// a second how far it is, and at last reports on every copy.
func TestVerifyTellsHowFarItIs(t *testing.T) {
	story(t, func(t *testing.T, w *world) {
		name := w.topic("orders")
		a := w.start("a").ready(name)
		a.publish(name, "p", 10)
		a.close() // and with it the ledger
		kvs, _, err := w.store.Range(t.Context(), keys.Chain(w.idOf(name)), "", 0)
		if err != nil || len(kvs) != 1 {
			t.Fatalf("%d ledgers: %v", len(kvs), err)
		}
		var link metav1.ChainLink
		if err := proto.Unmarshal(kvs[0].Value, &link); err != nil {
			t.Fatal(err)
		}
		b := w.start("b")
		admin := &ledgerAdmin{ledgers: b.opts.Ledgers, directory: b.opts.Directory}
		for latency, tells := range map[time.Duration]int{2 * time.Second: 3, 10 * time.Millisecond: 1} {
			for i := range 3 {
				w.bookies.At(i).SetLatency(latency)
			}
			s := &verifyStream{ctx: t.Context()}
			if err := admin.VerifyLedger(adminv1.VerifyLedgerRequest_builder{Ledger: new(link.GetLedger())}.Build(), s); err != nil {
				t.Fatal(err)
			}
			report := s.sent[len(s.sent)-1]
			entries := report.GetEntries()
			if entries == 0 || len(report.GetCopies()) != 3 || report.GetShortEntries() != 0 || report.GetChecked() != 3*entries {
				t.Errorf("report: %v", report)
			}
			told := s.sent[:len(s.sent)-1]
			if len(told) != tells {
				t.Errorf("told %d times how far it is when a read takes %v, want %d: %v", len(told), latency, tells, told)
			}
			for i, r := range told {
				if r.GetToCheck() != 3*entries || r.GetChecked() != int64(i+1)*entries || r.GetLedger() != 0 {
					t.Errorf("told: %v", r)
				}
			}
		}
	})
}
