package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is the release, raised by hand when one is made.
const version = "0.1.0"

// versionText says what this binary was built from.
func versionText() string {
	commit := "unknown commit"
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				commit = "commit " + s.Value[:12]
			}
		}
	}
	return fmt.Sprintf("magnetar %s (%s, %s, %s/%s)", version, commit, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}
