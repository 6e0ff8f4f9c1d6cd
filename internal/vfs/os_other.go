//go:build !linux

package vfs

import "os"

const (
	directFlag = 0 // no O_DIRECT here
	syncedFlag = os.O_SYNC
)

func fdatasync(f *os.File) error { return f.Sync() }
