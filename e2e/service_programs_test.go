package e2e

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"causeway/netns/lab"
)

// Services of programs that people run: nginx by weights behind a haproxy that knows one address, PostgreSQL and Redis of which one
// site serves, asked by pods and by a container of Podman. A site falls silent under all of it, and comes back.
func TestServicePrograms(t *testing.T) {
	lab.Counts(t)
	w := newServicePrograms(t)
	w.spread()

	pages := startClient(t, w.s, w.here.Host, "connected", "fetch", "http://127.0.0.1:8000/page", "-every", "20ms")
	w.all(w.two.Host.Name)
	atTwo := w.redisClient("p2")
	query := w.start("query", w.postgres.psql(w.db, "select pg_sleep(600)")...)
	require.NoError(t, Wait(t, func() error {
		out, err := w.two.Host.Run(step(t), w.postgres.psql("127.0.0.1", "select count(*) from pg_stat_activity where wait_event = 'PgSleep'")...)
		if err == nil && strings.TrimSpace(out) != "1" {
			err = errors.New(out)
		}
		return err
	}))

	begun := time.Now()
	require.NoError(t, cut(step(t), w.nodes[1].Host, "in", "out"))
	require.NoError(t, Wait(t, func() error {
		_, err := w.here.Host.Run(step(t), w.postgres.psql(w.db, "select 1")...)
		return err
	}))
	measured(t, "service psql answers from the other site", time.Since(begun).Seconds(), promised(2))
	require.Error(t, query.Wait(step(t)), query.Output())
	measured(t, "service psql that waited is told", time.Since(begun).Seconds(), promised(2.5))
	require.Contains(t, query.Output(), "onnection", query.Output())
	require.Error(t, atTwo.Wait(step(t)))
	require.Contains(t, atTwo.Output(), "Connection reset by peer")
	atThree := w.redisClient("p3")
	w.all(w.three.Host.Name)
	out, err := w.here.Host.Run(step(t), w.postgres.program("pgbench"), "-h", w.db, "-U", "postgres", "-n", "-C", "-c", "4", "-t", "50", "-f", w.script, "postgres")
	require.NoError(t, err, out)
	require.Contains(t, out, "number of transactions actually processed: 200/200")

	require.NoError(t, Heal(step(t), w.nodes[1].Host))
	require.NoError(t, Wait(t, func() error { return w.answers(w.two.Host.Name) }))
	w.all(w.two.Host.Name)
	require.True(t, atThree.Running(), "what is open stays where it is\n%s", atThree.Output())
	require.NotContains(t, atThree.Output(), "p2\n")
	atThree.Signal(syscall.SIGTERM)
	var g Gaps
	require.NoError(t, pages.End(step(t), &g))
	t.Logf("pages by haproxy: %+v", g)
	require.Zero(t, g.Failed+g.Cut, g.Errors)
	require.Len(t, g.By, 2)
	measured(t, "service pages by haproxy", g.MaxGap, promised(2))
}

// servicePrograms is a client's site with haproxy and a container, and two sites that serve.
type servicePrograms struct {
	t                *testing.T
	s                *System
	nodes            []*smallNode
	here, two, three *Pod
	container        *lab.Podman
	postgres         postgres
	web, db, redis   string // virtual addresses
	script           string // of pgbench
	access           [2]string
}

func newServicePrograms(t *testing.T) *servicePrograms {
	l, hub, nodes := smallHosts(t, 3)
	w := &servicePrograms{t: t, s: startSmall(t, l, hub, nodes), nodes: nodes, here: nodes[0].Pod, two: nodes[1].Pod, three: nodes[2].Pod}
	for i := range nodes {
		var err error
		routes := PodRoutes(i+1, 1)
		if i == 0 {
			routes = append(routes, programsContainers)
		}
		nodes[i].Node, err = w.s.Join(step(t), NodeSpec{Name: fmt.Sprintf("n%d", i+1), Site: fmt.Sprintf("s%d", i+1), Host: nodes[i].Host, TokenRoutes: routes})
		require.NoError(t, err)
	}
	require.NoError(t, w.s.WaitReady(step(t), "n1", "n2", "n3"))
	w.container = nodes[0].Host.Podman(programsContainers)
	ctx := within(t, time.Minute)
	require.NoError(t, w.container.Image(ctx, "tool", w.s.Bin.Labtool))
	_, err := w.container.Run(ctx, "run", "-d", "--name", "client", "-p", "8088:7005", "tool", "/bin/labtool", "serve")
	require.NoError(t, err)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		w.container.Run(ctx, "rm", "-f", "-a", "-t", "0")
	})
	for i, p := range []*Pod{w.two, w.three} {
		dir := filepath.Join(l.Dir, p.Host.Name)
		require.NoError(t, os.Mkdir(dir, 0o755))
		w.access[i] = startNginx(t, p.Host, filepath.Join(dir, "nginx"), "page of "+p.Host.Name+"\n")
		w.postgres = startPostgres(t, p.Host, filepath.Join(dir, "postgres"))
		_, err := p.Host.Run(step(t), w.postgres.psql("127.0.0.1", "create table who as select '"+p.Host.Name+"' as name")...)
		require.NoError(t, err)
		_, err = p.Host.Start(lab.Program{Name: "redis-" + p.Host.Name, Args: []string{"redis-server", "--port", "6379", "--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", dir}})
		require.NoError(t, err)
		require.NoError(t, Wait(t, func() error {
			_, err := p.Host.Run(step(t), "redis-cli", "-e", "set", "who", p.Host.Name)
			return err
		}))
	}
	w.script = filepath.Join(l.Dir, "who.sql")
	require.NoError(t, os.WriteFile(w.script, []byte("select name from who;\n"), 0o644))
	service := func(name string, port int, more string) {
		applyText(t, w.s, fmt.Sprintf("kind: service\nname: %s\nports: [{port: %d}]\nbackends:\n- {site: s2, addresses: [%s]}\n- {site: s3, addresses: [%s]}\n%s\n", name, port, w.two.V4, w.three.V4, more))
	}
	service("web", 8080, "prefer: weights\nweights: {s2: 90, s3: 10}\nslow_start: 1s")
	service("db", 5432, "mode: failover\norder: [s2, s3]\nslow_start: 1s")
	service("redis", 6379, "mode: failover\norder: [s2, s3]\nslow_start: 1s")
	w.web, w.db, w.redis = vipOf(t, w.s, "web"), vipOf(t, w.s, "db"), vipOf(t, w.s, "redis")
	haproxy := filepath.Join(l.Dir, "haproxy.cfg")
	require.NoError(t, os.WriteFile(haproxy, fmt.Appendf(nil, `global
  maxconn 500
defaults
  mode http
  timeout connect 5s
  timeout client 10s
  timeout server 10s
  retries 3
  retry-on conn-failure empty-response
  option redispatch
listen front
  bind 127.0.0.1:8000
  http-reuse never
  server web %s:8080
`, w.web), 0o644))
	w.start("haproxy", "haproxy", "-db", "-f", haproxy)
	require.NoError(t, Wait(t, func() error { return w.answers(w.two.Host.Name) }))
	return w
}

func (w *servicePrograms) start(name string, args ...string) *lab.Process {
	w.t.Helper()
	p, err := w.here.Host.Start(lab.Program{Name: name, Args: args})
	require.NoError(w.t, err)
	return p
}

// redisClient asks again and again on one connection, which is that site's.
func (w *servicePrograms) redisClient(site string) *lab.Process {
	w.t.Helper()
	p := w.start("redis-client-"+site, "redis-cli", "-h", w.redis, "-r", "100000", "-i", "0.05", "get", "who")
	require.NoError(w.t, p.WaitOutput(step(w.t), site+"\n"))
	return p
}

// answers reports whether this site's database and Redis answer by their services.
func (w *servicePrograms) answers(site string) error {
	db, err := w.here.Host.Run(step(w.t), w.postgres.psql(w.db, "select name from who")...)
	redis, err2 := w.here.Host.Run(step(w.t), "redis-cli", "-e", "-h", w.redis, "get", "who")
	page, err3 := w.here.Host.Run(step(w.t), w.s.Bin.Labtool, "http", "http://127.0.0.1:8000/page")
	return errors.Join(err, err2, err3, has(db, site), has(redis, site), has(page, "page of "))
}

// all has pods, the host and a container ask, and the container's published port be asked.
func (w *servicePrograms) all(site string) {
	w.t.Helper()
	require.NoError(w.t, w.answers(site))
	page, err := w.container.Run(step(w.t), "exec", "client", "/bin/labtool", "http", "http://"+w.web+":8080/page")
	require.NoError(w.t, err)
	require.NoError(w.t, has(page, "page of "))
	db, err := w.nodes[0].Host.Run(step(w.t), w.postgres.psql(w.db, "select name from who")...)
	require.NoError(w.t, err)
	require.NoError(w.t, has(db, site))
	out, err := w.nodes[2].Host.Run(step(w.t), "bash", "-c", "read -r line </dev/tcp/"+w.nodes[0].LAN+"/8088; echo $line")
	require.NoError(w.t, err, "the published port")
	require.NoError(w.t, has(out, "10.1.2."))
}

func has(text, want string) error {
	if !strings.Contains(text, want) {
		return fmt.Errorf("no %q in %q", want, text)
	}
	return nil
}

// spread counts at both sites which of many connections each has.
func (w *servicePrograms) spread() {
	t := w.t
	want, off := 5000, 2.5
	if rounds(2) > 1 {
		want, off = 20000, 1
	}
	count := func() (n [2]int) {
		for i, file := range w.access {
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			n[i] = strings.Count(string(b), "\n")
		}
		return n
	}
	before := count()
	var n [2]int
	for n[0]+n[1] < want {
		out, err := w.here.Host.Run(within(t, time.Minute), "wrk", "-t", "1", "-c", "16", "-d", "2", "-H", "Connection: close", "http://"+w.web+":8080/page")
		require.NoError(t, err)
		require.NotContains(t, out, "Socket errors", out)
		require.NotContains(t, out, "Non-2xx", out)
		now := count()
		n = [2]int{now[0] - before[0], now[1] - before[1]}
	}
	share := 100 * float64(n[0]) / float64(n[0]+n[1])
	t.Logf("of %d connections %s %% at the site of 90 %%", n[0]+n[1], strconv.FormatFloat(share, 'f', 2, 64))
	require.InDelta(t, 90, share, off)
}
