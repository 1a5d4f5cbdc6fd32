package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// HubList names every hub of the cluster, where it is reached and with which
// key. The cluster key signs it; agents store it and try every entry. A
// rotated hub key, a changed public host or a further hub is a new list with
// a higher serial.
type HubList struct {
	Version   int            `json:"v"`
	Serial    uint64         `json:"serial"`
	Hubs      []Hub          `json:"hubs"`
	Overlay   []netip.Prefix `json:"overlay"` // ranges of node addresses; agents always accept them, nobody may claim them
	NotBefore time.Time      `json:"not_before"`
	NotAfter  time.Time      `json:"not_after"`
}

// Hub is one entry of a HubList.
type Hub struct {
	Number       NodeNumber         `json:"number"`
	WireGuardKey WireGuardPublicKey `json:"wireguard_key"`
	UDP          []string           `json:"udp"`   // host:port, host a name or an address
	HTTPS        []string           `json:"https"` // host:port
}

// SignedHubList carries a HubList exactly as it was signed.
type SignedHubList struct {
	ClusterKey ClusterPublicKey `json:"cluster_key"`
	Payload    []byte           `json:"payload"`   // JSON of HubList
	Signature  []byte           `json:"signature"` // Ed25519 over signHubListLabel + Payload
}

const signHubListLabel = "causeway hub list v1\n"

// MaxHubList bounds an encoded SignedHubList.
const MaxHubList = 256 << 10

// Sign makes the signed form of l.
func (l HubList) Sign(k ClusterPrivateKey) (SignedHubList, error) {
	b, err := json.Marshal(l)
	if err != nil {
		return SignedHubList{}, err
	}
	return SignedHubList{k.Public(), b, k.Sign(append([]byte(signHubListLabel), b...))}, nil
}

// Errors of SignedHubList.Open that callers tell apart.
var (
	ErrPinMismatch     = errors.New("the hub's cluster key does not match the pin")
	ErrHubListInvalid  = errors.New("invalid hub list")
	ErrHubListValidity = errors.New("hub list is not valid at this time")
)

// Open checks pin, signature and shape and returns the list. Validity in time
// is the caller's to check by ValidAt: a host's clock may be wrong at boot.
func (s SignedHubList) Open(pin Pin) (HubList, error) {
	if s.ClusterKey.Pin() != pin {
		return HubList{}, ErrPinMismatch
	}
	if !s.ClusterKey.Verify(append([]byte(signHubListLabel), s.Payload...), s.Signature) {
		return HubList{}, fmt.Errorf("%w: bad signature", ErrHubListInvalid)
	}
	var l HubList
	if err := json.Unmarshal(s.Payload, &l); err != nil {
		return HubList{}, fmt.Errorf("%w: %v", ErrHubListInvalid, err)
	}
	if len(l.Hubs) == 0 {
		return HubList{}, fmt.Errorf("%w: it names no hub", ErrHubListInvalid)
	}
	for _, h := range l.Hubs {
		if !h.Number.Valid() || h.WireGuardKey.IsZero() || len(h.UDP)+len(h.HTTPS) == 0 {
			return HubList{}, fmt.Errorf("%w: hub %d is incomplete", ErrHubListInvalid, h.Number)
		}
		for _, a := range append(append([]string{}, h.UDP...), h.HTTPS...) {
			if err := checkHostPort(a); err != nil {
				return HubList{}, fmt.Errorf("%w: hub %d: address %q: %v", ErrHubListInvalid, h.Number, a, err)
			}
		}
	}
	return l, nil
}

// Addrs are a hub's addresses in the overlay.
func (l HubList) Addrs(hub NodeNumber) (out []netip.Addr) {
	for _, p := range l.Overlay {
		if a, err := hub.Overlay(p); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// ValidAt fails with ErrHubListValidity outside the list's validity.
func (l HubList) ValidAt(t time.Time) error {
	if t.Before(l.NotBefore) || (!l.NotAfter.IsZero() && t.After(l.NotAfter)) {
		return fmt.Errorf("%w: valid from %s to %s", ErrHubListValidity, l.NotBefore.Format(time.RFC3339), l.NotAfter.Format(time.RFC3339))
	}
	return nil
}
