package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"reflect"
	"regexp"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"
	"github.com/stretchr/testify/require"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

var update = flag.Bool("update", false, "write what the commands print into the scripts' golden files")

// TestMain lets scripts run this program's main as 'exec causeway'.
func TestMain(m *testing.M) {
	testscript.Main(tests{m}, map[string]func(){"causeway": main})
}

// tests removes at their end what worlds begin with.
type tests struct{ *testing.M }

func (t tests) Run() int {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8") // scripts wait for disks and agents more than they work
	}
	debug.SetGCPercent(400) // many small hubs
	status := t.M.Run()
	if begun.Load() {
		w, _ := before()
		os.RemoveAll(w.dir)
	}
	return status
}

// TestScripts runs testdata/script, each script against a real hub of its own (see world). Further commands of scripts:
//
//	run ARGS…                        as exec causeway, in the test's process: quick, and with what differs from run to
//	                                 run told alike (see world.steady); it finds files that are there, but has no
//	                                 standard input and no environment
//	until REGEXP ARGS…               as run, again and again, until it prints so
//	start NAME ARGS…                 as run, and goes on meanwhile
//	await NAME REGEXP                waits until that has printed so
//	stop NAME                        interrupts it, and has what it printed; with ! it has to fail by itself
//	agent NODE up [version=V] [routes=CIDR,…]
//	                                 connects the node's agent, anew if it is
//	agent NODE down                  breaks the session
//	agent NODE mute                  it acknowledges nothing from now on
//	agent NODE status FILE           sends a protocol.Status
//	agent NODE facts FILE            publishes a protocol.Inventory
//	agent NODE incident FILE         publishes a protocol.Incident
//	agent NODE flows FILE            publishes a protocol.FlowReport
//	agent NODE answers PATH FILE     its debug API answers so; 'refuse TEXT' in it is an error, 'fill N' so many bytes, 'pcapng' a capture
//	agent NODE obeys [fails=TEXT]    makes new keys and upgrades as it is asked to, or fails to
//	release VERSION                  puts a release into the hub's packages
//	booted NODE                      has two hosts take turns with the node's identity
//	open SITE                        sets OPEN to the id of an open token of the site
//	hub stop                         ends the hub
//
// In the files of agents ago(3h) is a time. The commands wait until the hub has what they say.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		UpdateScripts:       *update,
		RequireExplicitExec: true,
		Setup: func(e *testscript.Env) error {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			w, err := newWorld(ctx)
			if err != nil {
				return err
			}
			e.Defer(func() {
				if err := w.end(); err != nil {
					e.T().Fatal(err)
				}
			})
			e.Values[worldKey{}] = w
			e.Setenv(frame.EnvSocket, w.Socket)
			e.Setenv("TZ", "UTC")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"run": scriptRun, "until": scriptUntil, "start": scriptStart, "await": scriptAwait, "stop": scriptStop, "hub": scriptHub, "open": scriptOpen, "agent": scriptAgent, "release": scriptRelease, "booted": scriptBooted,
		},
	})
}

type worldKey struct{}

func worldOf(ts *testscript.TestScript) *world { return ts.Value(worldKey{}).(*world) }

func scriptRun(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	var out, errw strings.Builder
	line := []string{"--socket", w.Socket}
	for _, a := range args {
		if _, err := os.Stat(ts.MkAbs(a)); err == nil && a != "" {
			a = ts.MkAbs(a)
		}
		line = append(line, a)
	}
	status := run(ctx, line, strings.NewReader(""), &out, &errw)
	here := strings.NewReplacer(ts.MkAbs("")+"/", "")
	fmt.Fprint(ts.Stdout(), here.Replace(w.steady(out.String())))
	fmt.Fprint(ts.Stderr(), here.Replace(withoutPorts(errw.String())))
	if neg != (status != frame.ExitOK) {
		ts.Fatalf("status %d\n%s%s", status, out.String(), errw.String())
	}
}

func scriptUntil(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w, re := worldOf(ts), regexp.MustCompile("(?m)"+args[0])
	var out strings.Builder
	if until(ctx, func() bool {
		out.Reset()
		run(ctx, append([]string{"--socket", w.Socket}, args[1:]...), strings.NewReader(""), &out, io.Discard)
		return re.MatchString(w.steady(out.String()))
	}) != nil {
		ts.Fatalf("it does not print that: %s", out.String())
	}
	fmt.Fprint(ts.Stdout(), w.steady(out.String()))
}

// background is a command that goes on.
type background struct {
	out, err screenBuffer
	cancel   context.CancelFunc
	status   chan int
}

func scriptStart(ts *testscript.TestScript, _ bool, args []string) {
	w := worldOf(ts)
	b := &background{status: make(chan int, 1)}
	var ctx context.Context
	ctx, b.cancel = context.WithCancel(context.Background())
	go func() {
		b.status <- run(ctx, append([]string{"--socket", w.Socket}, args[1:]...), strings.NewReader(""), &b.out, &b.err)
	}()
	w.running[args[0]] = b
	ts.Defer(b.cancel)
}

func scriptAwait(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	w := worldOf(ts)
	b, re := w.running[args[0]], regexp.MustCompile("(?m)"+args[1])
	if until(ctx, func() bool { return re.MatchString(w.steady(b.out.String() + b.err.String())) }) != nil {
		ts.Fatalf("it has not printed that: %s%s", b.out.String(), b.err.String())
	}
}

func scriptStop(ts *testscript.TestScript, neg bool, args []string) {
	w := worldOf(ts)
	b := w.running[args[0]]
	if !neg { // else it ends by itself
		b.cancel()
	}
	select {
	case status := <-b.status:
		fmt.Fprint(ts.Stdout(), w.steady(b.out.String()))
		fmt.Fprint(ts.Stderr(), withoutPorts(b.err.String()))
		if neg != (status != frame.ExitOK) {
			ts.Fatalf("status %d\n%s%s", status, b.out.String(), b.err.String())
		}
	case <-time.After(patience):
		ts.Fatalf("it does not end: %s%s", b.out.String(), b.err.String())
	}
}

func scriptHub(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) != 1 || args[0] != "stop" {
		ts.Fatalf("usage: hub stop")
	}
	ts.Check(worldOf(ts).stop())
}

func scriptAgent(ts *testscript.TestScript, _ bool, args []string) {
	if len(args) < 2 {
		ts.Fatalf("usage: agent NODE WHAT …")
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	n := worldOf(ts).nodes[args[0]]
	if n == nil {
		ts.Fatalf("no host has joined as %s", args[0])
	}
	n.Lock()
	defer n.Unlock()
	read := func(v any) {
		ts.Check(json.Unmarshal([]byte(fact(ts.ReadFile(args[2]))), v))
	}
	switch args[1] {
	case "up":
		for _, a := range args[2:] {
			k, v, _ := strings.Cut(a, "=")
			switch k {
			case "version":
				n.hello.AgentVersion = v
			case "routes":
				n.hello.Routes = nil
				for p := range strings.SplitSeq(v, ",") {
					prefix, err := frame.ParsePrefix(p)
					ts.Check(err)
					n.hello.Routes = append(n.hello.Routes, prefix)
				}
			default:
				ts.Fatalf("agent up %s?", a)
			}
		}
		ts.Check(n.up(ctx))
	case "down":
		ts.Check(n.down(ctx))
	case "mute":
		n.agent.Mute()
	case "status":
		var s protocol.Status
		read(&s)
		ts.Check(n.says(ctx, s))
	case "facts":
		var i protocol.Inventory
		read(&i)
		ts.Check(n.tells(ctx, args[0], i))
	case "incident":
		var i protocol.Incident
		read(&i)
		ts.Check(n.mends(ctx, i))
	case "flows":
		var r protocol.FlowReport
		read(&r)
		ts.Check(n.logs(ctx, r))
	case "switches":
		var r protocol.SwitchReport
		read(&r)
		ts.Check(n.switches(ctx, r))
	case "answers":
		n.mu.Lock()
		n.answers[args[2]] = []byte(fact(ts.ReadFile(args[3])))
		n.mu.Unlock()
	case "obeys":
		_, fails, _ := strings.Cut(strings.Join(args[2:], " "), "=")
		ts.Defer(n.obey(fails))
	default:
		ts.Fatalf("agent %s?", args[1])
	}
}

func scriptOpen(ts *testscript.TestScript, _ bool, args []string) {
	tokens, err := worldOf(ts).Client.Tokens(context.Background())
	ts.Check(err)
	for _, t := range tokens {
		if t.State == "open" && t.Site == args[0] {
			ts.Setenv("OPEN", t.ID)
			return
		}
	}
	ts.Fatalf("no token of %s is open", args[0])
}

func scriptRelease(ts *testscript.TestScript, _ bool, args []string) {
	ts.Check(worldOf(ts).release(args[0]))
}

func scriptBooted(ts *testscript.TestScript, _ bool, args []string) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ts.Check(worldOf(ts).twoHosts(ctx, args[0]))
}

func flatten(c *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{c}
	for _, s := range c.Commands() {
		all = append(all, flatten(s)...)
	}
	return all
}

// TestHelpOfEveryCommand keeps every command documented and every flag named.
func TestHelpOfEveryCommand(t *testing.T) {
	c := &cli{frame.New(nil, nil, nil)}
	n := 0
	for _, cmd := range flatten(c.root()) {
		require.NotEmpty(t, cmd.Short, cmd.CommandPath())
		n++
	}
	require.Greater(t, n, 25)
}

// 'causeway explain KIND-file' knows every kind of documents.
func TestExplainKnowsEveryDocument(t *testing.T) {
	for kind, typ := range api.Documents {
		require.Equal(t, reflect.TypeOf(typ).String(), kinds[kind+"-file"].typ, kind)
	}
}
