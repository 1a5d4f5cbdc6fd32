package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
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

// repeat is how often a fault is tried: few times in a test, many in a soak.
func repeat(few, many int) int {
	if os.Getenv("CAUSEWAY_SOAK") != "" {
		return many
	}
	return few
}

// ledger is what clients of the admin API were told. Names are never used again.
type ledger struct {
	mu      sync.Mutex
	there   map[string]bool // acknowledged as made
	gone    map[string]bool // acknowledged as deleted
	doubted map[string]bool // the last change to it got no answer
	acked   int
	next    int
}

// write makes and deletes sites until the hub stops answering. A site has two
// ranges; it must never be seen with fewer.
func (l *ledger) write(ctx context.Context, c *api.Client, first func()) {
	for ctx.Err() == nil {
		l.mu.Lock()
		l.next++
		n := l.next
		l.mu.Unlock()
		name := fmt.Sprintf("s-%d", n)
		l.set(l.doubted, name)
		_, err := c.CreateSite(ctx, api.SiteSpec{Name: name, Ranges: []netip.Prefix{
			netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 25), netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 128}), 25)}})
		if err != nil {
			return
		}
		l.ack(l.there, name)
		first()
		if n%3 == 0 {
			l.set(l.doubted, name)
			if c.DeleteSite(ctx, name) != nil {
				return
			}
			l.ack(l.gone, name)
		}
	}
}

func (l *ledger) set(m map[string]bool, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m[name] = true
}

func (l *ledger) ack(m map[string]bool, name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	m[name] = true
	delete(l.doubted, name)
	l.acked++
}

// compare checks that the hub has what was acknowledged and nothing half.
func (l *ledger) compare(t *testing.T, c *api.Client) {
	t.Helper()
	sites, err := c.Sites(step(t))
	require.NoError(t, err)
	l.mu.Lock()
	defer l.mu.Unlock()
	have := map[string]bool{}
	for _, s := range sites {
		have[s.Name] = true
		require.Len(t, s.Ranges, 2, "%s is half there", s.Name)
		require.False(t, l.gone[s.Name], "%s was deleted, and is there", s.Name)
		require.True(t, l.there[s.Name] || l.doubted[s.Name], "%s was never asked for", s.Name)
	}
	for name := range l.there {
		require.True(t, have[name] || l.gone[name] || l.doubted[name], "%s was acknowledged, and is lost", name)
	}
	// What nobody knows the end of is settled now.
	for name := range l.doubted {
		delete(l.there, name)
		delete(l.gone, name)
		if have[name] {
			l.there[name] = true
		} else {
			l.gone[name] = true
		}
		delete(l.doubted, name)
	}
}

// during runs writers and, some time after the first acknowledgement, fault; it
// returns when the writers got no more answers.
func (l *ledger) during(t *testing.T, c *api.Client, fault func()) {
	t.Helper()
	ctx := step(t)
	begun := make(chan struct{})
	var once sync.Once
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { l.write(ctx, c, func() { once.Do(func() { close(begun) }) }) })
	}
	select {
	case <-begun:
	case <-ctx.Done():
		t.Fatal("no change was acknowledged")
	}
	time.Sleep(time.Duration(rand.Int64N(int64(150 * time.Millisecond)))) // the moment is the fault's own
	fault()
	wg.Wait()
	require.NoError(t, ctx.Err(), "the writers were still answered")
}

func newLedger() *ledger {
	return &ledger{there: map[string]bool{}, gone: map[string]bool{}, doubted: map[string]bool{}}
}

// hubAlone is a hub without nodes, not started.
func hubAlone(t *testing.T) (*System, *api.Client) {
	t.Helper()
	needRoot(t)
	bin := binaries(t)
	l := lab.New(t)
	s, err := PrepareSystem(l, bin, l.Host("hub").Link("eth0", l.Switch("inet"), HubAddr+"/24"), HubAddr)
	require.NoError(t, err)
	c, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return s, c
}

// The hub is killed in the middle of changes.
func TestStateSurvivesKill(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, c := hubAlone(t)
	l := newLedger()
	n := repeat(5, 100)
	for range n {
		require.NoError(t, s.StartHub(step(t)))
		l.compare(t, c)
		l.during(t, c, s.Hub.Proc.Kill)
	}
	require.NoError(t, s.StartHub(step(t)))
	l.compare(t, c)
	t.Logf("killed %d times amid %d acknowledged changes: none lost, none half there", n, l.acked)
}

// mountOn mounts a file system on the hub's data directory until the test ends.
func mountOn(t *testing.T, s *System, args ...string) {
	t.Helper()
	require.NoError(t, os.MkdirAll(s.Hub.Dir, 0o700))
	mount(t, append(args, s.Hub.Dir)...)
	t.Cleanup(func() {
		if s.Hub.Proc != nil {
			s.Hub.Proc.Kill()
		}
		umount(t, s.Hub.Dir)
	})
	require.NoError(t, os.Chown(s.Hub.Dir, int(lab.Nobody.UID), int(lab.Nobody.GID)))
	require.NoError(t, os.Chmod(s.Hub.Dir, 0o700))
}

func mount(t *testing.T, args ...string) {
	t.Helper()
	out, err := exec.Command("mount", args...).CombinedOutput()
	require.NoError(t, err, string(out))
}

func umount(t *testing.T, dir string) {
	t.Helper()
	err := lab.Wait(step(t), "umount", func(context.Context) error { return unix.Unmount(dir, 0) })
	require.NoError(t, err)
}

// newImage makes an ext4 image in the lab's directory.
func newImage(t *testing.T, s *System) string {
	t.Helper()
	img := filepath.Join(filepath.Dir(s.Hub.Dir), "image")
	require.NoError(t, os.WriteFile(img, nil, 0o600))
	require.NoError(t, os.Truncate(img, 128<<20))
	out, err := exec.Command("mkfs.ext4", "-q", "-F", "-m", "0", img).CombinedOutput()
	require.NoError(t, err, string(out))
	return img
}

// copyImage puts a copy of img in its place: another file, with what is in it.
func copyImage(t *testing.T, img string) {
	t.Helper()
	out, err := exec.Command("cp", "--sparse=always", img, img+"-copy").CombinedOutput()
	require.NoError(t, err, string(out))
	require.NoError(t, os.Remove(img))
	require.NoError(t, os.Rename(img+"-copy", img))
}

// losePower makes the file system at dir drop everything that is not on disk and
// fail from then on: EXT4_IOC_SHUTDOWN with NOLOGFLUSH
// (https://git.kernel.org/pub/scm/linux/kernel/git/torvalds/linux.git/tree/fs/ext4/ioctl.c).
func losePower(dir string) error {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	const shutdown, noLogFlush = 0x8004587d, 2
	return unix.IoctlSetPointerInt(fd, shutdown, noLogFlush)
}

// The power goes in the middle of changes. The hub, whose disk then gives errors,
// acknowledges nothing more and ends.
func TestStateSurvivesPowerLoss(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, c := hubAlone(t)
	img := newImage(t, s)
	mountOn(t, s, "-o", "loop", img)
	l := newLedger()
	n := repeat(5, 100)
	var slowest time.Duration
	for range n {
		require.NoError(t, s.StartHub(step(t)))
		l.compare(t, c)
		var lost time.Time
		l.during(t, c, func() {
			lost = time.Now()
			require.NoError(t, losePower(s.Hub.Dir))
		})
		err := s.Hub.Proc.Wait(step(t))
		require.Error(t, err, "the hub ended without an error")
		require.False(t, errors.Is(err, context.DeadlineExceeded), err)
		slowest = max(slowest, time.Since(lost))
		require.Contains(t, lastLine(s.Hub.Proc.Output()), s.Hub.Dir)
		require.Contains(t, lastLine(s.Hub.Proc.Output()), "takes no writes")
		umount(t, s.Hub.Dir)
		// Another case's mount namespace may hold the file system that failed, and the same
		// image would only be that one once more.
		copyImage(t, img)
		mount(t, "-o", "loop", img, s.Hub.Dir)
	}
	require.NoError(t, s.StartHub(step(t)))
	l.compare(t, c)
	t.Logf("lost power %d times amid %d acknowledged changes: none lost, none half there; the hub ended at most %.1f s after its disk failed", n, l.acked, slowest.Seconds())
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
