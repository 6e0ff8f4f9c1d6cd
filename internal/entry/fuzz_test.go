package entry

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/protobuf/proto"

	entryv1 "github.com/magnetar-io/magnetar/proto/entry/v1"
)

func headerString(h Header) string { return fmt.Sprintf("%+v", h) }

// FuzzParseHeader shows that the header decoded by hand accepts nothing that
// protobuf refuses, and reads the same from it.
func FuzzParseHeader(f *testing.F) {
	f.Add(AppendProducerPart(nil, fullMetadata(), []byte("payload")))
	f.Add(AppendProducerPart(nil, &entryv1.MessageMetadata{}, nil))
	f.Add([]byte("\x0e\x01\x00\x00\x00\x00\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, p []byte) {
		h, off, err := ParseHeader(p)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
				t.Fatal(err)
			}
			return
		}
		var md entryv1.MessageMetadata
		if err := proto.Unmarshal(p[ProducerPrefixBytes:off], &md); err != nil {
			t.Skip(err) // a field the header does not keep
		}
		if h.ProducerName != md.GetProducerName() || h.SequenceID != md.GetSequenceId() || h.HasPrevious != md.HasPreviousSequenceId() ||
			h.PartitionKey != md.GetPartitionKey() || h.ProducerEpoch != md.GetProducerEpoch() || h.DeliverAt != md.GetDeliverAtTime() ||
			h.Batched != md.HasNumMessagesInBatch() || h.Compression != md.GetCompression() || !bytes.Equal(h.OrderingKey, md.GetOrderingKey()) {
			t.Fatalf("by hand %+v, protobuf %v", h, &md)
		}
	})
}

// FuzzParseBody shows that no body makes the parser fail otherwise than with
// ErrCorrupt, and that what it reads it writes again.
func FuzzParseBody(f *testing.F) {
	f.Add(BrokerPart{Index: 5, Time: 6, SourceCluster: "w"}.AppendTo(nil))
	f.Add(append(BrokerPart{Kind: entryv1.Kind_KIND_HALF}.AppendTo(nil), "rest"...))
	f.Add([]byte("\x0e\x02\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, body []byte) {
		b, rest, err := ParseBody(body)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatal(err)
			}
			return
		}
		again, rest2, err := ParseBody(append(b.AppendTo(nil), rest...))
		if err != nil || !bytes.Equal(rest, rest2) || again.Time != b.Time || again.Kind != b.Kind ||
			again.SourceCluster != b.SourceCluster || !bytes.Equal(again.unknown, b.unknown) {
			t.Fatalf("%+v became %+v: %v", b, again, err)
		}
	})
}

// FuzzVerifyProducerPart shows that verification never reads beyond its input.
func FuzzVerifyProducerPart(f *testing.F) {
	f.Add(AppendProducerPart(nil, fullMetadata(), []byte("payload")))
	f.Fuzz(func(t *testing.T, p []byte) {
		if _, err := VerifyProducerPart(p); err != nil && !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrTooLarge) {
			t.Fatal(err)
		}
	})
}
