package main

import (
	"sync/atomic"

	"github.com/magnetar-io/magnetar/internal/vfs"
)

// readMeter is files of which every byte that is read is counted.
type readMeter struct {
	vfs.FS
	bytes atomic.Int64
}

func (m *readMeter) Open(name string) (vfs.File, error) {
	f, err := m.FS.Open(name)
	if err != nil {
		return nil, err
	}
	return meteredFile{f, m}, nil
}

func (m *readMeter) OpenReadWrite(name string) (vfs.File, error) {
	f, err := m.FS.OpenReadWrite(name)
	if err != nil {
		return nil, err
	}
	return meteredFile{f, m}, nil
}

type meteredFile struct {
	vfs.File
	m *readMeter
}

func (f meteredFile) ReadAt(p []byte, offset int64) (int, error) {
	n, err := f.File.ReadAt(p, offset)
	f.m.bytes.Add(int64(n))
	return n, err
}
