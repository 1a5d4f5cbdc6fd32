package natsfile

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// Any bytes in the place of a block are read to their end, and nothing beside them.
func FuzzBlock(f *testing.F) {
	f.Add([]byte{30, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{40, 0, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 's', 1, 0, 0, 0, 'x'})
	f.Fuzz(func(t *testing.T, b []byte) {
		fault, err := records(b, "S", 1, "msgs/1.blk", func(r Record) error {
			if r.DataAt+int64(len(r.Data)) > int64(len(b)) {
				t.Fatal("behind the end")
			}
			return nil
		})
		if err != nil || fault == nil && len(b) > 0 && len(b) < 30 {
			t.Fatal(err)
		}
	})
}

func TestNothingThere(t *testing.T) {
	s := At(t.TempDir(), "A", "S")
	faults, err := s.Read(func(Record) error { t.Fatal("a record"); return nil })
	require.NoError(t, err)
	require.Empty(t, faults)
	require.NoError(t, os.MkdirAll(filepath.Join(s.Dir, "msgs"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(s.Dir, "msgs", "1.blk"), make([]byte, 100), 0o600))
	faults, err = s.Read(func(Record) error { t.Fatal("a record"); return nil })
	require.NoError(t, err)
	require.Len(t, faults, 1)
	require.True(t, faults[0].Last)
	require.EqualError(t, faults[0], "msgs/1.blk, byte 0: a record of 0 bytes")
}
