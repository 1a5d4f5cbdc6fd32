package e2e

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/identity"
	"causeway/hub/api"
	"causeway/hub/failpoint"
	"causeway/netns/lab"
)

// files are the SHA-256 of all below dir, by name.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	require.NoError(t, filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		out[p] = fmt.Sprintf("%x", sha256.Sum256(b))
		return err
	}))
	return out
}

// sizeOf is how many bytes the files below dir have.
func sizeOf(t *testing.T, dirs ...string) (n int64) {
	t.Helper()
	for _, dir := range dirs {
		err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
			if err == nil && d.Type().IsRegular() {
				var info fs.FileInfo
				if info, err = d.Info(); err == nil {
					n += info.Size()
				}
			}
			if errors.Is(err, fs.ErrNotExist) {
				err = nil // it was put in another's place meanwhile
			}
			return err
		})
		require.NoError(t, err)
	}
	return n
}

func stateStore(s *System) string {
	return filepath.Join(s.Hub.Dir, "nats", "jetstream", "CAUSEWAY_STATE")
}

// block is the newest file of transactions.
func block(t *testing.T, s *System) string {
	t.Helper()
	all, err := filepath.Glob(filepath.Join(stateStore(s), "streams", "CAUSEWAY_STATE", "msgs", "*.blk"))
	require.NoError(t, err)
	require.NotEmpty(t, all)
	slices.SortFunc(all, func(a, b string) int { return len(a) - len(b) + strings.Compare(a, b)/2 })
	return all[len(all)-1]
}

// change changes one byte at the place where text is in file, plus offset.
func change(t *testing.T, file, text string, offset int) {
	t.Helper()
	b, err := os.ReadFile(file)
	require.NoError(t, err)
	i := bytes.LastIndex(b, []byte(text))
	require.Positive(t, i, "%q is not in %s", text, file)
	b[i+offset] ^= 1
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, 0)
	require.NoError(t, err)
}

// restartHub stops the hub and starts it again, and returns how long the start took.
func restartHub(t *testing.T, s *System) time.Duration {
	t.Helper()
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	begin := time.Now()
	require.NoError(t, s.StartHub(step(t)))
	return time.Since(begin)
}

// One node announces other routes with every hello, as fast as it may, half of them in its site's range, so that they are
// approved by themselves. The log stays small, admins are served as before, the other nodes notice
// nothing, the node can be revoked, and the hub's next start takes no longer.
func TestHostileHellos(t *testing.T) {
	t.Parallel()
	const mostChanges, mostStart = 1040 + 100, 2 * time.Second // a burst, and what a soak's ten minutes add
	length := time.Duration(repeat(10, 600)) * time.Second
	s, nodes := newSmall(t, 3)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2", "n3"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	_, err := s.CLI(step(t), "site", "set", "s3", "--range", "10.64.0.0/10")
	require.NoError(t, err)
	c, err := api.NewClient(api.ClientConfig{Socket: s.Hub.Socket})
	require.NoError(t, err)
	defer c.Close()
	log := []string{stateStore(s), filepath.Join(s.Hub.Dir, "log")}
	before := sizeOf(t, log...)
	var status api.Status
	require.NoError(t, s.Ask(step(t), &status, "status"))
	first := status.Hub.LogLength

	thief := nodes[2]
	id, err := identity.Peek(thief.StateDir)
	require.NoError(t, err)
	a := &attacker{t: t, n: thief.Node}
	hellos, admins, slowest, last := 0, 0, time.Duration(0), time.Time{}
	for until := time.Now().Add(length); time.Now().Before(until); {
		routes := make([]netip.Prefix, 0, 256)
		for i := range cap(routes) {
			at := netip.AddrFrom4([4]byte{10, byte(64 + hellos/200%60), byte(hellos), byte(i)})
			if i%2 == 0 {
				at = netip.AddrFrom4([4]byte{172, byte(16 + hellos/200%16), byte(hellos), byte(i)})
			}
			routes = append(routes, netip.PrefixFrom(at, 32))
		}
		if a.hello(id, routes) == nil {
			hellos++
		}
		if time.Since(last) < 100*time.Millisecond {
			continue
		}
		last = time.Now()
		begin := last
		_, err := c.CreateSite(step(t), api.SiteSpec{Name: fmt.Sprintf("site-%d", admins)})
		require.NoError(t, err)
		slowest, admins = max(slowest, time.Since(begin)), admins+1
	}
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	all, err := s.Nodes(step(t))
	require.NoError(t, err)
	for _, name := range []string{"n1", "n2"} {
		require.Equal(t, api.NodeReady, all[name].State)
	}
	require.NoError(t, s.Ask(step(t), &status, "status"))
	theirs, changes := 0, 0
	for seq := status.Hub.LogLength + 1; seq > first; {
		entries, err := c.AuditBefore(step(t), seq, 1000)
		require.NoError(t, err)
		require.NotEmpty(t, entries)
		for _, e := range entries {
			if seq = e.Sequence; seq > first && (e.Who == "node:n3" || e.Who == "nodes") {
				theirs, changes = theirs+1, changes+len(e.Changes)
			}
		}
	}
	grew := sizeOf(t, log...) - before
	require.GreaterOrEqual(t, hellos, 15)
	require.Less(t, changes, mostChanges, "%d hellos", hellos)
	out, err := s.CLI(step(t), "doctor")
	require.Contains(t, out+fmt.Sprint(err), "changes what it announces too often")
	var events []api.Event
	require.NoError(t, s.Ask(step(t), &events, "events", "-n", "1000"))
	told := slices.DeleteFunc(events, func(e api.Event) bool { return !strings.Contains(e.Message, "changes what it announces too often") })
	require.LessOrEqual(t, len(told), 1, "of ten minutes the node's own comings and goings may have pushed it out")
	require.Equal(t, 1, strings.Count(s.Hub.Proc.Output(), "a node changes what it announces too often"))

	// What waits is shown, and can be approved. Its agent's own word may have been the last one.
	var routes []api.Route
	i := -1
	require.NoError(t, lab.Wait(step(t), "a route that waits", func(ctx context.Context) error {
		if err := s.Ask(ctx, &routes, "route", "list"); err != nil {
			return err
		}
		if i = slices.IndexFunc(routes, func(r api.Route) bool { return r.Node == "n3" && r.State == "pending" }); i >= 0 {
			return nil
		}
		if err := a.hello(id, []netip.Prefix{netip.MustParsePrefix("172.31.255.7/32")}); err != nil {
			return err
		}
		return errors.New("none is listed")
	}))
	_, err = s.CLI(step(t), "route", "approve", "n3", routes[i].Prefix.String())
	require.NoError(t, err)
	_, err = s.CLI(step(t), "node", "revoke", "n3", "--yes")
	require.NoError(t, err)
	took := restartHub(t, s)
	require.Less(t, took, mostStart)
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	t.Logf("%d hellos in %s, each of other 256 routes: %d transactions of the node with %d changes, the log grew by %d KiB; %d changes of an admin meanwhile took %.0f ms at most; the next start took %.2f s",
		hellos, length, theirs, changes, grew>>10, admins, slowest.Seconds()*1000, took.Seconds())
}

// The audit says the same before and after the log is cut, across a restart, and in a hub that was restored from a
// backup. The version before refuses a log that was cut: it reads it as no smaller cluster.
func TestAuditOfACutLog(t *testing.T) {
	t.Parallel()
	s, c := hubAlone(t)
	s.Hub.Args = append(s.Hub.Args, "--snapshot-every", "1000000")
	require.NoError(t, s.StartHub(step(t)))
	for i := range 60 {
		_, err := c.CreateSite(step(t), api.SiteSpec{Name: fmt.Sprintf("site-%d", i), Ranges: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16)}})
		require.NoError(t, err)
	}
	_, err := s.CLI(step(t), "site", "set", "site-5", "--max-age", "48h")
	require.NoError(t, err)
	audit := func(args ...string) string {
		t.Helper()
		out, err := s.CLI(step(t), append([]string{"audit"}, args...)...)
		require.NoError(t, err)
		return out
	}
	want, old, asJSON := audit("-n", "1000"), audit("--before", "10", "-n", "5"), audit("-n", "1000", "-o", "json")
	require.Contains(t, want, "168h0m0s -> 48h0m0s")
	require.Contains(t, old, "site site-")

	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	s.Hub.Args[len(s.Hub.Args)-1] = "10"
	require.NoError(t, s.StartHub(step(t)))
	cut := func() bool {
		snapshots, _ := filepath.Glob(filepath.Join(s.Hub.Dir, "log", "snapshot-*.json"))
		return len(snapshots) == 2 && strings.Contains(s.Hub.Proc.Output(), "the state log was cut")
	}
	more := 0
	require.NoError(t, lab.Wait(step(t), "the log to be cut", func(ctx context.Context) error {
		if cut() {
			return nil
		}
		more++
		if err := s.CreateSite(ctx, fmt.Sprintf("more-%d", more)); err != nil {
			return lab.Permanent(err)
		}
		return errors.New("not yet")
	}))
	last := fmt.Sprint(lastSequence(t, s) - uint64(more) + 1)
	require.Equal(t, old, audit("--before", "10", "-n", "5"), "of the archive")
	require.Equal(t, asJSON, audit("--before", last, "-n", "1000", "-o", "json"))
	require.Equal(t, want, audit("--before", last, "-n", "1000"))
	whole := audit("-n", "1000")
	took := restartHub(t, s)
	require.Equal(t, whole, audit("-n", "1000"), "after a restart")

	// The version before.
	older, err := before()
	require.NoError(t, err)
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	copied := s.Hub.Dir + "-older"
	s.Hub.Host.Sh(fmt.Sprintf("cp -a %s %s", s.Hub.Dir, copied))
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, older.Hub, "run", "--data-dir", copied, "--public-host", s.Hub.Public, "--admin-socket", s.Hub.Socket)
	r := failed(t, err)
	require.Contains(t, lastLine(r.Stderr), "the state log has gaps: first transaction")
	require.NoError(t, s.StartHub(step(t)))
	require.Equal(t, whole, audit("-n", "1000"))

	// A backup has all that was.
	dir := filepath.Dir(s.Hub.Dir)
	pass, file := filepath.Join(dir, "pass"), filepath.Join(dir, "backup")
	require.NoError(t, os.WriteFile(pass, []byte("correct horse battery\n"), 0o600))
	_, err = s.CLI(step(t), "backup", file, "--passphrase-file", pass)
	require.NoError(t, err)
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	restored := s.Hub.Dir + "-restored"
	s.Hub.Host.Sh(fmt.Sprintf("chown %d:%d %s %s", lab.Nobody.UID, lab.Nobody.GID, pass, file))
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, s.Bin.Hub, "restore", file, "--data-dir", restored, "--passphrase-file", pass, "--cluster-key", filepath.Join(s.Hub.Dir, "cluster.key"))
	require.NoError(t, err)
	snapshots, err := filepath.Glob(filepath.Join(restored, "log", "snapshot-*.json"))
	require.NoError(t, err)
	require.NotEmpty(t, snapshots, "the first start reads the state, not its history")
	s.Hub.Dir = restored
	require.NoError(t, s.StartHub(step(t)))
	require.Equal(t, asJSON, audit("--before", last, "-n", "1000", "-o", "json"), "in the restored hub")
	t.Logf("%d transactions; the audit is the same before and after the cut, after a start of %.2f s, and in a restored hub; the version before refuses the log", more+62, took.Seconds())
}

// lastSequence is the sequence of the last transaction.
func lastSequence(t *testing.T, s *System) uint64 {
	t.Helper()
	var st api.Status
	require.NoError(t, s.Ask(step(t), &st, "status"))
	return st.Hub.LogLength
}

// A hub whose log is damaged does not start and leaves its files as they are; the commands that it names keep
// what is whole, and the agents follow it. Where only what lies around the transactions is damaged, it starts with all.
func TestDamagedLogIsRepaired(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, nodes := newSmall(t, 2)
	for i := range nodes {
		joinSmall(t, s, nodes, i+1)
	}
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	for i := range 20 {
		require.NoError(t, s.CreateSite(step(t), fmt.Sprintf("site-%d", i)))
	}
	sites := func() int {
		var all []api.Site
		require.NoError(t, s.Ask(step(t), &all, "site", "list"))
		return len(all)
	}
	require.Equal(t, 22, sites())

	// The server's checksum of its description of the stream.
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	sum := filepath.Join(stateStore(s), "streams", "CAUSEWAY_STATE", "meta.sum")
	b, err := os.ReadFile(sum)
	require.NoError(t, err)
	change(t, sum, string(b[3:6]), 0)
	require.NoError(t, s.StartHub(step(t)))
	require.Contains(t, s.Hub.Proc.Output(), "files of the state log were damaged, all transactions were there")
	require.Equal(t, 22, sites())
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))

	// A transaction.
	require.NoError(t, s.Hub.Proc.Stop(step(t)))
	change(t, block(t, s), `"why":"site create site-15"`, -4) // in who made it
	untouched := files(t, s.Hub.Dir)
	for range 2 {
		err = s.StartHub(step(t))
		require.Error(t, err)
		line := lastLine(s.Hub.Proc.Output())
		require.Contains(t, line, "the state log is damaged: of ")
		require.Contains(t, line, "nothing was changed: restore the data directory from a backup, or keep these")
		require.Contains(t, line, "'causeway-hub repair'")
		require.Equal(t, untouched, files(t, s.Hub.Dir), "a start that is refused changes nothing")
	}
	repair := []string{s.Bin.Hub, "repair", "--data-dir", s.Hub.Dir}
	_, err = s.Hub.Host.Run(step(t), repair...) // as root
	r := failed(t, err)
	_, cure, ok := strings.Cut(strings.TrimSpace(r.Stderr), "run this as that user: ")
	require.True(t, ok, r.Stderr)
	asUser := strings.Fields(cure)
	require.Equal(t, "setpriv", asUser[0])
	asUser[slices.Index(asUser, "causeway-hub")] = s.Bin.Hub
	_, err = s.Hub.Host.Run(step(t), asUser...)
	r = failed(t, err)
	require.Contains(t, r.Stdout, "the record's checksum is wrong")
	require.Contains(t, r.Stdout, "(site create site-15): site site-15 declared")
	require.Contains(t, r.Stdout, "unix:root (site create site-19): site site-19 declared")
	require.Contains(t, r.Stderr, "nothing was changed: run it again with --yes")
	require.Equal(t, untouched, files(t, s.Hub.Dir), "looking changes nothing")
	out, err := s.Hub.Host.Run(step(t), append(asUser, "--yes")...)
	require.NoError(t, err)
	require.Contains(t, out, "repaired: netmap epoch 2")
	_, err = s.Hub.Host.Run(step(t), append(asUser, "--yes")...)
	require.NoError(t, err, "there is nothing to repair any more")

	require.NoError(t, s.StartHub(step(t)))
	require.Equal(t, 17, sites(), "what was before the damage, and nothing else")
	require.NoError(t, s.WaitReady(within(t, time.Minute), "n1", "n2"))
	require.NoError(t, Ping(step(t), nodes[0].Pod.Host, nodes[1].Pod.V4))
	_, err = s.Hub.Host.RunAs(step(t), lab.Nobody, repair...)
	requireOneLine(t, err, "another causeway-hub uses")
	require.NoError(t, s.CreateSite(step(t), "goes-on"))
	require.NoError(t, lab.Wait(step(t), "agents to follow the new epoch", func(ctx context.Context) error {
		all, err := s.Nodes(ctx)
		if err != nil {
			return err
		}
		if v := all["n1"].Netmap; v.Epoch != 2 {
			return fmt.Errorf("n1 has netmap %s", v)
		}
		return nil
	}))
	t.Logf("refused unchanged, %s", strings.Split(out, "\n")[1])
}

// The hub is killed at each step of a snapshot and a cut, amid changes.
func TestStateSurvivesKillInACut(t *testing.T) {
	lab.Counts(t)
	t.Parallel()
	s, c := hubAlone(t)
	s.Hub.Args = append(s.Hub.Args, "--snapshot-every", "10")
	l := newLedger()
	killed := 0
	for range repeat(1, 10) {
		for _, point := range []string{"state-archived", "state-snapshot", "state-cut"} {
			s.Hub.Env = nil
			require.NoError(t, s.StartHub(step(t)))
			l.compare(t, c)
			require.NoError(t, lab.Wait(step(t), "the snapshot that was due", func(context.Context) error {
				all, err := filepath.Glob(filepath.Join(s.Hub.Dir, "log", "snapshot-*.json"))
				newest := uint64(0)
				if len(all) > 0 {
					_, err = fmt.Sscanf(filepath.Base(all[len(all)-1]), "snapshot-%d.json", &newest)
				}
				if n := lastSequence(t, s); err != nil || n >= newest+10 {
					return fmt.Errorf("%d transactions, %v %v", n, all, err)
				}
				return nil
			}))
			s.Hub.Proc.Kill()
			s.Hub.Env = []string{failpoint.Variable + "=" + point}
			require.NoError(t, s.StartHub(step(t)))
			l.during(t, c, func() {
				require.Error(t, s.Hub.Proc.Wait(step(t)), "the hub was not killed at %s", point)
				killed++
			})
		}
	}
	s.Hub.Env = nil
	require.NoError(t, s.StartHub(step(t)))
	l.compare(t, c)
	n := int(lastSequence(t, s))
	seen := map[uint64]bool{}
	for seq := uint64(n) + 1; seq > 1; {
		entries, err := c.AuditBefore(step(t), seq, 1000)
		require.NoError(t, err)
		require.NotEmpty(t, entries)
		for _, e := range entries {
			seq = e.Sequence
			seen[seq] = true
		}
	}
	require.Len(t, seen, n, "the audit has each transaction")
	t.Logf("killed %d times within a snapshot or a cut amid %d acknowledged changes: none lost, none half there, and each of %d transactions in the audit", killed, l.acked, n)
}
