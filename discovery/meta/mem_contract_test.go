package meta_test

import (
	"strconv"
	"sync"
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
				clients := 0
				var lossy sync.Map // names of clients whose answers are lost
				m.OnCall(func(call meta.Call) meta.Fault {
					_, lost := lossy.Load(call.Client)
					return meta.Fault{Lost: lost}
				})
				c.Run(t, metatest.Harness{
					Prefix:  "/test/",
					Compact: func(*testing.T) { m.Compact() },
					Expire:  func(_ *testing.T, session string) { m.Expire(session) },
					TTL:     3 * time.Second,
					Open: func(t *testing.T) metatest.Client {
						clients++
						name := strconv.Itoa(clients)
						client := m.Client(name)
						t.Cleanup(func() { client.Close() })
						return metatest.Client{
							Store: client,
							LoseAnswers: func(on bool) {
								if lossy.Delete(name); on {
									lossy.Store(name, true)
								}
							},
							Cut: client.Cut,
						}
					},
				})
			})
		})
	}
}
