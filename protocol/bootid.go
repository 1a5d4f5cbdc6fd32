package protocol

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
)

// BootID is random for each start of an agent or hub.
type BootID [8]byte

// NewBootID makes a boot id.
func NewBootID() (b BootID, err error) {
	_, err = rand.Read(b[:])
	return b, err
}

// String is the id in hex.
func (b BootID) String() string { return hex.EncodeToString(b[:]) }

// MarshalText is String.
func (b BootID) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (b *BootID) UnmarshalText(t []byte) error {
	if hex.DecodedLen(len(t)) != len(b) {
		return errors.New("boot id has the wrong length")
	}
	_, err := hex.Decode(b[:], t)
	return err
}
