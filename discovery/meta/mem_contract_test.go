package meta_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/magnetar-io/magnetar/discovery/meta"
	"github.com/magnetar-io/magnetar/discovery/meta/metatest"
)

// The store in memory keeps the contract.
func TestMemContract(t *testing.T) {
	for _, c := range metatest.Cases() {
		t.Run(c.Name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m := meta.NewMem()
				var clients []string
				lossy := make(map[string]*bool)
				m.OnCall(func(call meta.Call) meta.Fault {
					if on := lossy[call.Client]; on != nil && *on {
						return meta.Fault{Lost: true}
					}
					return meta.Fault{}
				})
				c.Run(t, metatest.Harness{
					Prefix:  "/test/",
					Compact: func(*testing.T) { m.Compact() },
					Expire:  func(_ *testing.T, session string) { m.Expire(session) },
					TTL:     3 * time.Second,
					Open: func(t *testing.T) metatest.Client {
						name := string(rune('a' + len(clients)))
						clients = append(clients, name)
						lossy[name] = new(bool)
						client := m.Client(name)
						t.Cleanup(func() { client.Close() })
						return metatest.Client{
							Store:       client,
							LoseAnswers: func(on bool) { *lossy[name] = on },
							Cut:         client.Cut,
						}
					},
				})
			})
		})
	}
}
