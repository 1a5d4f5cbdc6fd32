package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// payload is an endless source: a marker over and over, or random bytes.
func payload(marker string) io.Reader {
	if marker == "" {
		return rand.NewChaCha8([32]byte{1})
	}
	return &repeat{text: []byte(marker)}
}

type repeat struct {
	text []byte
	at   int
}

func (r *repeat) Read(b []byte) (int, error) {
	for n := 0; n < len(b); {
		k := copy(b[n:], r.text[r.at:])
		n, r.at = n+k, (r.at+k)%len(r.text)
	}
	return len(b), nil
}

// sendTCP sends n bytes, closes its half and reads the checksum of what
// arrived.
func sendTCP(ctx context.Context, addr string, n int64, marker string) (Transfer, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(addr, portTCP))
	if err != nil {
		return Transfer{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	start := time.Now()
	h := sha256.New()
	w := io.MultiWriter(c, h)
	if _, err := io.CopyBuffer(struct{ io.Writer }{w}, io.LimitReader(payload(marker), n), make([]byte, 256<<10)); err != nil {
		return Transfer{}, fmt.Errorf("send: %w", err)
	}
	return concluded(c, h, n, start)
}

// concluded ends what is sent on c and compares the checksum that the server
// answers with h's, of n bytes sent since start.
func concluded(c net.Conn, h hash.Hash, n int64, start time.Time) (Transfer, error) {
	if err := c.(*net.TCPConn).CloseWrite(); err != nil {
		return Transfer{}, err
	}
	answer, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return Transfer{}, fmt.Errorf("read checksum: %w", err)
	}
	sum := hex.EncodeToString(h.Sum(nil))
	if strings.TrimSpace(answer) != sum {
		return Transfer{}, fmt.Errorf("checksum %s was sent, %s arrived", sum, strings.TrimSpace(answer))
	}
	s := time.Since(start).Seconds()
	return Transfer{Bytes: n, Seconds: s, Mbits: float64(n) * 8 / s / 1e6, SHA256: sum}, nil
}

// serve runs every server until ctx ends.
func serve(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	listen := func(port string, f func(net.Conn)) {
		g.Go(func() error {
			l, err := net.Listen("tcp", ":"+port)
			if err != nil {
				return err
			}
			context.AfterFunc(ctx, func() { l.Close() })
			for {
				c, err := l.Accept()
				if ctx.Err() != nil {
					return nil
				}
				if err != nil {
					return err
				}
				go func() {
					defer c.Close()
					f(c)
				}()
			}
		})
	}
	listen(portTCP, func(c net.Conn) {
		h := sha256.New()
		if _, err := io.CopyBuffer(struct{ io.Writer }{h}, struct{ io.Reader }{c}, make([]byte, 256<<10)); err == nil {
			fmt.Fprintln(c, hex.EncodeToString(h.Sum(nil)))
		}
	})
	listen(portEcho, func(c net.Conn) { io.Copy(c, c) })
	listen(portFlood, drain)
	listen(portWho, serveWho)
	g.Go(func() error { return serveWhoUDP(ctx) })
	g.Go(func() error { return serveUDP(ctx) })
	datagrams := &counter{}
	g.Go(func() error { return datagrams.serve(ctx) })
	mux := http.NewServeMux()
	mux.Handle(ratePath, datagrams)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Printf("http %s %s from %s\n", r.Method, r.URL.Path, host)
		fmt.Fprintf(w, "hello %s, here is %s\n", host, hostname())
	})
	srv := &http.Server{Addr: ":" + portHTTP, ReadHeaderTimeout: 10 * time.Second, Handler: mux}
	context.AfterFunc(ctx, func() { srv.Close() })
	g.Go(func() error {
		if err := srv.ListenAndServe(); ctx.Err() == nil {
			return err
		}
		return nil
	})
	return g.Wait()
}

func hostname() string {
	h, err := os.Hostname()
	if err != nil {
		return "unknown"
	}
	return h
}

func get(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	c := http.Client{Timeout: 10 * time.Second}
	resp, err := c.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, err = io.Copy(os.Stdout, resp.Body)
	return err
}

// maxLines is how many lines all connections of a hold send in a second at most.
const maxLines = 200

// holdAll is hold with any number of connections, which send nothing after their first line where they are idle. The first that breaks
// ends all.
func holdAll(ctx context.Context, addr string, d time.Duration, streams int, idle bool) (all Held, err error) {
	conns := make([]net.Conn, streams)
	for i := range conns {
		if conns[i], err = net.DialTimeout("tcp", net.JoinHostPort(addr, portEcho), 10*time.Second); err != nil {
			return all, err
		}
		defer conns[i].Close()
	}
	fmt.Fprintln(os.Stderr, "connected")
	every := max(50*time.Millisecond, time.Duration(streams)*time.Second/maxLines)
	if idle {
		every = d
	}
	results := make([]Held, streams)
	g, gctx := errgroup.WithContext(ctx)
	for i, c := range conns {
		g.Go(func() (err error) {
			results[i], err = hold(gctx, c, d, every)
			return err
		})
	}
	err = g.Wait()
	for _, r := range results {
		all.Lines += r.Lines
		all.MaxGap = max(all.MaxGap, r.MaxGap)
	}
	return all, err
}

// hold keeps one TCP connection busy: a line every 50 ms that has to come
// back. It prints 'connected' and then its result when it is told to end. A
// connection that breaks is an error.
func hold(ctx context.Context, c net.Conn, d, every time.Duration) (Held, error) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	broken := make(chan error, 1)
	go func() {
		t := time.NewTicker(every)
		defer t.Stop()
		for i := 0; ; i++ {
			if _, err := fmt.Fprintf(c, "%d\n", i); err != nil {
				broken <- err
				return
			}
			select {
			case <-ctx.Done():
				// Half a close: what is on its way still comes back.
				c.(*net.TCPConn).CloseWrite()
				c.SetReadDeadline(time.Now().Add(30 * time.Second))
				return
			case <-t.C:
			}
		}
	}()
	var h Held
	last := time.Now()
	for s := bufio.NewScanner(c); ; h.Lines++ {
		if !s.Scan() {
			if s.Err() != nil || ctx.Err() == nil {
				select {
				case err := <-broken:
					return h, fmt.Errorf("connection broke after %d lines: %w", h.Lines, err)
				default:
					return h, fmt.Errorf("connection broke after %d lines: %v", h.Lines, s.Err())
				}
			}
			return h, nil
		}
		if s.Text() != fmt.Sprint(h.Lines) {
			return h, fmt.Errorf("line %d came back as %q", h.Lines, s.Text())
		}
		h.MaxGap = max(h.MaxGap, time.Since(last).Seconds())
		last = time.Now()
	}
}
