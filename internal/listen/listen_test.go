package listen

import (
	"errors"
	"strings"
	"testing"
)

// TestBeyondLoopbackIsRefused shows that an address others can reach needs the
// explicit flag, and that the error names it.
func TestBeyondLoopbackIsRefused(t *testing.T) {
	for _, host := range []string{"0.0.0.0", "", "::", "192.0.2.1", "example.org"} {
		_, err := TCP("["+host+"]:0", "grpc-port", false)
		if !errors.Is(err, ErrInsecure) || !strings.Contains(err.Error(), "--insecure-listen") {
			t.Errorf("%q: got %v", host, err)
		}
	}
	for _, host := range []string{"127.0.0.1", "localhost"} {
		l, err := TCP(host+":0", "grpc-port", false)
		if err != nil {
			t.Errorf("%q: %v", host, err)
			continue
		}
		l.Close()
	}
}

// TestTakenPortSaysWhatToDo shows the error of a port in use.
func TestTakenPortSaysWhatToDo(t *testing.T) {
	l, err := TCP("127.0.0.1:0", "grpc-port", false)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = TCP(l.Addr().String(), "grpc-port", false)
	if err == nil || !strings.Contains(err.Error(), "taken") || !strings.Contains(err.Error(), "--grpc-port") {
		t.Fatalf("got %v", err)
	}
}
