package latency

import (
	"syscall"
	"time"
)

// shortSleep sleeps to within a tenth of a millisecond, at the price of a thread.
// A signal may end it early, which does not matter to a Pacer.
func shortSleep(d time.Duration) {
	t := syscall.NsecToTimespec(int64(d))
	_ = syscall.Nanosleep(&t, nil)
}
