package protocol

import (
	"encoding/hex"
	"encoding/json"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// freshList is a signed list of serial 7 under a fixed key, and a nonce.
func freshList(t require.TestingT) (ClusterPrivateKey, SignedHubList, ListNonce) {
	key, err := NewClusterPrivateKey()
	require.NoError(t, err)
	s, err := HubList{Version: 1, Serial: 7, Hubs: []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{9}, UDP: []string{"h:1"}}}}.Sign(key)
	require.NoError(t, err)
	n, err := NewListNonce()
	require.NoError(t, err)
	return key, s, n
}

// What is signed has one layout for good: agents and hubs of two versions agree on it.
func TestFreshnessGolden(t *testing.T) {
	f := Freshness{Serial: 0x0102030405060708, Time: time.Unix(0x65000000, 0)}
	for i := range f.Nonce {
		f.Nonce[i] = byte(i)
	}
	require.Equal(t, "636175736577617920687562206c6973742066726573682076310a"+ // "causeway hub list fresh v1\n"
		"000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"+ // nonce
		"0102030405060708"+ // serial
		"0000000065000000"+ // time
		"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", // SHA-256 of an empty payload
		hex.EncodeToString(f.message(SignedHubList{})))
	b, err := json.Marshal(HubListAnswer{Fresh: &f})
	require.NoError(t, err)
	require.Contains(t, string(b), `"fresh":{"nonce":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8","serial":72623859790382856,"time":`)
}

func TestOpenFresh(t *testing.T) {
	key, s, n := freshList(t)
	pin := key.Public().Pin()
	good := HubListAnswer{SignedHubList: s, Fresh: s.Fresh(key, 7, n, time.Now())}
	b, err := json.Marshal(good)
	require.NoError(t, err)
	var again HubListAnswer
	require.NoError(t, json.Unmarshal(b, &again))
	l, err := again.OpenFresh(pin, n)
	require.NoError(t, err)
	require.Equal(t, uint64(7), l.Serial)
	// An agent of before reads the same answer.
	var plain SignedHubList
	require.NoError(t, json.Unmarshal(b, &plain))
	require.Equal(t, s, plain)

	_, err = (HubListAnswer{SignedHubList: s, Fresh: nil}).OpenFresh(pin, n)
	require.ErrorIs(t, err, ErrNotFresh)
	var other ListNonce
	_, err = good.OpenFresh(pin, other)
	require.ErrorIs(t, err, ErrNotFresh, "said to another")
	stranger, _, _ := freshList(t)
	_, err = HubListAnswer{SignedHubList: s, Fresh: s.Fresh(stranger, 7, n, time.Now())}.OpenFresh(pin, n)
	require.ErrorIs(t, err, ErrNotFresh, "by another key")

	// An old list beside the word for the newest one, which anybody can ask the hub for.
	old, err := HubList{Version: 1, Serial: 6, Hubs: []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{8}, UDP: []string{"h:1"}}}}.Sign(key)
	require.NoError(t, err)
	_, err = HubListAnswer{SignedHubList: old, Fresh: good.Fresh}.OpenFresh(pin, n)
	require.ErrorIs(t, err, ErrNotFresh)
	lied := *good.Fresh
	lied.Serial = 6
	_, err = HubListAnswer{SignedHubList: old, Fresh: &lied}.OpenFresh(pin, n)
	require.ErrorIs(t, err, ErrNotFresh)
	same, err := HubList{Version: 1, Serial: 7, Hubs: []Hub{{Number: 1, WireGuardKey: WireGuardPublicKey{8}, UDP: []string{"h:1"}}}}.Sign(key)
	require.NoError(t, err)
	_, err = HubListAnswer{SignedHubList: same, Fresh: good.Fresh}.OpenFresh(pin, n)
	require.ErrorIs(t, err, ErrNotFresh, "another list of the same serial")
	_, err = good.OpenFresh(stranger.Public().Pin(), n)
	require.ErrorIs(t, err, ErrPinMismatch)
}

// FuzzFreshness: whoever stands in the way of a join writes the answer. Only what the
// cluster key signed, for this nonce and this list, counts.
func FuzzFreshness(f *testing.F) {
	key, s, n := freshList(f)
	pin := key.Public().Pin()
	good, err := json.Marshal(HubListAnswer{SignedHubList: s, Fresh: s.Fresh(key, 7, n, time.Now())})
	require.NoError(f, err)
	f.Add(good)
	f.Add([]byte(`{"fresh":{"nonce":"","serial":7,"time":"2026-01-01T00:00:00Z","signature":""}}`))
	f.Add([]byte(`{"payload":"e30=","fresh":{"time":"9999-12-31T23:59:59Z"}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var a HubListAnswer
		if json.Unmarshal(b, &a) != nil {
			return
		}
		l, err := a.OpenFresh(pin, n)
		if err == nil && (string(a.Payload) != string(s.Payload) || l.Serial != 7) {
			t.Fatalf("took what nobody signed: %+v", l)
		}
		again, err2 := json.Marshal(a)
		if err2 != nil {
			return // a time beyond what JSON has
		}
		var twice HubListAnswer
		if err2 := json.Unmarshal(again, &twice); err2 != nil {
			t.Fatalf("what was read is not read again: %v", err2)
		}
		if _, err2 := twice.OpenFresh(pin, n); (err2 == nil) != (err == nil) {
			t.Fatalf("%v, then %v", err, err2)
		}
	})
}
