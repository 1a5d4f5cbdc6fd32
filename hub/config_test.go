package hub

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestNewChecksConfig(t *testing.T) {
	for _, tt := range []struct {
		cfg  Config
		says string
	}{
		{Config{ListenUDP: "51820"}, "ADDRESS:PORT"},
		{Config{ListenUDP: ":0"}, "choose one"},
		{Config{ListenUDP: ":70000"}, "port"},
		{Config{ListenHTTPS: "example.org:443"}, "no IP address"},
		{Config{PublicHost: "hub.example.org:443"}, "without a port"},
		{Config{PublicHost: "https://hub"}, "host name or an address"},
		{Config{Overlay: []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("10.0.0.0/8")}}, "more than one"},
		{Config{Overlay: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "loopback"},
	} {
		_, err := New(tt.cfg)
		require.ErrorContains(t, err, tt.says)
		require.NotContains(t, err.Error(), "\n")
	}
	h, err := New(Config{PublicHost: "2001:db8::1"})
	require.NoError(t, err)
	require.Equal(t, uint16(51820), h.cfg.PublicUDPPort)
	require.Equal(t, ":443", h.https)
}

func TestSocketBufferIsBounded(t *testing.T) {
	for bytes, ok := range map[int]bool{0: true, 212992: true, minSocketBuffer - 1: false, maxSocketBuffer + 1: false, -1: false} {
		_, err := New(Config{DataDir: t.TempDir(), SocketBuffer: bytes})
		require.Equal(t, ok, err == nil, "%d bytes: %v", bytes, err)
	}
}

func TestDataDirNotWritable(t *testing.T) {
	f := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(f, nil, 0o600))
	_, err := openDataDir(filepath.Join(f, "data"))
	require.ErrorContains(t, err, "--data-dir")
	if os.Geteuid() != 0 {
		dir := filepath.Join(t.TempDir(), "ro")
		require.NoError(t, os.Mkdir(dir, 0o500))
		_, err = openDataDir(dir)
		require.ErrorContains(t, err, "not writable")
	}
}

// What no agent on another host reaches is refused in one line.
func TestPublicHostOfThisHostAlone(t *testing.T) {
	for _, p := range []string{"127.0.0.1", "127.9.9.9", "localhost", "LOCALHOST.", "a.localhost", "::1", "::ffff:127.0.0.1", "0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "169.254.1.1", "fe80::1"} {
		err := CheckPublicHost(p)
		require.ErrorContains(t, err, "public-host "+p)
		require.ErrorContains(t, err, "at which agents on other hosts reach this hub")
		require.NotContains(t, err.Error(), "\n")
	}
	for _, p := range []string{"", "hub.example.com", "localhost.example.com", "10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1"} {
		require.NoError(t, CheckPublicHost(p), p)
	}
}

// What an operator can set is a Setting, each once: none is forgotten by flags, file, docs,
// those who look at a running hub, or a reload.
func TestSettingsAreWhole(t *testing.T) {
	seen := map[uintptr]string{}
	var c Config
	whole := func(v reflect.Value, inside func(uintptr) bool) {
		for i := range v.NumField() {
			f := v.Type().Field(i)
			if slices.Contains([]string{"Tunnel", "Sockets", "Version", "Log"}, f.Name) { // no settings
				continue
			}
			require.True(t, inside(v.Field(i).Addr().Pointer()), "Config.%s is no setting", f.Name)
		}
	}
	for _, s := range Settings {
		p := reflect.ValueOf(s.Field(&c)).Pointer()
		require.Empty(t, seen[p], "two settings for one field: %s", s.Name)
		seen[p] = s.Name
		require.NotEmpty(t, s.Doc, s.Name)
		require.Regexp(t, "^[a-z]+(-[a-z]+)*$", s.Name)
	}
	whole(reflect.ValueOf(&c).Elem(), func(p uintptr) bool { return seen[p] != "" })
	whole(reflect.ValueOf(&c.RelayLimits.Node).Elem(), func(p uintptr) bool { return seen[p] != "" })
	whole(reflect.ValueOf(&c.RelayLimits.Pair).Elem(), func(p uintptr) bool { return seen[p] != "" })
	require.Len(t, c.shown(), len(Settings))
}
