// Command wgtool is one plain WireGuard device for tests: our inline engine
// over the underlay's sockets in plain mode, or wireguard-go as it is, behind
// the socket that wg(8) configures. It takes the place of
// 'ip link add NAME type wireguard' and is never shipped.
//
//	wgtool [-engine inline|wireguard-go] [-mtu N] [-no-offload] [-debug] NAME
//	wgtool -flood PUBLICKEY [-for D] ADDR:PORT
//
// The second form puts a device under load: handshake initiations that pass
// the first check and fail the second.
//
// It says 'ready' when the device and its socket are there. The device goes
// when it ends. The sockets stay in the namespace that it was started in, wherever
// the interface is moved to, as with the kernel's.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"causeway/tunnel/engine/inline"
	"causeway/tunnel/engine/wggo"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "wgtool:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, log io.Writer) error {
	fs := flag.NewFlagSet("wgtool", flag.ContinueOnError)
	engine := fs.String("engine", inline.Name, inline.Name+" or "+wggo.Name)
	mtu := fs.Int("mtu", 1420, "of the device, at first")
	plain := fs.Bool("no-offload", false, "neither super-packets nor groups of datagrams")
	debug := fs.Bool("debug", false, "log what handshakes and timers do")
	victim := fs.String("flood", "", "flood the device with this `PUBLICKEY`, in wg's form")
	dur := fs.Duration("for", 10*time.Second, "how long to flood")
	if err := fs.Parse(args); err != nil {
		return err
	}
	if *victim != "" && fs.NArg() == 1 {
		return flood(ctx, *victim, fs.Arg(0), *dur)
	}
	if fs.NArg() != 1 {
		return errors.New("want the name of one interface")
	}
	level := zerolog.InfoLevel
	if *debug {
		level = zerolog.DebugLevel
	}
	l := zerolog.New(zerolog.ConsoleWriter{Out: log, NoColor: true, TimeFormat: time.StampMilli}).Level(level).With().Timestamp().Logger()
	ready := func() { fmt.Println("ready") }
	switch *engine {
	case inline.Name:
		return runInline(ctx, fs.Arg(0), *mtu, *plain, l, ready)
	case wggo.Name:
		return runWireGuardGo(ctx, fs.Arg(0), *mtu, *debug, ready)
	}
	return fmt.Errorf("engine %q: want %s or %s", *engine, inline.Name, wggo.Name)
}
