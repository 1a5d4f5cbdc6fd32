package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"causeway/hub/api"
	"causeway/netns/lab"
)

// fill takes all space of the file system at dir and returns what gives it back.
func fill(t *testing.T, dir string) (free func()) {
	t.Helper()
	path := filepath.Join(dir, "filler")
	f, err := os.Create(path)
	require.NoError(t, err)
	defer f.Close()
	_, err = io.Copy(f, zeros{})
	require.ErrorIs(t, err, unix.ENOSPC)
	return func() { require.NoError(t, os.Remove(path)) }
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// The hub's disk fills up for a while: changes are refused with a reason, pods
// notice nothing, and when there is space again all goes on.
func TestStateDiskFull(t *testing.T) {
	t.Parallel()
	s, nodes := newSmall(t, 2)
	dir := s.Hub.Dir
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	require.NoError(t, os.Rename(dir, dir+".moved"))
	mountOn(t, s, "-t", "tmpfs", "-o", "size=96m", "tmpfs")
	s.Hub.Host.Sh(fmt.Sprintf("cp -a %s.moved/. %s", dir, dir))
	require.NoError(t, s.StartHub(step(t)))
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))

	n, length := repeat(1, 20), time.Duration(repeat(4, 60))*time.Second
	made, slowest, pings := 0, time.Duration(0), 0
	for round := range n {
		ctx, stop := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		var lost error
		wg.Go(func() {
			for ctx.Err() == nil && lost == nil {
				one, cancel := context.WithTimeout(context.Background(), 5*time.Second)
				lost = PingOnce(one, nodes[0].Pod.Host, nodes[1].Pod.V4)
				cancel()
				pings++
			}
		})
		free := fill(t, dir)
		until := time.Now().Add(length)
		for time.Now().Before(until) {
			_, err := s.CLI(step(t), "site", "create", fmt.Sprintf("refused-%d", round))
			requireOneLine(t, err, dir, "the disk at "+dir, "full")
			select {
			case <-ctx.Done():
			case <-time.After(200 * time.Millisecond):
			}
		}
		var st api.Status
		require.NoError(t, s.Ask(step(t), &st, "status"))
		bad := ""
		for _, c := range st.Conditions {
			if !c.OK {
				bad += c.Name
			}
		}
		require.Equal(t, "disk", bad)
		// Inventory that is not stored is not acknowledged: an agent with news says so,
		// and nothing else is wrong with it.
		all, err := s.Nodes(step(t))
		require.NoError(t, err)
		for _, name := range []string{"n1", "n2"} {
			require.Contains(t, []string{api.NodeReady, api.NodeDegraded}, all[name].State)
			for _, why := range all[name].Reasons {
				require.True(t, strings.HasPrefix(why, "nats: publish inventory"), why)
			}
		}
		free()
		back := time.Now()
		err = lab.Wait(within(t, 30*time.Second), "changes to be taken again", func(ctx context.Context) error {
			return s.CreateSite(ctx, fmt.Sprintf("made-%d", round))
		})
		require.NoError(t, err)
		made++
		slowest = max(slowest, time.Since(back))
		require.NoError(t, s.WaitReady(within(t, 30*time.Second-time.Since(back)), "n1", "n2"))
		stop()
		wg.Wait()
		require.NoError(t, lost, "pods lost a packet")
		require.True(t, s.Hub.Proc.Running())
	}
	s.Hub.Proc.Kill()
	require.NoError(t, s.StartHub(step(t)))
	var sites []api.Site
	require.NoError(t, s.Ask(step(t), &sites, "site", "list"))
	require.Len(t, sites, 2+made)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	t.Logf("disk full %d times for %s: %d changes there afterwards, taken again within %.1f s; %d pings, none lost", n, length, made, slowest.Seconds(), pings)
}

// A store whose JetStream saw the disk full all the same, without the guard's
// warning, heals too. It is the race that the guard cannot exclude.
func TestStateDiskFullUnawares(t *testing.T) {
	t.Parallel()
	s, c := hubAlone(t)
	mountOn(t, s, "-t", "tmpfs", "-o", "size=96m", "tmpfs")
	require.NoError(t, s.StartHub(step(t)))
	_, err := c.CreateSite(step(t), api.SiteSpec{Name: "before"})
	require.NoError(t, err)
	l := newLedger()
	var free func()
	l.during(t, c, func() { free = fill(t, s.Hub.Dir) })
	require.True(t, s.Hub.Proc.Running())
	free()
	err = lab.Wait(within(t, 30*time.Second), "changes to be taken again", func(ctx context.Context) error {
		_, err := c.CreateSite(ctx, api.SiteSpec{Name: "after"})
		var a *api.Error
		if errors.As(err, &a) && a.Status == 409 { // stored, though its answer was none
			return nil
		}
		return err
	})
	require.NoError(t, err)
	for range 2 {
		for _, name := range []string{"before", "after"} {
			_, err := c.Site(step(t), name)
			require.NoError(t, err)
		}
		s.Hub.Proc.Kill()
		require.NoError(t, s.StartHub(step(t)))
	}
}
