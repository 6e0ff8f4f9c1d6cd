//go:build !linux

package latency

import "time"

func shortSleep(d time.Duration) { time.Sleep(d) }
