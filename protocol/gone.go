package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// SignedGoneList names nodes that left or were revoked. Such a node never comes
// back, so that lists only grow and any of them is true for ever, whoever shows
// it: hubs put theirs into netmaps; agents keep it, take no node that it names,
// and show it to a hub in Hello. So a hub that was restored from a backup older
// than a revocation learns of it from the first agent that knew.
//
// Payload is a version byte, 1, and the numbers in ascending order, each as the
// difference to the one before, a uvarint (encoding/binary).
type SignedGoneList struct {
	ClusterKey ClusterPublicKey `json:"cluster_key"`
	Payload    []byte           `json:"payload"`
	Signature  []byte           `json:"signature"` // Ed25519 over signGoneListLabel + Payload
}

const (
	signGoneListLabel = "causeway gone list v1\n"
	goneListVersion   = 1
	// MaxGone bounds the numbers of a list. A cluster that let go of more names
	// those that went last.
	MaxGone = 16384
	// MaxGoneLists bounds the lists in a Hello.
	MaxGoneLists = 4
	maxGoneList  = 1 + 4*MaxGone
)

// ErrGoneListInvalid says that a list is not the cluster's, or damaged.
var ErrGoneListInvalid = errors.New("invalid list of gone nodes")

// SignGone makes the list of these nodes, at most MaxGone, in any order.
func SignGone(nodes []NodeNumber, k ClusterPrivateKey) SignedGoneList {
	nodes = slices.Clone(nodes)
	slices.Sort(nodes)
	nodes = slices.Compact(nodes)
	b, last := []byte{goneListVersion}, NodeNumber(0)
	for _, n := range nodes[:min(len(nodes), MaxGone)] {
		b = binary.AppendUvarint(b, uint64(n-last))
		last = n
	}
	return SignedGoneList{k.Public(), b, k.Sign(append([]byte(signGoneListLabel), b...))}
}

// Open checks pin, signature and form and returns the numbers, ascending.
func (s SignedGoneList) Open(pin Pin) ([]NodeNumber, error) {
	if s.ClusterKey.Pin() != pin {
		return nil, ErrPinMismatch
	}
	if len(s.Payload) > maxGoneList || !s.ClusterKey.Verify(append([]byte(signGoneListLabel), s.Payload...), s.Signature) {
		return nil, fmt.Errorf("%w: bad signature", ErrGoneListInvalid)
	}
	b := s.Payload
	if len(b) == 0 || b[0] != goneListVersion {
		return nil, fmt.Errorf("%w: its version is not %d", ErrGoneListInvalid, goneListVersion)
	}
	var out []NodeNumber
	last := uint64(0)
	for b = b[1:]; len(b) > 0; {
		d, n := binary.Uvarint(b)
		if n <= 0 || d == 0 || d > uint64(MaxNodeNumber) || last+d > uint64(MaxNodeNumber) || len(out) == MaxGone {
			return nil, fmt.Errorf("%w: number %d of it", ErrGoneListInvalid, len(out)+1)
		}
		last, b = last+d, b[n:]
		out = append(out, NodeNumber(last))
	}
	return out, nil
}
