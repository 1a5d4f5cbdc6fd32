package protocol

import (
	"bytes"
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/stretchr/testify/require"
)

func TestHubListOpen(t *testing.T) {
	key, err := NewClusterPrivateKey()
	require.NoError(t, err)
	now := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	good := HubList{Version: 1, Serial: 4, NotBefore: now, NotAfter: now.Add(time.Hour), Overlay: []netip.Prefix{DefaultOverlay4},
		Hubs: []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"hub.example.com:51820"}, HTTPS: []string{"[2001:db8::1]:443"}}}}
	s, err := good.Sign(key)
	require.NoError(t, err)
	pin := key.Public().Pin()

	l, err := s.Open(pin)
	require.NoError(t, err)
	require.Equal(t, good, l)
	require.NoError(t, l.ValidAt(now.Add(time.Minute)))
	require.ErrorIs(t, l.ValidAt(now.Add(-time.Second)), ErrHubListValidity)
	require.ErrorIs(t, l.ValidAt(now.Add(2*time.Hour)), ErrHubListValidity)

	other, err := NewClusterPrivateKey()
	require.NoError(t, err)
	_, err = s.Open(other.Public().Pin())
	require.ErrorIs(t, err, ErrPinMismatch)

	forged := s
	forged.ClusterKey = other.Public()
	_, err = forged.Open(pin)
	require.ErrorIs(t, err, ErrPinMismatch)

	changed := s
	changed.Payload = append([]byte{}, s.Payload...)
	changed.Payload[len(changed.Payload)-2]++
	_, err = changed.Open(pin)
	require.ErrorIs(t, err, ErrHubListInvalid)

	for name, change := range map[string]func(*HubList){
		"no hub":      func(l *HubList) { l.Hubs = nil },
		"no number":   func(l *HubList) { l.Hubs = []Hub{{WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"h:1"}}} },
		"no key":      func(l *HubList) { l.Hubs = []Hub{{Number: 1, UDP: []string{"h:1"}}} },
		"no address":  func(l *HubList) { l.Hubs = []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{9}}} },
		"odd address": func(l *HubList) { l.Hubs = []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"h"}}} },
		"large number": func(l *HubList) {
			l.Hubs = []Hub{{Number: MaxNodeNumber + 1, WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"h:1"}}}
		},
	} {
		bad := good
		change(&bad)
		s, err := bad.Sign(key)
		require.NoError(t, err)
		_, err = s.Open(pin)
		require.ErrorIs(t, err, ErrHubListInvalid, name)
	}
}

// FuzzHubList: whoever a token leads to answers with a hub list, and a hub puts
// one into a netmap. One that the pinned cluster key did not sign is refused; of
// one that it did sign, as a hub that was taken over may make it, every entry is
// usable or the whole is refused.
func FuzzHubList(f *testing.F) {
	key, err := NewClusterPrivateKey()
	if err != nil {
		f.Fatal(err)
	}
	pin := key.Public().Pin()
	good := HubList{Version: 1, Serial: 4, Overlay: []netip.Prefix{DefaultOverlay4, DefaultOverlay6},
		Hubs: []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"hub.example.com:51820"}, HTTPS: []string{"[2001:db8::1]:443"}}}}
	s, err := good.Sign(key)
	if err != nil {
		f.Fatal(err)
	}
	whole, err := json.Marshal(s)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(s.Payload)
	f.Add(whole)
	f.Add([]byte(`{"hubs":[{"number":16777215,"wireguard_key":"","udp":["a:b:c"]}],"overlay":["","0.0.0.0/0"]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var unsigned SignedHubList
		if json.Unmarshal(b, &unsigned) == nil {
			if l, err := unsigned.Open(pin); err == nil && !bytes.Equal(unsigned.Payload, s.Payload) {
				t.Fatalf("took what nobody signed: %+v", l)
			}
		}
		l, err := SignedHubList{key.Public(), b, key.Sign(append([]byte(signHubListLabel), b...))}.Open(pin)
		if err != nil {
			return
		}
		for _, h := range l.Hubs {
			if !h.Number.Valid() || h.WireGuardKey.IsZero() || len(h.UDP)+len(h.HTTPS) == 0 {
				t.Fatalf("took %+v", h)
			}
			for _, a := range slices.Concat(h.UDP, h.HTTPS) {
				if host, port, err := net.SplitHostPort(a); err != nil || host == "" || port == "" || strings.ContainsFunc(a, unicode.IsControl) {
					t.Fatalf("took address %q", a)
				}
			}
			for _, p := range l.Overlay {
				_, _ = h.Number.Overlay(p)
			}
		}
		_ = l.ValidAt(time.Unix(0, 0))
		again, err := l.Sign(key)
		if err != nil {
			return // times beyond what JSON has
		}
		l2, err := again.Open(pin)
		if err != nil || len(l2.Hubs) != len(l.Hubs) {
			t.Fatalf("what was taken is not taken again: %v", err)
		}
	})
}
