package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Policies beside programs that people run: PostgreSQL, nginx, iperf3 and a container of Podman. A rule that goes
// ends a query in its middle at both ends, and nothing else.
func TestPolicyPrograms(t *testing.T) {
	t.Parallel()
	w := newProgramsWorld(t)
	for _, port := range []string{"tcp/5432", "tcp/5201"} {
		out, err := w.CLI(step(t), "policy", "test", "10.1.1.11", "10.2.1.11", port)
		require.NoError(t, err)
		require.Contains(t, out, "open: no policy is declared")
	}
	w.works()

	w.apply(true)
	w.works()
	_, err := w.psql(step(t), w.nodes[0].Host, "select 1")
	require.ErrorContains(t, err, "Connection refused", "the host itself is in no rule")
	_, err = w.nodes[0].Pod.Host.Run(step(t), w.Bin.Labtool, "tcp", "10.2.1.11:22")
	require.Error(t, err, "tcp/22 is in no rule")

	bulk := w.start("bulk", w.nodes[0].Pod.Host, "iperf3", "-c", "10.2.1.11", "-t", "6", "-J")
	query := w.start("query", w.nodes[0].Pod.Host, w.psqlArgs("10.2.1.11", "select pg_sleep(600)")...)
	w.asleep(1)
	start := time.Now()
	w.apply(false)
	err = query.Wait(step(t))
	require.Error(t, err, query.Output())
	measured(t, "policy rule removed to the end of a query", time.Since(start).Seconds(), 2)
	require.Contains(t, query.Output(), "onnection", query.Output()) // "server closed the connection", "Connection reset by peer"
	w.asleep(0)
	require.True(t, bulk.Running(), "the change came while it measured:\n%s", bulk.Output())
	_, err = w.psql(step(t), w.nodes[0].Pod.Host, "select 1")
	require.ErrorContains(t, err, "Connection refused")
	w.fetches()

	require.NoError(t, bulk.Wait(step(t)), bulk.Output())
	w.steady(bulk)
	w.apply(true)
	w.works()
}

// programsWorld is a client's site, and a site with a database and a web server on a LAN.
type programsWorld struct {
	t *testing.T
	*System
	nodes     []*smallNode
	container *lab.Podman
	postgres  postgres
}

const (
	programsContainers = "10.1.2.0/24"
	programsLAN        = "192.168.77.50"
)

func newProgramsWorld(t *testing.T) *programsWorld {
	l, hub, nodes := smallHosts(t, 2)
	behind := l.Switch("lan2")
	nodes[1].Host.Link("eth1", behind, "192.168.77.1/24")
	lan := l.Host("lan").Link("eth0", behind, programsLAN+"/24").Default("192.168.77.1")
	w := &programsWorld{t: t, System: startSmall(t, l, hub, nodes), nodes: nodes}
	require.NoError(t, lan.Settle(step(t)))
	for i, route := range []string{programsContainers, "192.168.77.0/24"} {
		var err error
		nodes[i].Node, err = w.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: nodes[i].Host, TokenRoutes: append(PodRoutes(i+1, 1), route)})
		require.NoError(t, err)
	}
	require.NoError(t, w.WaitReady(step(t), "n1", "n2"))

	w.container = nodes[0].Host.Podman(programsContainers)
	ctx := within(t, time.Minute)
	require.NoError(t, w.container.Image(ctx, "tool", w.Bin.Labtool))
	_, err := w.container.Run(ctx, "run", "-d", "--name", "client", "tool", "/bin/sleep", "600")
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.container.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})

	w.postgres = startPostgres(t, nodes[1].Pod.Host, filepath.Join(l.Dir, "postgres"))
	w.start("iperf3", nodes[1].Pod.Host, "iperf3", "-s")
	startNginx(t, lan, filepath.Join(l.Dir, "nginx"), "from the LAN\n")
	return w
}

func (w *programsWorld) start(name string, h *lab.Host, args ...string) *lab.Process {
	p, err := h.Start(lab.Program{Name: name, Args: args})
	require.NoError(w.t, err)
	return p
}

func (w *programsWorld) psqlArgs(host, query string) []string { return w.postgres.psql(host, query) }

func (w *programsWorld) psql(ctx context.Context, h *lab.Host, query string) (string, error) {
	out, err := h.Run(ctx, w.psqlArgs("10.2.1.11", query)...)
	return strings.TrimSpace(out), err
}

// asleep waits until the server has so many queries that sleep.
func (w *programsWorld) asleep(want int) {
	w.t.Helper()
	require.NoError(w.t, lab.Wait(step(w.t), fmt.Sprintf("%d queries that sleep", want), func(ctx context.Context) error {
		out, err := w.nodes[1].Pod.Host.Run(ctx, w.psqlArgs("127.0.0.1", "select count(*) from pg_stat_activity where wait_event = 'PgSleep'")...)
		if err == nil && strings.TrimSpace(out) != fmt.Sprint(want) {
			err = errors.New("there are " + out)
		}
		return err
	}))
}

// apply declares who may talk, with the database or without.
func (w *programsWorld) apply(database bool) {
	w.t.Helper()
	text := `kind: policy
name: main
rules:
- {name: bulk, from: {site: s1}, to: {site: s2, cidr: 10.2.1.11/32}, allow: [tcp/5201]}
- {name: web, from: {site: s1}, to: {cidr: 192.168.77.50/32}, allow: [tcp/8080]}
`
	tests := `tests:
- {from: 10.1.2.9, to: 192.168.77.50, port: tcp/8080, want: open, by: web}
- {from: n1, to: 10.2.1.11, port: tcp/5432, want: closed}
`
	if database {
		text += "- {name: db, from: {site: s1, cidr: 10.1.1.0/24}, to: {site: s2, cidr: 10.2.1.11/32}, allow: [tcp/5432]}\n"
	}
	file := filepath.Join(w.t.TempDir(), "policy.yaml")
	require.NoError(w.t, os.WriteFile(file, []byte(text+tests), 0o600))
	out, err := w.CLI(step(w.t), "apply", "-f", file)
	require.NoError(w.t, err, out)
}

// works looks at all that is open.
func (w *programsWorld) works() {
	w.t.Helper()
	require.NoError(w.t, lab.Wait(step(w.t), "an answer of PostgreSQL", func(ctx context.Context) error {
		out, err := w.psql(ctx, w.nodes[0].Pod.Host, "select 6*7")
		if err == nil && out != "42" {
			err = errors.New(out)
		}
		return err
	}))
	require.NoError(w.t, lab.Wait(step(w.t), "a measurement", func(ctx context.Context) error {
		_, err := w.nodes[0].Pod.Host.Run(ctx, "iperf3", "-c", "10.2.1.11", "-n", "1M")
		return err
	}))
	w.fetches()
}

// fetches has a container and a pod fetch a page of nginx on the LAN.
func (w *programsWorld) fetches() {
	w.t.Helper()
	const url = "http://" + programsLAN + ":8080/page"
	require.NoError(w.t, lab.Wait(step(w.t), "a page of nginx", func(ctx context.Context) error {
		a, err := w.container.Run(ctx, "exec", "client", "/bin/labtool", "http", url)
		b, err2 := w.nodes[0].Pod.Host.Run(ctx, w.Bin.Labtool, "http", url)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		if !strings.Contains(a, "from the LAN") || !strings.Contains(b, "from the LAN") {
			return fmt.Errorf("%q and %q", a, b)
		}
		return nil
	}))
}

// steady looks whether a measurement that has ended had something in each of its seconds.
func (w *programsWorld) steady(p *lab.Process) {
	_, report, _ := strings.Cut(p.Output(), "{")
	var r struct {
		Error     string
		Intervals []struct{ Sum struct{ Bytes int64 } }
	}
	require.NoError(w.t, json.Unmarshal([]byte("{"+report), &r), p.Output())
	require.Empty(w.t, r.Error)
	require.GreaterOrEqual(w.t, len(r.Intervals), 6)
	for i, x := range r.Intervals {
		require.NotZero(w.t, x.Sum.Bytes, "second %d of a flow that no change forbade", i)
	}
}
