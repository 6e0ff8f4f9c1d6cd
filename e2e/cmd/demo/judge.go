package main

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"hash/maphash"
	"io"

	"github.com/magnetar-io/magnetar/client"
)

// digest is the SHA-256 of a file's lines, a newline after each.
type digest [sha256.Size]byte

// published is what was sent of a file.
type published struct {
	lines int
	sum   digest
}

// verdict is what a subscription got, against what was sent.
type verdict struct {
	delivered   int // messages, each id once
	redelivered int // ids that came again
	differ      int // files whose SHA-256 is not that of what was sent

	// Of the lines of each file:
	lost       int // sent, not delivered, or fewer times than they stand in the file
	duplicated int // delivered with more ids than they stand in the file
	outOfOrder int // to be moved to get the file's order
	invented   int // never stood in the file
}

func (v verdict) good() bool {
	return v.differ == 0 && v.lost == 0 && v.duplicated == 0 && v.outOfOrder == 0 && v.invented == 0
}

// judge follows what one subscription gets. Every file is one sequence of lines,
// in the order of the file. The judge compares each line as it comes; only once a
// file strays does it keep hashes of what comes later, to say in the end what is
// wrong. So it holds a running SHA-256 a file, a bit a message, and no lines.
//
// Not safe for concurrent use.
type judge struct {
	open  func(file string) (io.ReadCloser, error) // reads a file that was sent
	seed  maphash.Seed
	seen  map[entryID]*bitset
	files map[string]*fileCheck

	delivered, redelivered int
}

// entryID names an entry: batch index apart, what a message id is made of.
type entryID struct {
	partition     int32
	ledger, entry int64
}

// fileCheck is how far the lines of a file have come.
type fileCheck struct {
	sum     hash.Hash
	matched int         // lines that came as they stand in the file
	source  *lineReader // the file after those; nil while none came, and at its end
	ended   bool        // the file was read to its end
	strayed bool
	strays  []uint64 // hashes of what came from the first line on that did not match
}

func newJudge(open func(file string) (io.ReadCloser, error)) *judge {
	return &judge{open: open, seed: maphash.MakeSeed(), seen: map[entryID]*bitset{}, files: map[string]*fileCheck{}}
}

// deliver takes the next message of the subscription.
func (j *judge) deliver(file string, id client.MessageID, value []byte) error {
	if !j.first(id) {
		j.redelivered++
		return nil
	}
	j.delivered++
	f := j.files[file]
	if f == nil {
		f = &fileCheck{sum: sha256.New()}
		j.files[file] = f
	}
	f.sum.Write(value)
	f.sum.Write(newline)
	if f.strayed {
		f.strays = append(f.strays, maphash.Bytes(j.seed, value))
		return nil
	}
	matches, err := j.matches(f, file, value)
	switch {
	case err != nil:
		return fmt.Errorf("compare with %s: %w", file, err)
	case matches:
		f.matched++
		return nil
	}
	f.strayed, f.strays = true, []uint64{maphash.Bytes(j.seed, value)}
	f.close()
	return nil
}

// first notes an id and says whether it had not come before.
func (j *judge) first(id client.MessageID) bool {
	entry := entryID{id.Partition, id.Ledger, id.Entry}
	b := j.seen[entry]
	if b == nil {
		b = &bitset{}
		j.seen[entry] = b
	}
	return b.set(max(0, int(id.BatchIndex))) // -1 is the one message of an entry
}

// matches says whether value is the file's next line.
func (j *judge) matches(f *fileCheck, file string, value []byte) (bool, error) {
	if f.source == nil && !f.ended {
		r, err := j.open(file)
		if errors.Is(err, errNotSent) {
			f.ended = true // as one without a line
			return false, nil
		}
		if err != nil {
			return false, err
		}
		f.source = newLineReader(r)
	}
	if f.ended {
		return false, nil
	}
	line, err := f.source.next()
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if err != nil || !bytes.Equal(line, value) {
		return false, nil
	}
	if f.source.atEnd() {
		f.close()
	}
	return true, nil
}

// close lets go of the file.
func (f *fileCheck) close() {
	f.ended = true
	if f.source != nil {
		f.source.close()
		f.source = nil
	}
}

// verdict compares all that came with all that was sent.
func (j *judge) verdict(sent map[string]published) (verdict, error) {
	v := verdict{delivered: j.delivered, redelivered: j.redelivered}
	for file, f := range j.files {
		f.close()
		if _, ok := sent[file]; !ok {
			v.differ++
			v.invented += f.matched + len(f.strays)
		}
	}
	for file, want := range sent {
		f := j.files[file]
		if f == nil {
			f = &fileCheck{sum: sha256.New()}
		}
		if digest(f.sum.Sum(nil)) == want.sum {
			continue
		}
		v.differ++
		if !f.strayed {
			v.lost += want.lines - f.matched
			continue
		}
		lines, err := j.hashes(file)
		if err != nil {
			return v, fmt.Errorf("compare with %s: %w", file, err)
		}
		d := compare(lines, append(lines[:f.matched:f.matched], f.strays...))
		v.lost += d.lost
		v.duplicated += d.duplicated
		v.outOfOrder += d.outOfOrder
		v.invented += d.invented
	}
	return v, nil
}

// hashes reads the lines of a file.
func (j *judge) hashes(file string) ([]uint64, error) {
	r, err := j.open(file)
	if err != nil {
		return nil, err
	}
	lines := newLineReader(r)
	defer lines.close()
	var all []uint64
	for {
		line, err := lines.next()
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, maphash.Bytes(j.seed, line))
	}
}

// bitset is a set of small numbers.
type bitset struct{ words []uint64 }

// set adds n and says whether it is new.
func (b *bitset) set(n int) bool {
	for n/64 >= len(b.words) {
		b.words = append(b.words, 0)
	}
	word, bit := &b.words[n/64], uint64(1)<<(n%64)
	isNew := *word&bit == 0
	*word |= bit
	return isNew
}

var newline = []byte("\n")

// lineReader reads lines as `magnetar produce` does: a newline ends a line and is
// no part of it; the last line need not have one; a carriage return is a byte like
// any other.
type lineReader struct {
	file io.ReadCloser
	r    *bufio.Reader
	long []byte // a line longer than r's buffer
}

func newLineReader(file io.ReadCloser) *lineReader {
	return &lineReader{file: file, r: bufio.NewReaderSize(file, 16<<10)}
}

// next returns the next line, good until the call after, or io.EOF.
func (l *lineReader) next() ([]byte, error) {
	line, err := l.r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		l.long = l.long[:0]
		for errors.Is(err, bufio.ErrBufferFull) {
			l.long = append(l.long, line...)
			line, err = l.r.ReadSlice('\n')
		}
		l.long = append(l.long, line...)
		line = l.long
	}
	if errors.Is(err, io.EOF) && len(line) > 0 {
		err = nil
	}
	return bytes.TrimSuffix(line, newline), err
}

// atEnd says whether no line is left.
func (l *lineReader) atEnd() bool {
	_, err := l.r.Peek(1)
	return errors.Is(err, io.EOF)
}

func (l *lineReader) close() { l.file.Close() } // only read from
