package main

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is the release, raised by hand when one is made.
const version = "0.1.0"

// versionView is what this binary was built from.
type versionView struct {
	Version  string `json:"version"`
	Commit   string `json:"commit"` // empty: not known
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func thisVersion() versionView {
	v := versionView{Version: version, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				v.Commit = s.Value[:12]
			}
		}
	}
	return v
}

// versionText is the same in a line.
func versionText() string {
	v := thisVersion()
	commit := "unknown commit"
	if v.Commit != "" {
		commit = "commit " + v.Commit
	}
	return fmt.Sprintf("magnetar %s (%s, %s, %s)", v.Version, commit, v.Go, v.Platform)
}
