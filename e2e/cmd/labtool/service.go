package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// A connection to portWho begins with a line of the server: its own address, and the client's as it sees it. What the client sends
// is lines that begin with the server's address; they come back. A line with another address was meant for another server,
// and is printed as such. A datagram is answered by the same first line.

// serveWho serves one connection.
func serveWho(c net.Conn) {
	own, _, _ := net.SplitHostPort(c.LocalAddr().String())
	fmt.Fprintf(c, "%s %s\n", own, c.RemoteAddr())
	r := bufio.NewReader(c)
	for {
		line, err := r.ReadString('\n')
		if len(line) > 0 && !strings.HasPrefix(line, own+" ") {
			fmt.Printf("WRONG: %s got %q\n", own, line)
		}
		if err != nil {
			return
		}
		if _, err := io.WriteString(c, line); err != nil {
			return
		}
	}
}

// serveWhoUDP answers datagrams, each from the address that it came to.
func serveWhoUDP(ctx context.Context) error {
	var conns []net.PacketConn
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return err
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || !p.Addr().IsGlobalUnicast() {
			continue
		}
		c, err := net.ListenPacket("udp", net.JoinHostPort(p.Addr().String(), portWho))
		if err != nil {
			return err
		}
		conns = append(conns, c)
		go func() {
			b := make([]byte, 2048)
			for {
				_, from, err := c.ReadFrom(b)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(fmt.Appendf(nil, "%s %s\n", p.Addr(), from), from)
			}
		}()
	}
	<-ctx.Done()
	for _, c := range conns {
		c.Close()
	}
	return nil
}

// Gaps is what gaps prints.
type Gaps struct {
	Connected int            `json:"connected"`
	Failed    int            `json:"failed"` // to connect
	Cut       int            `json:"cut"`    // that were connected and had no answer yet
	Errors    map[string]int `json:"errors"`
	By        map[string]int `json:"by"`      // server's address
	Sources   map[string]int `json:"sources"` // the client's address as servers see it
	// MaxGap is the longest time without a connection that succeeded, Slowest the longest that one took, in seconds.
	MaxGap  float64 `json:"max_gap_seconds"`
	Slowest float64 `json:"slowest_seconds"`
}

// dialTimeout is beyond all that a client waits for.
const dialTimeout = 15 * time.Second

// gaps begins a connection every so often, whatever became of those before, until it is told to end, or n were begun if n is not 1.
func gaps(ctx context.Context, every time.Duration, n int, ask asks) (g Gaps, err error) {
	g.Errors, g.By, g.Sources = map[string]int{}, map[string]int{}, map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	last := time.Now()
	tick := time.NewTicker(every)
	defer tick.Stop()
	one := func() {
		begun := time.Now()
		own, source, connected, err := ask()
		mu.Lock()
		defer mu.Unlock()
		if err != nil {
			if g.Errors[innermost(err)]++; connected {
				g.Cut++
			} else {
				g.Failed++
			}
			return
		}
		now := time.Now()
		if g.Connected == 0 {
			fmt.Println("connected")
		} else {
			g.MaxGap = max(g.MaxGap, now.Sub(last).Seconds())
		}
		last = now
		g.Connected++
		g.By[own]++
		g.Sources[source]++
		g.Slowest = max(g.Slowest, now.Sub(begun).Seconds())
	}
	for begun := 0; n == 1 || begun < n; begun++ {
		select {
		case <-ctx.Done():
			wg.Wait()
			return g, nil
		case <-tick.C:
			wg.Go(one)
		}
	}
	wg.Wait()
	return g, nil
}

func innermost(err error) string {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno.Error()
	}
	return err.Error()
}

// asks connects once and returns what the server says of itself and of the client.
type asks func() (own, source string, connected bool, err error)

// fetches asks for a page, which says who has it.
func fetches(url string) asks {
	c := http.Client{Timeout: dialTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	return func() (own, source string, connected bool, err error) {
		resp, err := c.Get(url)
		if err != nil {
			return "", "", false, err
		}
		defer resp.Body.Close()
		page, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return strings.TrimSpace(string(page)), "", true, err
	}
}

// askWho connects to portWho, or what is translated to it.
func askWho(addr string) (own, source string, connected bool, err error) {
	c, err := net.DialTimeout("tcp", addr, dialTimeout)
	if err != nil {
		return "", "", false, err
	}
	defer c.Close()
	_ = c.(*net.TCPConn).SetLinger(0) // its port is free at once: there are thousands of them
	_ = c.SetDeadline(time.Now().Add(dialTimeout))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", true, err
	}
	own, source, _ = strings.Cut(strings.TrimSpace(line), " ")
	source, _, _ = net.SplitHostPort(source)
	return own, source, true, nil
}

// Waited is what wait prints: of connections that were open when it began, when each ended, by the wall clock in milliseconds.
type Waited struct {
	Server string         `json:"server"` // whose most are
	Ended  []int64        `json:"ended"`
	Errors map[string]int `json:"errors"`
	Open   int            `json:"open"` // that were left when it was told to end
}

// waitConns holds n connections, that send a line every so often, or nothing if every is 0, until all have ended or it is told to end.
func waitConns(ctx context.Context, addr string, n int, every time.Duration) (w Waited, err error) {
	w.Errors = map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	servers := map[string]int{}
	conns := make([]net.Conn, n)
	readers := make([]*bufio.Reader, n)
	for i := range conns {
		if conns[i], err = net.DialTimeout("tcp", addr, dialTimeout); err != nil {
			return w, err
		}
		readers[i] = bufio.NewReaderSize(conns[i], 64)
		line, err := readers[i].ReadString('\n')
		if err != nil {
			return w, err
		}
		own, _, _ := strings.Cut(line, " ")
		servers[own]++
		if servers[own] > servers[w.Server] {
			w.Server = own
		}
		wg.Go(func() {
			written := make(chan error, 1) // of the two only one hears why the connection ended
			if every > 0 {
				go func() {
					for {
						if _, err := io.WriteString(conns[i], own+" line\n"); err != nil {
							written <- err
							return
						}
						time.Sleep(every)
					}
				}()
			}
			_, err := io.Copy(io.Discard, readers[i])
			if err == nil {
				if err = io.EOF; every > 0 {
					err = <-written
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if ctx.Err() != nil {
				w.Open++
				return
			}
			w.Errors[innermost(err)]++
			w.Ended = append(w.Ended, time.Now().UnixMilli())
		})
	}
	fmt.Println("connected to", w.Server)
	defer context.AfterFunc(ctx, func() {
		for _, c := range conns {
			c.Close()
		}
	})()
	wg.Wait()
	slices.Sort(w.Ended)
	return w, nil
}

// datagramGaps sends one every so often from one socket, until it is told to end; how long no answer came, and from whom.
func datagramGaps(ctx context.Context, addr string, every time.Duration) (g Gaps, err error) {
	g.By = map[string]int{}
	c, err := net.Dial("udp", addr)
	if err != nil {
		return g, err
	}
	context.AfterFunc(ctx, func() { c.Close() })
	go func() {
		for ctx.Err() == nil {
			_, _ = c.Write([]byte("who"))
			time.Sleep(every)
		}
	}()
	last, b := time.Now(), make([]byte, 2048)
	for ctx.Err() == nil {
		n, err := c.Read(b)
		if err != nil {
			continue // an ICMP error, or the end
		}
		now := time.Now()
		if g.Connected == 0 {
			fmt.Println("connected")
		} else {
			g.MaxGap = max(g.MaxGap, now.Sub(last).Seconds())
		}
		last = now
		g.Connected++
		own, _, _ := strings.Cut(string(b[:n]), " ")
		g.By[own]++
	}
	return g, nil
}
