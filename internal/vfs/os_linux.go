package vfs

import (
	"os"

	"golang.org/x/sys/unix"
)

const (
	directFlag = unix.O_DIRECT
	syncedFlag = unix.O_DSYNC
)

// fdatasync flushes data, and of the metadata what reading it back needs.
func fdatasync(f *os.File) error {
	for {
		err := unix.Fdatasync(int(f.Fd()))
		if err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
