package protocol

import (
	"net/netip"
	"testing"
	"time"

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
