package identity

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/stretchr/testify/require"

	"causeway/internal/durable"
	"causeway/internal/durable/durabletest"
	"causeway/protocol"
)

func sample(t *testing.T) Identity {
	t.Helper()
	wg, err := protocol.NewWireGuardPrivateKey()
	require.NoError(t, err)
	id, err := protocol.NewIdentityPrivateKey()
	require.NoError(t, err)
	ck, err := protocol.NewClusterPrivateKey()
	require.NoError(t, err)
	l, err := protocol.HubList{Version: 1, Serial: 3}.Sign(ck)
	require.NoError(t, err)
	return Identity{Number: 7, Name: "n7", Site: "idc-sh", Overlay: []netip.Addr{netip.MustParseAddr("198.18.0.7")},
		WireGuardKey: wg, IdentityKey: id, KeyEpoch: 4, Pin: ck.Public().Pin(), HubList: l, MadeDir: true}
}

func TestRoundTrip(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	s, err := Create(dir)
	require.NoError(t, err)
	defer s.Close()
	require.True(t, s.Made())
	_, err = s.Identity()
	require.ErrorIs(t, err, ErrNotJoined)

	want := sample(t)
	require.NoError(t, s.SaveIdentity(want))
	got, err := s.Identity()
	require.NoError(t, err)
	require.Equal(t, want, got)
	require.True(t, got.Statement().Valid())

	_, ok := s.Pending()
	require.False(t, ok)
	p := Pending{TokenID: protocol.TokenID{1, 2}, WireGuardKey: want.WireGuardKey, IdentityKey: want.IdentityKey, MadeDir: true}
	require.NoError(t, s.SavePending(p))
	gp, ok := s.Pending()
	require.True(t, ok)
	require.Equal(t, p, gp)
	require.NoError(t, s.RemovePending())

	n, err := s.Netmap()
	require.NoError(t, err)
	require.Nil(t, n)
	nm := StoredNetmap{Netmap: protocol.Netmap{NetmapVersion: protocol.NetmapVersion{Epoch: 1, Version: 9}}, Confirmed: time.Unix(1700000000, 0).UTC()}
	require.NoError(t, s.SaveNetmap(nm))
	n, err = s.Netmap()
	require.NoError(t, err)
	require.Empty(t, cmp.Diff(nm, *n, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })))

	pins := map[protocol.NodeNumber]Pin{3: {IdentityKey: want.IdentityKey.Public(), WireGuardKey: want.WireGuardKey.Public(), Epoch: 2}}
	require.NoError(t, s.SavePins(pins))
	got2, err := s.Pins()
	require.NoError(t, err)
	require.Equal(t, pins, got2)

	for _, f := range []string{identityFile, netmapFile, pinsFile} {
		st, err := os.Stat(filepath.Join(dir, f))
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), st.Mode().Perm(), f)
	}
	st, err := os.Stat(dir)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o700), st.Mode().Perm())

	for granted, shown := range map[string][]netip.Prefix{"": nil, `"granted": []`: {}, `"granted": [`: {netip.MustParsePrefix("10.1.0.0/24")}} {
		want.Granted = shown
		require.NoError(t, s.SaveIdentity(want))
		b, err := os.ReadFile(filepath.Join(dir, identityFile))
		require.NoError(t, err)
		require.Contains(t, string(b), granted)
		require.Equal(t, shown != nil, strings.Contains(string(b), "granted"))
		got, err := s.Identity()
		require.NoError(t, err)
		require.Equal(t, want, got, "nil, which is not known, differs from none")
	}
	for _, f := range []string{s.HeldFile(), s.HeldFile() + ".copy"} {
		require.NoError(t, os.WriteFile(f, nil, 0o600))
	}

	require.NoError(t, s.SavePort(51999))
	port, err := s.Port()
	require.NoError(t, err)
	require.Equal(t, uint16(51999), port)
	require.NoError(t, s.RemoveAll(true))
	_, err = os.Stat(dir)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, s.RemoveAll(true), "removing twice")
}

func TestOneProcessAlone(t *testing.T) {
	dir := t.TempDir()
	s, err := Open(dir)
	require.NoError(t, err)
	_, err = Open(dir)
	require.ErrorIs(t, err, ErrLocked)
	require.NotContains(t, err.Error(), "\n")
	require.NoError(t, s.Close())
	s, err = Open(dir)
	require.NoError(t, err)
	require.NoError(t, s.Close())
}

func TestBadStates(t *testing.T) {
	_, err := Open(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, ErrNotJoined)

	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = Create(file)
	require.ErrorContains(t, err, "is not a directory")
	_, err = Create(filepath.Join(file, "below"))
	require.ErrorContains(t, err, "not a directory")

	s, err := Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, s.SaveIdentity(sample(t)))
	path := filepath.Join(s.Dir(), identityFile)
	good, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, edit := range map[string]func(string) string{
		"cut off":     func(s string) string { return s[:len(s)/2] },
		"empty":       func(string) string { return "" },
		"version":     func(s string) string { return strings.Replace(s, `"v": 1`, `"v": 99`, 1) },
		"no key":      func(s string) string { return strings.Replace(s, "wgkey:", "wgpub:", 1) },
		"bad number":  func(s string) string { return strings.Replace(s, `"number": 7`, `"number": 0`, 1) },
		"bad name":    func(s string) string { return strings.Replace(s, `"name": "n7"`, `"name": "N 7"`, 1) },
		"no identity": func(s string) string { return strings.Replace(s, "idkey:", "", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			for _, p := range []string{path, durable.Copy(path)} {
				require.NoError(t, os.WriteFile(p, []byte(edit(string(good))), 0o600))
			}
			_, err := s.Identity()
			require.Error(t, err)
			require.NotErrorIs(t, err, ErrNotJoined)
			require.Contains(t, err.Error(), path)
			require.NotContains(t, err.Error(), "\n")
		})
	}
}

// A directory in a file's place, as a careless hand or a container's mount makes it, stops no
// write.
func TestDirectoryInPlace(t *testing.T) {
	s, err := Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer s.Close()
	require.NoError(t, os.MkdirAll(filepath.Join(s.Dir(), netmapFile, "full"), 0o700))
	require.NoError(t, s.SaveNetmap(StoredNetmap{Revoked: true}))
	n, err := s.Netmap()
	require.NoError(t, err)
	require.True(t, n.Revoked)
	require.NoError(t, s.RemoveAll(true))
	require.NoDirExists(t, s.Dir())
}

// Every file of the store against every damage: what has a copy comes back from it; what
// has none, or two bad ones, is told of in one line and takes nothing with it.
func TestDamagedFiles(t *testing.T) {
	id := sample(t)
	pins := map[protocol.NodeNumber]Pin{3: {IdentityKey: id.IdentityKey.Public(), WireGuardKey: id.WireGuardKey.Public(), Epoch: 2}}
	read := map[string]func(*Store) (any, error){
		identityFile: func(s *Store) (any, error) { return s.Identity() },
		pinsFile:     func(s *Store) (any, error) { return s.Pins() },
		netmapFile: func(s *Store) (any, error) {
			n, err := s.Netmap()
			if n == nil {
				return nil, err
			}
			return n.Revoked, err
		},
		portFile: func(s *Store) (any, error) { return s.Port() },
	}
	want := map[string]any{identityFile: id, pinsFile: pins, netmapFile: true, portFile: uint16(51999)}
	for name, get := range read {
		for damage, do := range durabletest.Damages {
			for _, both := range []bool{false, true} {
				t.Run(name+" "+damage, func(t *testing.T) {
					s, err := Create(filepath.Join(t.TempDir(), "state"))
					require.NoError(t, err)
					defer s.Close()
					require.NoError(t, errors.Join(s.SaveIdentity(id), s.SavePins(pins), s.SaveNetmap(StoredNetmap{Revoked: true}), s.SavePort(51999)))
					path := filepath.Join(s.Dir(), name)
					do(t, path)
					if both && name != portFile {
						do(t, durable.Copy(path))
					}
					got, err := get(s)
					if name != portFile && !both {
						require.NoError(t, err)
						require.Equal(t, want[name], got)
						require.Len(t, s.Mended(), 1)
						require.FileExists(t, path)
						return
					}
					require.Error(t, err)
					require.NotErrorIs(t, err, ErrNotJoined)
					require.Contains(t, err.Error(), path)
					require.NotContains(t, err.Error(), "\n")
					_, again := get(s)
					if name == pinsFile || name == identityFile { // nobody forgets them by reading twice
						require.Error(t, again)
					} else {
						require.NoError(t, again)
					}
					for n, f := range read {
						if n != name {
							v, err := f(s)
							require.NoError(t, err, n)
							require.Equal(t, want[n], v)
						}
					}
				})
			}
		}
	}
}

// A write that a crash cut short leaves a part of a file, which may hold keys.
func TestCrashLeavesNoKeys(t *testing.T) {
	s, err := Create(filepath.Join(t.TempDir(), "state"))
	require.NoError(t, err)
	defer s.Close()
	crash := func(name string) {
		require.NoError(t, os.WriteFile(durable.Temp(filepath.Join(s.Dir(), name)), []byte("half a key"), 0o644))
	}
	id := sample(t)
	crash(identityFile)
	require.NoError(t, s.SaveIdentity(id))
	st, err := os.Stat(filepath.Join(s.Dir(), identityFile))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), st.Mode())
	e, err := os.ReadDir(s.Dir())
	require.NoError(t, err)
	require.Len(t, e, 2, "it and its copy")

	for _, name := range []string{identityFile, pendingFile, netmapFile, pinsFile} {
		crash(name)
	}
	require.NoError(t, s.RemoveAll(true))
	require.NoDirExists(t, s.Dir())
}
