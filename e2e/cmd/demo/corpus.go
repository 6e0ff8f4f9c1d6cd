package main

import (
	"bufio"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
)

// errNotSent reports a file that is not part of the corpus.
var errNotSent = errors.New("no such file was sent")

// keySeparator stands between a file's path and its line; paths have none.
const keySeparator = "\t"

const (
	// openFiles are read in turn, burstLines at a time, so that all partitions are
	// published to at all times.
	openFiles  = 32
	burstLines = 16
)

// corpus is the files to send, by their path below dir.
type corpus struct {
	dir   string
	files []string
	known map[string]bool
}

// readCorpus finds every *.go file below dir.
func readCorpus(dir string) (*corpus, error) {
	c := &corpus{dir: dir, known: map[string]bool{}}
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() || filepath.Ext(path) != ".go" {
			return err
		}
		if path, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		if strings.ContainsAny(path, keySeparator+"\n") {
			return fmt.Errorf("path %q cannot be a key here", path)
		}
		c.files = append(c.files, path)
		c.known[path] = true
		return nil
	})
	if err == nil && len(c.files) == 0 {
		err = fmt.Errorf("there are no *.go files in %s", dir)
	}
	return c, err
}

func (c *corpus) open(file string) (io.ReadCloser, error) {
	if !c.known[file] {
		return nil, fmt.Errorf("%q: %w", file, errNotSent)
	}
	return os.Open(filepath.Join(c.dir, file))
}

// count reads every file and returns how many lines there are.
func (c *corpus) count() (lines int, err error) {
	for _, file := range c.files {
		r, err := c.open(file)
		if err != nil {
			return 0, err
		}
		all := newLineReader(r)
		for {
			if _, err = all.next(); err != nil {
				break
			}
			lines++
		}
		all.close()
		if !errors.Is(err, io.EOF) {
			return 0, fmt.Errorf("count %s: %w", file, err)
		}
	}
	return lines, nil
}

// sending is a file on its way.
type sending struct {
	file  string
	lines *lineReader
	count int
	sum   hash.Hash
}

// send writes every line of every file to w as path, separator, line, newline,
// counts them in progress, and returns what it sent of each file.
func (c *corpus) send(w io.Writer, progress *atomic.Int64) (map[string]published, error) {
	sent := make(map[string]published, len(c.files))
	out := bufio.NewWriterSize(w, 64<<10)
	var turn []*sending
	defer func() {
		for _, s := range turn {
			s.lines.close()
		}
	}()
	for next := 0; ; {
		for len(turn) < openFiles && next < len(c.files) {
			r, err := c.open(c.files[next])
			if err != nil {
				return nil, err
			}
			turn = append(turn, &sending{file: c.files[next], lines: newLineReader(r), sum: sha256.New()})
			next++
		}
		if len(turn) == 0 {
			return sent, out.Flush()
		}
		for i := 0; i < len(turn); {
			s := turn[i]
			more, err := s.burst(out, progress)
			if err != nil {
				return nil, fmt.Errorf("send %s: %w", s.file, err)
			}
			if more {
				i++
				continue
			}
			s.lines.close()
			sent[s.file] = published{s.count, digest(s.sum.Sum(nil))}
			turn = append(turn[:i], turn[i+1:]...)
		}
	}
}

// burst writes the next lines; more is false at the end of the file.
func (s *sending) burst(out *bufio.Writer, progress *atomic.Int64) (more bool, err error) {
	for range burstLines {
		line, err := s.lines.next()
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		s.sum.Write(line)
		s.sum.Write(newline)
		for _, part := range [][]byte{[]byte(s.file), []byte(keySeparator), line, newline} {
			if _, err := out.Write(part); err != nil {
				return false, err
			}
		}
		s.count++
		progress.Add(1)
	}
	return true, nil
}
