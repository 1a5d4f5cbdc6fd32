package service

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"causeway/internal/cause"
	"causeway/protocol"
)

// target is a backend beside this node that is asked whether it is ready.
type target struct {
	service string
	addr    netip.Addr
}

// question is how a backend is asked. Services that ask the same share the answer: a port that each of thousands asked for itself would
// have no more ports to be asked from.
type question struct {
	addr   netip.Addr
	health protocol.ServiceHealth
}

// readiness is what came of asking.
type readiness struct {
	ready protocol.Readiness
	cause string // why it is not
	since time.Time
}

const (
	// maxQuestions bounds what a node asks; backends beyond are unknown.
	maxQuestions = 2000
	// maxProbes is how many of them are asked at the same time.
	maxProbes = 64
)

// prober asks backends beside this node. Its methods may be called concurrently.
type prober struct {
	ask     func(context.Context, protocol.ServiceHealth, netip.Addr) error
	changed chan struct{} // something is or is not ready any more
	room    chan struct{}

	mu        sync.Mutex
	targets   map[target]question
	questions map[question]*probing
	surplus   int
}

type probing struct {
	stop context.CancelFunc
	now  readiness
}

func newProber() *prober {
	return &prober{ask: askBackend, changed: make(chan struct{}, 1), room: make(chan struct{}, maxProbes), questions: map[question]*probing{}}
}

// set says who is asked, until ctx ends. Who is asked already goes on being asked.
func (p *prober) set(ctx context.Context, l map[target]protocol.ServiceHealth) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.targets = make(map[target]question, len(l))
	asked := map[question]bool{}
	for t, h := range l {
		q := question{t.addr, h}
		p.targets[t], asked[q] = q, true
	}
	for q, x := range p.questions {
		if !asked[q] {
			x.stop()
			delete(p.questions, q)
		}
	}
	p.surplus = 0
	for q := range asked {
		if p.questions[q] != nil {
			continue
		}
		if len(p.questions) >= maxQuestions {
			p.surplus++
			continue
		}
		x := &probing{now: readiness{since: time.Now()}, stop: func() {}}
		p.questions[q] = x
		if q.health.Type == protocol.HealthNone {
			x.now.ready = protocol.Ready
			continue
		}
		var one context.Context
		one, x.stop = context.WithCancel(ctx)
		go p.follow(one, q, x)
	}
}

// follow asks one of them again and again: at random within an interval first, then a tenth earlier or later each time.
func (p *prober) follow(ctx context.Context, q question, x *probing) {
	every := time.Duration(q.health.Interval)
	wait := time.Duration(rand.Int64N(int64(min(every, 200*time.Millisecond))))
	good, bad := 0, 0
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		select {
		case <-ctx.Done():
			return
		case p.room <- struct{}{}:
		}
		within, cancel := context.WithTimeout(ctx, time.Duration(q.health.Timeout))
		err := p.ask(within, q.health, q.addr)
		cancel()
		<-p.room
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			good, bad = good+1, 0
		} else {
			good, bad = 0, bad+1
		}
		p.judge(q.health, x, good, bad, err)
		wait = every*9/10 + time.Duration(rand.Int64N(int64(every)/5+1))
	}
}

// judge takes over an answer. The first one counts by itself: who was never asked is neither ready nor not.
func (p *prober) judge(h protocol.ServiceHealth, x *probing, good, bad int, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := x.now.ready
	switch {
	case good >= h.OK, good > 0 && was == protocol.ReadyUnknown:
		x.now.ready, x.now.cause = protocol.Ready, ""
	case bad >= h.Fail, bad > 0 && was == protocol.ReadyUnknown:
		x.now.ready = protocol.NotReady
	}
	if x.now.ready == protocol.NotReady && err != nil {
		x.now.cause = protocol.OneLine(cause.Innermost(err).Error(), 120)
	}
	if x.now.ready == was {
		return
	}
	x.now.since = time.Now()
	select {
	case p.changed <- struct{}{}:
	default:
	}
}

// all is what is known of all that are asked.
func (p *prober) all() map[target]readiness {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[target]readiness, len(p.targets))
	for t, q := range p.targets {
		if x := p.questions[q]; x != nil {
			out[t] = x.now
		}
	}
	return out
}

// askBackend asks one backend once.
func askBackend(ctx context.Context, h protocol.ServiceHealth, a netip.Addr) error {
	at := netip.AddrPortFrom(a, h.Port).String()
	switch h.Type {
	case protocol.HealthTCP:
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", at)
		if err != nil {
			return err
		}
		return c.Close()
	case protocol.HealthHTTP:
		return askHTTP(ctx, "http://"+at+h.Path)
	case protocol.HealthGRPC:
		return askGRPC(ctx, "http://"+at+"/grpc.health.v1.Health/Check")
	}
	return fmt.Errorf("there is no health check %.40q", h.Type)
}

// maxHealthAnswer bounds what is read of an answer.
const maxHealthAnswer = 4 << 10

var (
	httpClient = healthClient(false)
	grpcClient = healthClient(true)
)

// healthClient makes a connection for each question and follows no redirect: what is asked is this backend.
func healthClient(http2 bool) *http.Client {
	t := &http.Transport{DisableKeepAlives: true, Proxy: nil, MaxResponseHeaderBytes: maxHealthAnswer, Protocols: new(http.Protocols)}
	t.Protocols.SetHTTP1(!http2)
	t.Protocols.SetUnencryptedHTTP2(http2)
	return &http.Client{Transport: t, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
}

func askHTTP(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	r.Header.Set("User-Agent", "causeway-health")
	resp, err := httpClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 || resp.StatusCode > 399 {
		return errors.New("HTTP status " + strconv.Itoa(resp.StatusCode))
	}
	return nil
}

// askGRPC calls grpc.health.v1.Health/Check for the whole server (https://github.com/grpc/grpc/blob/master/doc/health-checking.md):
// a request without a service, framed as gRPC over HTTP/2 has it, one byte of flags and four of length.
func askGRPC(ctx context.Context, url string) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(make([]byte, 5)))
	if err != nil {
		return err
	}
	r.Header.Set("Content-Type", "application/grpc")
	r.Header.Set("TE", "trailers")
	r.Header.Set("User-Agent", "causeway-health")
	resp, err := grpcClient.Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxHealthAnswer))
	if err != nil {
		return err
	}
	status := resp.Trailer.Get("Grpc-Status")
	if status == "" {
		status = resp.Header.Get("Grpc-Status")
	}
	switch {
	case resp.StatusCode != http.StatusOK || !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/grpc"):
		return errors.New("no gRPC: HTTP status " + strconv.Itoa(resp.StatusCode))
	case status != "0":
		return fmt.Errorf("gRPC status %.10q", status)
	case !bytes.Equal(body, []byte{0, 0, 0, 0, 2, 8, 1}): // HealthCheckResponse{status: SERVING}
		return errors.New("grpc.health.v1 does not say SERVING")
	}
	return nil
}
