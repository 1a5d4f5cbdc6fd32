package service

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
)

// manager listens as systemd does.
func manager(t *testing.T) (next func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	t.Setenv("NOTIFY_SOCKET", path)
	return func() string {
		b := make([]byte, 512)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		n, err := c.Read(b)
		require.NoError(t, err)
		return string(b[:n])
	}
}

func TestRun(t *testing.T) {
	next := manager(t)
	t.Setenv("WATCHDOG_USEC", "300000")
	ready := make(chan struct{})
	stuck := make(chan struct{}, 1)
	ctx, stop := context.WithCancel(t.Context())
	reloads := 0
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Daemon{
			Run:   func(ctx context.Context) error { <-ctx.Done(); return nil },
			Ready: ready,
			Alive: func(ctx context.Context) error {
				select {
				case stuck <- struct{}{}:
					return nil
				default:
					return errors.New("stuck")
				}
			},
			Reload: func() error { reloads++; return nil },
			Log:    zerolog.Nop(),
		})
	}()
	close(ready)
	require.Equal(t, "READY=1", next())
	require.Equal(t, "WATCHDOG=1", next())
	// It is stuck from now on: nothing until it is told to reload.
	time.AfterFunc(400*time.Millisecond, func() { syscall.Kill(os.Getpid(), syscall.SIGHUP) })
	require.True(t, strings.HasPrefix(next(), "RELOADING=1\nMONOTONIC_USEC="))
	require.Equal(t, "READY=1", next())
	<-stuck
	require.Equal(t, "WATCHDOG=1", next(), "it recovered")
	stop()
	require.NoError(t, <-done)
	require.Equal(t, 1, reloads)
	require.Equal(t, "STOPPING=1", next())
}

func TestRunBoundsItsEnd(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	stop()
	err := Run(ctx, Daemon{Run: func(context.Context) error { select {} }, StopWithin: time.Millisecond, Log: zerolog.Nop()})
	require.ErrorContains(t, err, "did not stop")
	own := errors.New("own end")
	require.ErrorIs(t, Run(t.Context(), Daemon{Run: func(context.Context) error { return own }}), own)
}

// An Alive that never answers is as good as one that says no.
func TestSilentIsNotAlive(t *testing.T) {
	d := Daemon{Alive: func(context.Context) error { select {} }}
	require.ErrorIs(t, d.alive(t.Context(), time.Millisecond), errSilent)
	require.NoError(t, (&Daemon{}).alive(t.Context(), time.Millisecond))
}

func TestKeep(t *testing.T) {
	held, err := Keep("udp", nil)
	require.NoError(t, err)
	require.False(t, held, "there is no manager")
	next := manager(t)
	f, err := os.Open(os.DevNull)
	require.NoError(t, err)
	defer f.Close()
	held, err = Keep("udp", []*os.File{f})
	require.NoError(t, err)
	require.True(t, held)
	require.Equal(t, "FDSTOREREMOVE=1\nFDNAME=udp", next())
	require.Equal(t, "FDSTORE=1\nFDNAME=udp\nFDPOLL=0", next())
}

func TestCredential(t *testing.T) {
	require.Empty(t, Credential("x"))
	dir := t.TempDir()
	t.Setenv("CREDENTIALS_DIRECTORY", dir)
	require.Empty(t, Credential("x"))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "x"), nil, 0o600))
	require.Equal(t, filepath.Join(dir, "x"), Credential("x"))
}
