// Command bench-services measures what a service's virtual address costs beside the pod's own one: connections a second with nginx and wrk,
// and the rate of one stream with iperf3, between pods of two sites, one after the other in each round. It does so with 10 services
// declared, and with as many as a node is told of. It prints the ratios' medians, judges nothing and leaves nothing behind.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"causeway/e2e"
	"causeway/hub/api"
	"causeway/netns/lab"
)

func main() {
	rounds := flag.Int("rounds", 10, "rounds for each number of services")
	seconds := flag.Int("seconds", 2, "seconds for each measurement")
	many := flag.Int("services", 3000, "services of the second half")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	if err := run(ctx, *rounds, *seconds, *many); err != nil {
		fmt.Fprintln(os.Stderr, "bench-services:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds, seconds, many int) error {
	if flag.NArg() > 0 || rounds < 1 || seconds < 1 || many < 10 {
		return errors.New("want at least a round, a second and 10 services, and no arguments but flags")
	}
	prefix := ""
	err := lab.Main(progress, func(l *lab.Lab) error {
		// After a signal the lab takes everything away and ends the process.
		defer func() {
			if ctx.Err() != nil {
				select {}
			}
		}()
		prefix = l.Prefix()
		b, err := build(ctx, l)
		if err != nil {
			return err
		}
		fmt.Println("| services | connections a second, own address | by the service | ratio | Gbit/s, own address | by the service | ratio |")
		fmt.Println("|---|---|---|---|---|---|---|")
		declared := 1
		for _, n := range []int{10, many} {
			if err := b.declare(ctx, declared, n); err != nil {
				return err
			}
			declared = n
			if err := b.measure(ctx, n, rounds, seconds); err != nil {
				return err
			}
		}
		return nil
	})
	if left := lab.Leftovers(prefix); err == nil && len(left) > 0 {
		err = fmt.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	return err
}

func progress(format string, a ...any) { fmt.Fprintf(os.Stderr, format+"\n", a...) }

// bench is a client's pod at one site, and a server's at another.
type bench struct {
	sys            *e2e.System
	client, server *lab.Host
	node           *e2e.Node // the client's
	vip            string
	dir            string
}

const (
	serverAddr          = "10.2.1.11"
	httpPort, iperfPort = 8080, 5201
)

func build(ctx context.Context, l *lab.Lab) (*bench, error) {
	dir := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return nil, err
	}
	bin, err := e2e.Build(ctx, dir)
	if err != nil {
		return nil, err
	}
	inet := l.Switch("inet")
	hub := l.Host("hub").Link("eth0", inet, e2e.HubAddr+"/24")
	b := &bench{dir: l.Dir}
	var hosts []*lab.Host
	for i := 1; i <= 2; i++ {
		h := l.Host(fmt.Sprintf("n%d", i)).Link("eth0", inet, fmt.Sprintf("203.0.113.%d/24", 20+i))
		pod := h.PodNet("pods0", fmt.Sprintf("10.%d.1.1/24", i), fmt.Sprintf("fd10:%d:1::1/64", i)).Pod(fmt.Sprintf("p%d", i), fmt.Sprintf("10.%d.1.11/24", i), fmt.Sprintf("fd10:%d:1::11/64", i))
		hosts = append(hosts, h)
		if b.client == nil {
			b.client = pod
		}
		b.server = pod
	}
	if b.sys, err = e2e.NewSystem(ctx, l, bin, hub, e2e.HubAddr); err != nil {
		return nil, err
	}
	for i, h := range hosts {
		name := fmt.Sprintf("n%d", i+1)
		if err := errors.Join(h.Settle(ctx), b.sys.CreateSite(ctx, name)); err != nil {
			return nil, err
		}
		n, err := b.sys.Join(ctx, e2e.NodeSpec{Name: name, Site: name, Host: h, TokenRoutes: e2e.PodRoutes(i+1, 1)})
		if err != nil {
			return nil, err
		}
		if b.node == nil {
			b.node = n
		}
	}
	if err := b.sys.WaitReady(ctx, "n1", "n2"); err != nil {
		return nil, err
	}
	if err := b.serve(); err != nil {
		return nil, err
	}
	return b, b.declare(ctx, 0, 1)
}

// serve starts nginx and iperf3.
func (b *bench) serve() error {
	if err := os.WriteFile(filepath.Join(b.dir, "page"), []byte("page\n"), 0o644); err != nil {
		return err
	}
	conf := fmt.Sprintf("daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1;\nevents { worker_connections 4096; }\n"+
		"http { access_log off; client_body_temp_path %[1]s/a; proxy_temp_path %[1]s/b; fastcgi_temp_path %[1]s/c; uwsgi_temp_path %[1]s/d; scgi_temp_path %[1]s/e;\nserver { listen %[2]d backlog=4096; root %[1]s; } }\n", b.dir, httpPort)
	file := filepath.Join(b.dir, "nginx.conf")
	if err := os.WriteFile(file, []byte(conf), 0o644); err != nil {
		return err
	}
	for _, args := range [][]string{{"nginx", "-p", b.dir, "-e", "stderr", "-c", file}, {"iperf3", "-s", "-p", strconv.Itoa(iperfPort)}} {
		if _, err := b.server.Start(lab.Program{Name: args[0], Args: args}); err != nil {
			return err
		}
	}
	return nil
}

// declare declares services from one number on up to another, and waits until the client's node has them in its table.
func (b *bench) declare(ctx context.Context, from, to int) error {
	const atOnce = 500
	for ; from < to; from += atOnce {
		var text strings.Builder
		for i := from; i < min(to, from+atOnce); i++ {
			fmt.Fprintf(&text, "---\nkind: service\nname: web-%d\nports: [{name: http, port: %d}, {name: bulk, port: %d}]\nbackends: [{site: n2, addresses: [%s]}]\n", i, httpPort, iperfPort, serverAddr)
		}
		file := filepath.Join(b.dir, "services.yaml")
		if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
			return err
		}
		if out, err := b.sys.CLI(ctx, "apply", "-f", file); err != nil {
			return fmt.Errorf("%w\n%s", err, out)
		}
	}
	last, err := b.vipOf(ctx, fmt.Sprintf("web-%d", to-1))
	if err != nil {
		return err
	}
	if b.vip, err = b.vipOf(ctx, "web-0"); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return lab.Wait(wait, "the last service's page", func(ctx context.Context) error {
		_, err := b.client.Run(ctx, b.sys.Bin.Labtool, "http", fmt.Sprintf("http://%s:%d/page", last, httpPort))
		return err
	})
}

func (b *bench) vipOf(ctx context.Context, name string) (string, error) {
	var o api.Object
	if err := b.sys.Ask(ctx, &o, "get", "service", name); err != nil {
		return "", err
	}
	var spec struct {
		VIP4 string `json:"vip4"`
	}
	return spec.VIP4, errors.Join(json.Unmarshal(o.Spec, &spec), func() error {
		if spec.VIP4 == "" {
			return fmt.Errorf("service %s has no address", name)
		}
		return nil
	}())
}

// measure prints a line of the table.
func (b *bench) measure(ctx context.Context, services, rounds, seconds int) error {
	figures := map[string][]float64{}
	for round := range rounds {
		got := map[string]float64{}
		for i := range 2 {
			way, addr := "own", serverAddr
			if (i+round)%2 == 1 { // each comes first in turn
				way, addr = "vip", b.vip
			}
			var err error
			if got["connections "+way], err = b.connections(ctx, addr, seconds); err != nil {
				return err
			}
			if got["rate "+way], err = b.rate(ctx, addr, seconds); err != nil {
				return err
			}
		}
		for _, f := range []string{"connections", "rate"} {
			got[f] = got[f+" vip"] / got[f+" own"]
		}
		for k, v := range got {
			figures[k] = append(figures[k], v)
		}
		progress("%d services, round %d/%d: connections %.2f, rate %.2f", services, round+1, rounds, got["connections"], got["rate"])
	}
	m := func(name string) float64 { return median(figures[name]) }
	fmt.Printf("| %d | %.0f | %.0f | %.3f (%s) | %.2f | %.2f | %.3f (%s) |\n", services, m("connections own"), m("connections vip"), m("connections"), span(figures["connections"]),
		m("rate own")/1e9, m("rate vip")/1e9, m("rate"), span(figures["rate"]))
	return nil
}

// connections is how many connections a second get a page.
func (b *bench) connections(ctx context.Context, addr string, seconds int) (float64, error) {
	out, err := b.client.Run(ctx, "wrk", "-t", "1", "-c", "16", "-d", strconv.Itoa(seconds), "-H", "Connection: close", fmt.Sprintf("http://%s:%d/page", addr, httpPort))
	if err != nil {
		return 0, err
	}
	_, rest, found := strings.Cut(out, "Requests/sec:")
	if !found || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		return 0, fmt.Errorf("wrk: %s", out)
	}
	return strconv.ParseFloat(strings.Fields(rest)[0], 64)
}

// rate is what one stream carries, in bits a second.
func (b *bench) rate(ctx context.Context, addr string, seconds int) (float64, error) {
	out, err := b.client.Run(ctx, "iperf3", "-J", "-c", addr, "-p", strconv.Itoa(iperfPort), "-t", strconv.Itoa(seconds), "-O", "0.5")
	if err != nil {
		return 0, err
	}
	var r struct {
		End struct {
			Received struct {
				Rate float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal([]byte(out), &r); err != nil {
		return 0, err
	}
	return r.End.Received.Rate, nil
}

func median(l []float64) float64 {
	s := slices.Sorted(slices.Values(l))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func span(l []float64) string { return fmt.Sprintf("%.2f to %.2f", slices.Min(l), slices.Max(l)) }
