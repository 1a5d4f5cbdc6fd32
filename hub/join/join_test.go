package join

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/flynn/noise"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"causeway/hub/facts/event"
	"causeway/protocol"
	"causeway/tunnel/underlay/stream"
)

func server(t testing.TB) *Server {
	t.Helper()
	dir := t.TempDir()
	keys, err := LoadKeys(dir, true)
	require.NoError(t, err)
	s, err := New(Config{Dir: dir, Keys: keys, Events: &event.Log{}, Log: zerolog.Nop()})
	require.NoError(t, err)
	return s
}

// message makes Noise message 1 with payload.
func message(t testing.TB, hub protocol.WireGuardPublicKey, prologue string, payload []byte) []byte {
	t.Helper()
	k, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	pub := k.Public()
	hs, err := noise.NewHandshakeState(noise.Config{CipherSuite: suite, Pattern: noise.HandshakeIK, Initiator: true,
		Prologue: []byte(prologue), StaticKeypair: noise.DHKey{Private: k[:], Public: pub[:]}, PeerStatic: hub[:]})
	require.NoError(t, err)
	b, _, _, err := hs.WriteMessage(nil, payload)
	require.NoError(t, err)
	return b
}

// What is no join message for this hub gets a bare 400 and touches no state
// (the server has none here).
func TestJunkIsRefusedBare(t *testing.T) {
	s := server(t)
	other, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	good, err := json.Marshal(protocol.JoinRequest{Version: 1})
	require.NoError(t, err)
	hub := s.cfg.Keys.Hub.Public()
	cut := message(t, hub, protocol.JoinPrologue, good)
	for name, body := range map[string][]byte{
		"empty": nil, "junk": bytes.Repeat([]byte{7}, 300), "huge": make([]byte, protocol.MaxJoinMessage+1),
		"another hub's key": message(t, other.Public(), protocol.JoinPrologue, good),
		"another prologue":  message(t, hub, "causeway join v9", good),
		"no json":           message(t, hub, protocol.JoinPrologue, []byte("{")),
		"cut":               cut[:len(cut)-1],
	} {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("POST", protocol.PathJoin, bytes.NewReader(body)))
		require.Equal(t, http.StatusBadRequest, w.Code, name)
		require.Empty(t, w.Body.Bytes(), name)
	}
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, http.StatusNotFound, w.Code)
}

func TestRateLimit(t *testing.T) {
	s := server(t)
	codes := map[int]int{}
	for range DefaultSourceRate*burstSeconds + 20 {
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("POST", protocol.PathJoin, nil))
		codes[w.Code]++
	}
	require.GreaterOrEqual(t, codes[http.StatusBadRequest], DefaultSourceRate*burstSeconds)
	require.Positive(t, codes[http.StatusTooManyRequests])
	r := httptest.NewRequest("POST", protocol.PathJoin, nil)
	r.RemoteAddr = "[2001:db8::5]:1"
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	require.Equal(t, http.StatusBadRequest, w.Code, "another source is not held back")
}

// A flood from many addresses, each within its own rate, leaves room for one that was quiet: in
// the same network, in another, by IPv6.
func TestDoorIsFair(t *testing.T) {
	d := newDoor(DefaultSourceRate)
	now := time.Now()
	asks := func(a netip.Addr) bool { return d.source(a, now) && d.room(a, now) }
	loud := netip.MustParseAddr("203.0.113.1")
	passed, asked := 0, 0
	quiet := map[string]int{}
	for i := range 240 * 100 { // ten seconds of 240 addresses
		a := loud
		for range i % 240 {
			a = a.Next()
		}
		now = now.Add(10 * time.Second / 24000)
		asked++
		if asks(a) {
			passed++
		}
		if i%2400 == 1200 && i > 2400 { // a host that joins, every second
			for _, q := range []string{fmt.Sprintf("203.0.113.%d", 241+i/2400), fmt.Sprintf("198.51.100.%d", i/2400), fmt.Sprintf("2001:db8:%x::1", i)} {
				for range 2 {
					if asks(netip.MustParseAddr(q)) {
						quiet[q[:3]]++
					}
				}
			}
		}
	}
	t.Logf("%d of %d requests of the flood were answered, %v of those that joined, of 18 each", passed, asked, quiet)
	require.LessOrEqual(t, passed, overallBurst+10*overallRate)
	for k, n := range quiet {
		require.GreaterOrEqual(t, n, 17, k)
	}
	require.Len(t, quiet, 3)
}

// One host has a /64: its addresses are one source. What is kept does not grow with how many
// there are.
func TestDoorIsBounded(t *testing.T) {
	s := newSketch[netip.Addr](1, 2)
	now := time.Now()
	a := netip.MustParseAddr("2001:db8::1")
	for range 2 {
		require.True(t, s.take(stream.SourceOf(a), now))
		a = a.Next()
	}
	require.False(t, s.take(stream.SourceOf(a), now))
	require.True(t, s.take(stream.SourceOf(a), now.Add(time.Second)))
	// With a thousand others that used all of theirs, hardly anybody is taken for one of them.
	b := netip.MustParseAddr("10.0.0.0")
	for range 1000 {
		for s.take(b, now) {
		}
		b = b.Next()
	}
	free := 0
	for range 1000 {
		if s.take(b, now) {
			free++
		}
		b = b.Next()
	}
	require.Greater(t, free, 980)
	for i := range s.rows {
		require.Len(t, s.rows[i].cells, cells)
	}
}

// However many joins are refused, the log grows slowly, and no refusal goes uncounted.
func TestAuditIsBounded(t *testing.T) {
	a := newAuditor()
	now := time.Unix(1000, 0)
	entries, counted := map[bool]int{}, 0
	for i := range 24 * 3600 * 100 { // a day at 100 a second, one in ten with a secret
		shown := i%10 == 0
		if missed, ok := a.take(shown, now); ok {
			entries[shown]++
			counted += missed + 1
		}
		now = now.Add(10 * time.Millisecond)
	}
	require.LessOrEqual(t, entries[false], blindBurst+24*12)
	require.LessOrEqual(t, entries[true], shownBurst+24*360)
	require.GreaterOrEqual(t, entries[true], shownBurst+24*360-1)
	require.Equal(t, 24*3600*100, counted+a.missed)
}

func TestKeysAndCertificateStay(t *testing.T) {
	dir := t.TempDir()
	require.False(t, Have(dir))
	_, err := LoadKeys(dir, false)
	require.ErrorContains(t, err, "is missing")
	a, err := LoadKeys(dir, true)
	require.NoError(t, err)
	b, err := LoadKeys(dir, false)
	require.NoError(t, err)
	require.Equal(t, a, b)
	require.True(t, Have(dir))
	c1, err := certificate(dir, time.Now())
	require.NoError(t, err)
	c2, err := certificate(dir, time.Now())
	require.NoError(t, err)
	require.Equal(t, c1.Certificate, c2.Certificate)
	c3, err := certificate(dir, time.Now().AddDate(30, 0, 0))
	require.NoError(t, err)
	require.NotEqual(t, c1.Certificate, c3.Certificate)
	for _, f := range []string{ClusterKeyFile, HubKeyFile, certFile} {
		fi, err := os.Stat(filepath.Join(dir, f))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), fi.Mode().Perm(), f)
	}
}

// Anyone on the Internet can send a join. The message is either refused or its
// request is what an initiator with the returned key encrypted to this hub.
func FuzzOpenRequest(f *testing.F) {
	key := protocol.WireGuardPrivateKey{8, 31: 64}
	good, _ := json.Marshal(protocol.JoinRequest{Version: 1, Secret: make([]byte, 32), Name: "one"})
	f.Add(message(f, key.Public(), protocol.JoinPrologue, good))
	f.Add(make([]byte, 96))
	f.Fuzz(func(t *testing.T, b []byte) {
		hs, k, _, err := openRequest(key, b)
		if err == nil && (hs == nil || k.IsZero()) {
			t.Fatal("accepted without a key")
		}
	})
}
