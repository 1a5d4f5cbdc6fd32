package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"causeway/protocol"
	"causeway/tunnel/mux"
)

// strangerWait is how long a stranger waits for a connection or an answer.
const strangerWait = 1500 * time.Millisecond

// Reached is how far a stranger came at one address.
type Reached struct {
	Addr      string   `json:"addr"`
	Connected bool     `json:"connected"`
	Hello     []string `json:"hello,omitempty"` // what a hub answered to a hello and a leave: kinds, or codes of errors
	NATS      string   `json:"nats,omitempty"`  // and to NATS
	Debug     string   `json:"debug,omitempty"` // and to HTTP on a debug stream
}

// stranger tries each address; at the port of control it says the hello that file holds,
// leaves, and asks for NATS and debug.
func stranger(ctx context.Context, file string, addrs []string) ([]Reached, error) {
	hello, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	out := make([]Reached, len(addrs))
	var wg sync.WaitGroup
	for i, a := range addrs {
		wg.Go(func() { out[i] = tryAt(ctx, a, hello) })
	}
	wg.Wait()
	return out, nil
}

func tryAt(ctx context.Context, addr string, hello []byte) Reached {
	r := Reached{Addr: addr}
	c, err := net.DialTimeout("tcp", addr, strangerWait)
	if err != nil {
		return r
	}
	defer c.Close()
	r.Connected = true
	if !strings.HasSuffix(addr, ":4710") {
		return r
	}
	m, err := mux.Client(c)
	if err != nil {
		return r
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(ctx, 4*strangerWait)
	defer cancel()
	if st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamNATS}); err == nil {
		st.Write([]byte("CONNECT {}\r\nPING\r\n"))
		r.NATS = firstWords(st)
	}
	if st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamDebug}); err == nil {
		st.Write([]byte("GET /v1/status HTTP/1.1\r\nHost: agent\r\n\r\n"))
		r.Debug = firstWords(st)
	}
	st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return r
	}
	for _, say := range []protocol.Message{{Version: protocol.Version, Kind: protocol.KindHello, Body: hello}, {Version: protocol.Version, Kind: protocol.KindLeave, Body: []byte("{}")}} {
		st.SetDeadline(time.Now().Add(strangerWait))
		if protocol.WriteFrame(st, say, protocol.MaxToHub) != nil {
			break
		}
		got, err := answer(st)
		if err != nil {
			break
		}
		r.Hello = append(r.Hello, got)
	}
	return r
}

// answer is the kind of a message, or the code of an error.
func answer(st net.Conn) (string, error) {
	var m protocol.Message
	if err := protocol.ReadFrame(st, &m, protocol.MaxToAgent); err != nil {
		return "", err
	}
	var e protocol.Error
	if m.Kind == protocol.KindError && m.Decode(&e) == nil {
		return e.Code, nil
	}
	return string(m.Kind), nil
}

// firstWords are those of whatever answers on a stream.
func firstWords(st net.Conn) string {
	st.SetReadDeadline(time.Now().Add(strangerWait))
	b, err := bufio.NewReader(st).Peek(5) // an error's frame begins with its length
	if err != nil {
		return ""
	}
	if b[0] != 0 {
		return string(b)
	}
	return "refused"
}

// Hellos is what hellos prints.
type Hellos struct {
	Sent    int64            `json:"sent"`
	Failed  int64            `json:"failed"` // to connect
	Answers map[string]int64 `json:"answers"`
}

// helloWait is how long hellos waits for a connection: it is there as soon as the way is.
const helloWait = 100 * time.Millisecond

// enough hellos are a flood: more than a hub grants a node in a minute.
const enough = 200

// hellos says the hello of file on connection after connection, many at once, as fast as they are
// answered.
func hellos(ctx context.Context, file, addr string, streams int, d time.Duration) (Hellos, error) {
	hello, err := os.ReadFile(file)
	if err != nil {
		return Hellos{}, err
	}
	if !json.Valid(hello) {
		return Hellos{}, errors.New("the hello is no JSON")
	}
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	var sent, failed atomic.Int64
	var mu sync.Mutex
	answers := map[string]int64{}
	var wg sync.WaitGroup
	for range streams {
		wg.Go(func() {
			for ctx.Err() == nil {
				got, err := oneHello(ctx, addr, hello)
				if err != nil {
					failed.Add(1)
					continue
				}
				if sent.Add(1) == enough {
					fmt.Fprintln(os.Stderr, "enough were answered")
				}
				mu.Lock()
				answers[got]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return Hellos{sent.Load(), failed.Load(), answers}, nil
}

func oneHello(ctx context.Context, addr string, hello []byte) (string, error) {
	c, err := net.DialTimeout("tcp", addr, helloWait)
	if err != nil {
		return "", err
	}
	defer c.Close()
	m, err := mux.Client(c)
	if err != nil {
		return "", err
	}
	defer m.Close()
	ctx, cancel := context.WithTimeout(ctx, strangerWait)
	defer cancel()
	st, err := m.Open(ctx, protocol.StreamHeader{Kind: protocol.StreamControl})
	if err != nil {
		return "", err
	}
	st.SetDeadline(time.Now().Add(strangerWait))
	if err := protocol.WriteFrame(st, protocol.Message{Version: protocol.Version, Kind: protocol.KindHello, Body: hello}, protocol.MaxToHub); err != nil {
		return "none", nil
	}
	got, err := answer(st)
	if err != nil {
		return "none", nil
	}
	return got, nil
}
