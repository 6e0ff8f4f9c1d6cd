package index

import "errors"

// Contents is what Check counted.
type Contents struct {
	Records    int
	Extents    int
	Segments   int
	Tombstones uint64
	Damaged    int // entries known to be damaged
}

// Check reads everything in the index, which checks the engine's checksums too,
// and gives each extent to extent. It ends with the first value that cannot be
// read, ErrCorrupt, or the first error of extent.
func (x *Index) Check(extent func(Extent) error) (Contents, error) {
	c := Contents{Tombstones: x.DeletedCount(), Segments: len(x.Segments())}
	err := errors.Join(
		x.Records(func(Record) error { c.Records++; return nil }),
		x.scan(prefixExtent, func(key, value []byte) error {
			e, err := decodeExtent(key, value)
			if err == nil {
				c.Extents++
				err = extent(e)
			}
			return err
		}),
		x.scan(prefixDamage, func(key, value []byte) error {
			_, r, err := decodeDamage(key, value)
			c.Damaged += int(r.Last - r.First + 1)
			return err
		}),
	)
	return c, err
}
