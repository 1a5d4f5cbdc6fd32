// Command labtool is the traffic of tests, demo and benchmark: a server and its clients,
// static, so that it runs in pods and containers alike.
//
//	labtool serve                        TCP 7000 checksum, 7002 echo, 7003 count; UDP 7001 transfer, 7004 count; both 7005 who; HTTP 7080
//	labtool tcp ADDR -bytes N            sends N bytes, compares checksums
//	labtool udp ADDR -bytes N -size S [-group G]   the same over UDP, resending what is lost
//	labtool hold ADDR -for D [-streams N]   N TCP connections, one by default, each a line every 50 ms, all at most 200 a second
//	labtool bulk ADDR -pace B            one TCP transfer of B bytes a second until it is told to end; compares checksums
//	labtool http URL                     prints the answer
//	labtool ping ADDR…                   one ICMP echo to each
//	labtool flood ADDR[,ADDR…] -streams N -for D   TCP as fast as it goes
//	labtool rate ADDR -pps R -size S -for D   UDP at an even rate; how much arrived
//	labtool rtt ADDR -every D -for D     ICMP echoes; percentiles
//	labtool dial ADDR:PORT -every D      TCP connection after connection, until told to end
//	labtool gaps ADDR:PORT -every D [-streams N]   a TCP connection every D to who, until told to end or N were: gaps, and who answered
//	labtool datagrams ADDR:PORT -every D   the same with datagrams of one socket
//	labtool wait ADDR:PORT -streams N -every D   N TCP connections to who, each a line every D or none: when each ended
//	labtool volley ADDR -count N         N each of UDP datagrams, SYNs of no socket and ICMP echoes
//	labtool attack FILE ADDR:PORT…       sends what FILE (pcap) holds, changed in many ways, and garbage to each address
//	labtool stranger HELLO ADDR:PORT…    how far a program without a node's key comes at ports of hub and agents; HELLO is a file
//	labtool hellos HELLO ADDR:PORT STREAMS D   hellos on connection after connection
//	labtool joins FILE DIR D             redeems each token of FILE at once by the agent's own code, trying again for D
//	labtool knocks ADDR:PORT N           N strangers at a hub's HTTPS port, until told to end
//	labtool dns ADDR:PORT FILE           a DNS server of FILE's lines NAME ADDRESS TTL
//	labtool delay -queue N -delay D [-jitter D] [-loss P]   holds back and drops packets of a netfilter queue
//
// Results are one JSON object on standard output.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "labtool:", err)
		os.Exit(1)
	}
}

// Ports of serve.
const (
	portTCP   = "7000"
	portUDP   = "7001"
	portEcho  = "7002"
	portFlood = "7003"
	portRate  = "7004"
	portWho   = "7005"
	portHTTP  = "7080"
)

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return fmt.Errorf("want serve, tcp, udp, hold, bulk, http, ping, flood, rate, rtt, dial, gaps, datagrams, wait, volley, attack, stranger, hellos, joins, knocks, dns or delay")
	}
	fs := flag.NewFlagSet(args[0], flag.ContinueOnError)
	bytes := fs.Int64("bytes", 1<<20, "bytes to send")
	size := fs.Int("size", 1200, "bytes in a datagram")
	group := fs.Int("group", 1, "datagrams in one system call (UDP_SEGMENT)")
	marker := fs.String("marker", "", "text that the payload is made of")
	dur := fs.Duration("for", time.Hour, "how long to hold the connection, send or ping")
	streams := fs.Int("streams", 1, "connections at once")
	pace := fs.Int64("pace", 1<<20, "bytes in a second")
	pps := fs.Float64("pps", 1000, "datagrams in a second")
	every := fs.Duration("every", 10*time.Millisecond, "time between echoes")
	count := fs.Int("count", 1000, "packets of each kind")
	wait := fs.Duration("wait", time.Second, "how long to wait for the last echoes")
	queue := fs.Int("queue", 1, "number of the netfilter queue")
	base := fs.Duration("delay", 0, "how long each packet is held back")
	jitter := fs.Duration("jitter", 0, "up to this much more, which reorders")
	loss := fs.Float64("loss", 0, "percent of packets to drop")
	idle := fs.Bool("idle", false, "send nothing after the first line")
	target := ""
	rest := args[1:]
	if len(rest) > 0 && rest[0] != "" && rest[0][0] != '-' {
		target, rest = rest[0], rest[1:]
	}
	if args[0] == "ping" {
		return ping(ctx, args[1:])
	}
	if args[0] == "attack" {
		return show(attack(target, rest))
	}
	if args[0] == "stranger" {
		return show(stranger(ctx, target, rest))
	}
	if args[0] == "joins" && len(rest) == 2 {
		d, err := time.ParseDuration(rest[1])
		if err != nil {
			return err
		}
		return show(joins(ctx, target, rest[0], d))
	}
	if args[0] == "knocks" && len(rest) == 1 {
		n, err := strconv.Atoi(rest[0])
		if err != nil {
			return err
		}
		return show(knocks(ctx, target, n))
	}
	if args[0] == "dns" && len(rest) == 1 {
		return dnsServer(ctx, target, rest[0])
	}
	if args[0] == "hellos" && len(rest) == 3 {
		n, err := strconv.Atoi(rest[1])
		if err != nil {
			return err
		}
		d, err := time.ParseDuration(rest[2])
		if err != nil {
			return err
		}
		return show(hellos(ctx, target, rest[0], n, d))
	}
	if err := fs.Parse(rest); err != nil {
		return err
	}
	switch args[0] {
	case "serve":
		return serve(ctx)
	case "tcp":
		return show(sendTCP(ctx, target, *bytes, *marker))
	case "udp":
		return show(sendUDP(ctx, target, *bytes, *size, *group, *marker))
	case "hold":
		return show(holdAll(ctx, target, *dur, *streams, *idle))
	case "bulk":
		return show(bulk(ctx, target, *pace))
	case "flood":
		return show(flood(ctx, target, *streams, *dur))
	case "rate":
		return show(sendRate(ctx, target, *pps, *size, *dur))
	case "rtt":
		return show(roundTrips(ctx, target, *every, *dur, *wait))
	case "dial":
		return show(dial(ctx, target, *every))
	case "gaps":
		return show(gaps(ctx, *every, *streams, func() (own, source string, connected bool, err error) { return askWho(target) }))
	case "fetch":
		return show(gaps(ctx, *every, *streams, fetches(target)))
	case "datagrams":
		return show(datagramGaps(ctx, target, *every))
	case "wait":
		return show(waitConns(ctx, target, *streams, *every))
	case "volley":
		return show(volley(ctx, target, *count))
	case "delay":
		return delay(ctx, *queue, *base, *jitter, *loss)
	case "http":
		return get(ctx, target)
	}
	return fmt.Errorf("no command %q", args[0])
}

// Transfer is what tcp and udp print.
type Transfer struct {
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
	Mbits   float64 `json:"mbit_per_s"`
	SHA256  string  `json:"sha256"`
	Resent  int64   `json:"resent_datagrams,omitempty"`
}

// Held is what hold prints.
type Held struct {
	Lines  int     `json:"lines"` // that came back
	MaxGap float64 `json:"max_gap_seconds"`
}

func show[T any](v T, err error) error {
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(v)
}
