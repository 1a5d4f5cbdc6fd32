// Command demo shows Causeway on one machine: a hub, two data centres and a
// cloud region as network namespaces, each site behind a NAT router of its own,
// the real programs in them. It leaves nothing behind.
//
//	demo             show it and take it away
//	demo -keep       leave it running and say how to look around
//	demo -clean      take away what -keep left
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"causeway/e2e"
	"causeway/netns/lab"
)

func main() {
	keep := flag.Bool("keep", os.Getenv("KEEP") == "1", "leave everything running")
	clean := flag.Bool("clean", false, "take away what an earlier -keep left running, and end")
	flag.Parse()
	if err := run(*keep, *clean); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(keep, clean bool) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: makes network namespaces")
	}
	if err := lab.RemoveKept(); err != nil {
		return fmt.Errorf("remove an earlier demo: %w", err)
	}
	if clean {
		return nil
	}
	before, err := traces()
	if err != nil {
		return err
	}
	prefix := ""
	err = lab.Main(func(f string, a ...any) { fmt.Fprintf(os.Stderr, f+"\n", a...) }, func(l *lab.Lab) error {
		prefix = l.Prefix()
		ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
		defer cancel()
		w, err := show(ctx, l)
		if err != nil {
			return err
		}
		if keep {
			l.Keep()
			lookAround(w)
		}
		return nil
	})
	if err != nil || keep {
		return err
	}
	return nothingLeft(prefix, before)
}

func head(format string, a ...any) { fmt.Printf("\n== "+format+"\n", a...) }

// show is the demo itself.
func show(ctx context.Context, l *lab.Lab) (*e2e.World, error) {
	bin := filepath.Join(l.Dir, "bin")
	if err := os.Mkdir(bin, 0o755); err != nil {
		return nil, err
	}
	b, err := e2e.Build(ctx, bin)
	if err != nil {
		return nil, err
	}
	say := func(s string) { fmt.Println("  $ " + s) }
	head("a hub, two data centres and a cloud region; every site behind its own NAT router, nothing open inbound")
	w, err := e2e.NewWorld(ctx, l, b, say)
	if err != nil {
		return nil, err
	}
	head("four nodes join")
	if err := w.JoinAll(ctx, nil, say); err != nil {
		return nil, err
	}
	head("every pod pings every other pod, IPv4 and IPv6 (round trips in ms, IPv4)")
	rtt, err := w.WaitAllPings(ctx)
	if err != nil {
		return nil, err
	}
	table(w.PodNames(), rtt)

	head("TCP between sites, checksums compared")
	for _, p := range [][2]string{{"a1-1", "b1-1"}, {"b1-1", "c1-1"}, {"c1-1", "a2-1"}} {
		srv, err := w.Serve(ctx, w.Pods[p[1]].Host)
		if err != nil {
			return nil, err
		}
		t, err := w.Send(ctx, "tcp", w.Pods[p[0]].Host, w.Pods[p[1]].V4, 256<<20)
		if err != nil {
			return nil, err
		}
		srv.Kill()
		fmt.Printf("  pod %s to pod %s: %d MiB in %.1f s, %.0f Mbit/s\n", p[0], p[1], t.Bytes>>20, t.Seconds, t.Mbits)
	}
	if err := service(ctx, w); err != nil {
		return nil, err
	}
	for _, c := range []string{"status", "node list", "route list", "inventory show a1"} {
		head("causeway %s", c)
		args := strings.Fields(c)
		// The inventory comes over NATS soon after the join.
		err := lab.Wait(ctx, c, func(ctx context.Context) error {
			out, err := w.CLI(ctx, args...)
			if err == nil {
				fmt.Print(out)
			}
			return err
		})
		if err != nil {
			return nil, err
		}
	}
	return w, nil
}

// service shows one address for what two sites serve, and how a client sees that one of them falls silent.
func service(ctx context.Context, w *e2e.World) error {
	head("a service at two sites; the one that serves falls silent")
	client, first, second := w.Pods["a1-1"], w.Pods["b1-1"], w.Pods["c1-1"]
	for _, p := range []*e2e.Pod{first, second} {
		if _, err := w.Serve(ctx, p.Host); err != nil {
			return err
		}
	}
	create := fmt.Sprintf("service create web --port 80:7005 --backend idc-b:%s --backend cloud-c:%s --order idc-b,cloud-c", first.V4, second.V4)
	fmt.Println("  $ causeway " + create)
	if _, err := w.CLI(ctx, strings.Fields(create)...); err != nil {
		return err
	}
	var web struct{ VIP4 string }
	if err := w.Ask(ctx, &web, "service", "show", "web"); err != nil {
		return err
	}
	err := lab.Wait(ctx, "the service", func(ctx context.Context) error {
		out, err := w.CLI(ctx, "service", "explain", "web", "a1")
		if err == nil && !strings.Contains(out, "64 of 64") {
			err = errors.New(out)
		}
		return err
	})
	if err != nil {
		return err
	}
	c, err := w.Client(ctx, client.Host, "connected", "gaps", web.VIP4+":80", "-every", "20ms")
	if err != nil {
		return err
	}
	fmt.Printf("  pod a1-1 begins a connection to %s every 20 ms; node b1 falls silent\n", web.VIP4)
	if err := e2e.Silence(ctx, w.Hosts["b1"]); err != nil {
		return err
	}
	err = lab.Wait(ctx, "another site", func(ctx context.Context) error {
		out, err := client.Host.Run(ctx, w.Bin.Labtool, "gaps", web.VIP4+":80", "-every", "5ms", "-streams", "50")
		if err == nil && !strings.Contains(out, `"by":{"`+second.V4+`":50}`) {
			err = errors.New(out)
		}
		return err
	})
	if err != nil {
		return err
	}
	var g e2e.Gaps
	if err := c.End(ctx, &g); err != nil {
		return err
	}
	fmt.Printf("  %d connections, %d failed; the longest gap between two was %.2f s, the longest that one took %.2f s\n", g.Connected, g.Failed, g.MaxGap, g.Slowest)
	if err := e2e.Heal(ctx, w.Hosts["b1"]); err != nil {
		return err
	}
	return w.WaitReady(ctx, "b1")
}

// table prints round trips from row to column.
func table(pods []string, rtt map[string]float64) {
	fmt.Printf("  %6s", "")
	for _, p := range pods {
		fmt.Printf("%7s", p)
	}
	fmt.Println()
	for _, from := range pods {
		fmt.Printf("  %6s", from)
		for _, to := range pods {
			if from == to {
				fmt.Printf("%7s", "-")
				continue
			}
			fmt.Printf("%7.2f", rtt[from+" "+to])
		}
		fmt.Println()
	}
}

func lookAround(w *e2e.World) {
	hub, a1 := w.Hub.Host.Namespace(), w.Hosts["a1"].Namespace()
	head("left running; look around")
	fmt.Printf(`  alias hubctl='nsenter --net=/run/netns/%s %s --socket %s'
  hubctl status; hubctl node list; hubctl route list; hubctl audit; hubctl diag ping a1 b1
  nsenter --net=/run/netns/%s %s paths --debug-socket %s
  nsenter --net=/run/netns/%s ip route show table 51806
  nsenter --net=/run/netns/%s ping %s
  logs: %s/*.log
  end it: make demo-clean   (or go run ./e2e/cmd/demo -clean)
`, hub, w.Bin.CLI, w.Hub.Socket, a1, w.Bin.Agent, w.Node("a1").Socket, a1, w.Pods["a1-1"].Namespace(), w.Pods["b1-1"].V4, w.Lab.Dir)
}

// traces is what the machine's own network and directories look like.
func traces() (string, error) {
	var b strings.Builder
	for _, d := range []string{"/run/causeway", "/var/lib/causeway-hub", "/var/lib/causeway-agent", "/etc/causeway", "/sys/class/net"} {
		es, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return "", err
		}
		fmt.Fprintln(&b, d, err == nil)
		for _, e := range es {
			fmt.Fprintln(&b, e.Name())
		}
	}
	return b.String(), nil
}

// nothingLeft checks what the demo promises.
func nothingLeft(prefix, before string) error {
	if left := lab.Leftovers(prefix); len(left) > 0 {
		return fmt.Errorf("left behind: %s", strings.Join(left, "; "))
	}
	after, err := traces()
	if err != nil {
		return err
	}
	if after != before {
		return fmt.Errorf("the machine differs from before:\nbefore:\n%s\nafter:\n%s", before, after)
	}
	head("nothing is left: no namespace, process, rule or file")
	return nil
}
