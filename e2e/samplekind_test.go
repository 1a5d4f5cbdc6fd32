package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/agent/debug"
	"causeway/hub/api"
	"causeway/netns/lab"
	"causeway/protocol"
)

// forTests are the programs with what build tags add for tests: the kind 'sample', as in the next version, which has a
// kind that this one does not know, and walls that can be switched off (internal/policyfault).
var forTests = sync.OnceValues(func() (Binaries, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 8*time.Minute)
	defer cancel()
	root, err := moduleRoot(ctx)
	if err != nil {
		return Binaries{}, err
	}
	dir, err := os.MkdirTemp("", "causeway-tags-")
	if err != nil {
		return Binaries{}, err
	}
	atExit(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		return Binaries{}, err
	}
	return buildOther(ctx, root, dir, "-tags", "samplekind,policyfault")
})

// A kind goes all the way from a file to a host and back by what it is made of alone. Programs of one version
// before, which lack it, are closed where it is essential, and lose nothing of it.
func TestNewKind(t *testing.T) {
	t.Parallel()
	next, err := forTests()
	require.NoError(t, err)
	s, nodes := newSmall(t, 2)
	now := s.Bin
	require.NoError(t, s.ExchangeHub(step(t), next.Hub))
	s.Bin.CLI = next.CLI
	joinSmall(t, s, nodes, 1)
	joinSmall(t, s, nodes, 2)
	one, two := nodes[0], nodes[1]
	require.NoError(t, one.Exchange(step(t), next.Agent)) // n1 knows the kind, n2 does not
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	reach := func() error { return Ping(step(t), one.Pod.Host, two.Pod.V4) }
	require.NoError(t, Wait(t, reach))

	dir := t.TempDir()
	write := func(file, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600))
	}
	sample := func(name, site, text string) string {
		return fmt.Sprintf("kind: sample\nname: %s\nsite: %s\ntext: %s\n", name, site, text)
	}
	apply := func(args ...string) (string, error) {
		return s.CLI(step(t), append([]string{"apply", "-f", dir}, args...)...)
	}
	object := func(name string, holds func(api.Object) bool) {
		t.Helper()
		var o api.Object
		require.NoError(t, Wait(t, func() error {
			o = api.Object{}
			if err := s.Ask(step(t), &o, "get", "sample", name); err != nil {
				return err
			}
			if !holds(o) {
				return fmt.Errorf("%s is %+v", name, o)
			}
			return nil
		}))
	}

	// From the file to the host, and back to who asks who has it.
	write("a.yaml", sample("greeting", "s1", "hello"))
	out, err := apply()
	require.NoError(t, err)
	require.Contains(t, out, "sample greeting")
	object("greeting", func(o api.Object) bool { return o.Have == 1 && len(o.Lack) == 0 })
	var st debug.Status
	require.NoError(t, one.ask(step(t), "/v1/status", &st))
	require.Len(t, st.Items, 1)
	require.Equal(t, []string{"sample", "greeting", "hello"}, []string{st.Items[0].Kind, st.Items[0].Name, st.Items[0].Text})
	watch, err := s.Hub.Host.Start(lab.Program{Name: "watch", Args: []string{s.Bin.CLI, "--socket", s.Hub.Socket, "get", "sample", "--watch", "-o", "json"}})
	require.NoError(t, err)
	for _, want := range []string{`"change":"present","name":"greeting"`, `"have":1`} {
		require.NoError(t, watch.WaitOutput(step(t), want))
	}
	for words, want := range map[string]string{"explain sample-file": "agents refuse 'no'", "__complete get ": "sample", "__complete get sample ": "greeting", "__complete apply --prune ": "sample"} {
		args := strings.Split(words, " ")
		out, err := s.CLI(step(t), args...)
		require.NoError(t, err, words)
		require.Contains(t, out, want, words)
	}

	// What an agent refuses is told by name, and the rest holds.
	write("b.yaml", sample("refused", "s1", `"no"`))
	_, err = apply()
	require.NoError(t, err)
	object("refused", func(o api.Object) bool { return o.Have == 0 && len(o.Lack) == 1 && o.Lack[0] == "n1" })
	object("greeting", func(o api.Object) bool { return o.Have == 1 })
	require.NoError(t, watch.WaitOutput(step(t), `"change":"added","name":"refused"`))
	require.NoError(t, reach())

	// What has no file any more goes, once somebody says yes.
	require.NoError(t, os.Remove(filepath.Join(dir, "b.yaml")))
	_, err = apply("--prune", "sample")
	require.ErrorContains(t, err, `nobody can answer "Delete sample refused, which have no document?"`)
	_, err = apply("--prune", "sample", "--yes")
	require.NoError(t, err)
	require.NoError(t, watch.WaitOutput(step(t), `"change":"removed","name":"refused"`))
	require.NoError(t, watch.Stop(step(t)))

	// What a kind has on the host is a part of the agent's plan: put back when somebody takes it away, and gone with the
	// last object of it.
	write("d.yaml", sample("counted", "s1", "192.0.2.7"))
	_, err = apply()
	require.NoError(t, err)
	table := func(want string) {
		t.Helper()
		require.NoError(t, Wait(t, func() error {
			out := one.Host.Sh("nft list table inet causeway-sample 2>&1 || :")
			if !strings.Contains(out, want) {
				return errors.New(out)
			}
			return nil
		}))
	}
	table("elements = { 192.0.2.7 }")
	one.Host.Sh("nft delete table inet causeway-sample")
	table("elements = { 192.0.2.7 }")
	one.Host.Sh("nft delete element inet causeway-sample seen { 192.0.2.7 }")
	table("elements = { 192.0.2.7 }")
	require.NoError(t, Wait(t, func() error {
		out, err := s.CLI(step(t), "incidents", "--node", "n1")
		if err == nil && !strings.Contains(out, "causeway-sample") {
			err = errors.New(out)
		}
		return err
	}))
	require.NoError(t, os.Remove(filepath.Join(dir, "d.yaml")))
	_, err = apply("--prune", "sample", "--yes")
	require.NoError(t, err)
	table("No such file or directory")

	// The agent that lacks the kind is closed while it is told of one, says why, and is open again after.
	write("c.yaml", sample("unknown", "s2", "hello"))
	_, err = apply()
	require.NoError(t, err)
	object("unknown", func(o api.Object) bool { return o.Have == 0 && len(o.Lack) == 1 && o.Lack[0] == "n2" })
	require.NoError(t, Wait(t, func() error {
		if PingOnce(step(t), one.Pod.Host, two.Pod.V4) == nil {
			return fmt.Errorf("n2 goes on without what it was told")
		}
		return nil
	}))
	list, err := s.Nodes(step(t))
	require.NoError(t, err)
	require.Contains(t, fmt.Sprint(list["n2"].Conditions), protocol.ItemFeature("sample"))
	_, err = s.CLI(step(t), "delete", "sample", "unknown", "--yes")
	require.NoError(t, err)
	require.NoError(t, Wait(t, reach))
	require.NoError(t, os.Remove(filepath.Join(dir, "c.yaml")))

	// A hub that lacks it plans nothing without it, lets agents go on, shows it and loses nothing of it.
	s.Bin.CLI = now.CLI
	require.NoError(t, s.ExchangeHub(step(t), now.Hub))
	require.NoError(t, Wait(t, func() error {
		list, err := s.Nodes(step(t))
		if err != nil {
			return err
		}
		for _, n := range list {
			if n.Connected.IsZero() {
				return fmt.Errorf("%s is %+v", n.Name, n)
			}
		}
		return nil
	}))
	require.NoError(t, reach())
	object("greeting", func(o api.Object) bool { return !o.Known && api.SpecFields(o.Spec)["text"] == "hello" })
	for words, want := range map[string]string{"delete sample greeting --yes": "a newer causeway-hub wrote this kind of object", "apply -f " + dir: `kind "sample" is not known`} {
		_, err := s.CLI(step(t), strings.Split(words, " ")...)
		require.ErrorContains(t, err, want, words)
	}
	out, err = s.CLI(step(t), "status")
	require.NoError(t, err)
	require.Contains(t, out, "agents get no new netmap until a hub runs that does: upgrade this hub")
	s.Bin.CLI = next.CLI
	require.NoError(t, s.ExchangeHub(step(t), next.Hub))
	require.NoError(t, s.WaitReady(step(t), "n1", "n2"))
	object("greeting", func(o api.Object) bool { return o.Known && o.Have == 1 })
	require.NoError(t, reach())
}
