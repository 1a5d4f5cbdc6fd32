package bus

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nkeys"
	"golang.org/x/time/rate"

	"causeway/hub/conns"
	"causeway/protocol"
)

// Limits of readers, who come from anywhere.
const (
	readerTimeout     = 10 * time.Second // from a connection's begin to its CONNECT
	maxUnknown        = 128              // connections of whom nobody knows yet
	maxUnknownSource  = 32
	maxReaders        = 64 // connections in all
	maxReaderUser     = 8  // of one user
	maxReaderRequest  = 4096
	readerLines       = 200 // of the protocol in a second, on a connection; beyond, it waits
	readerLinesAtOnce = 1000
	nonceBytes        = 16
	// readersPending bounds what waits in memory for readers who do not take it, all together:
	// beyond it the one that has most waiting is cut off.
	readersPending = 4 << 20
	stalledAfter   = 250 * time.Millisecond // without a write that ended
	stalledLook    = 100 * time.Millisecond
)

var errNotUser = errors.New("the credentials are no user's")

// Followed are the subjects that readers follow.
var Followed = []string{protocol.SubjectInventoryAll, protocol.SubjectEventsAll, "$KV." + protocol.FactsBucket + ".>", "$KV." + protocol.ServicesBucket + ".>"}

// ReaderPermissions are all that the reader of that name may do. docs/NATS.md has them as
// well, and a test holds the two together.
func ReaderPermissions(name string) *server.Permissions {
	var requests []string
	for _, bucket := range []string{protocol.FactsBucket, protocol.ServicesBucket} {
		stream := "KV_" + bucket
		requests = append(requests, "$JS.API.STREAM.INFO."+stream, "$JS.API.DIRECT.GET."+stream, "$JS.API.DIRECT.GET."+stream+".>")
	}
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: requests},
		Subscribe: &server.SubjectPermission{Allow: append(slices.Clone(Followed), protocol.UserInboxPrefix(name)+".>")},
	}
}

// Readers configures ServeReaders.
type Readers struct {
	TLS *tls.Config
	// User returns who has the private key to a public nkey at this moment; false:
	// nobody, or nobody any more.
	User func(key string) (name string, ok bool)
	// Changed begins to tell when User may answer otherwise; end ends that.
	Changed func() (changed <-chan struct{}, end func())
	// Refused hears of connections that showed credentials which open nothing.
	Refused func(from string)
}

// ServeReaders speaks NATS over TLS with users of role reader, who come from elsewhere, on
// l, which it closes, until ctx ends. The users' requests pass through the same
// filter as agents', because of reply subjects. Whoever User does not know any more is cut
// off at once.
func (s *Server) ServeReaders(ctx context.Context, l net.Listener, cfg Readers) error {
	defer l.Close()
	info, err := s.info()
	if err != nil {
		return fmt.Errorf("serve nats: %w", err)
	}
	inner, cancel := context.WithCancel(ctx)
	r := &readers{s: s, cfg: cfg, info: info, fanout: &fanout{s: s, to: map[*following]bool{}}}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { r.watch(inner) })
	wg.Go(func() { r.relieve(inner) })
	follows := make(chan struct{})
	wg.Go(func() { r.fanout.run(inner, sync.OnceFunc(func() { close(follows) })) })
	select {
	case <-follows:
	case <-ctx.Done():
		return nil
	}
	bounded := conns.New(l, maxUnknown, maxUnknownSource)
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	for {
		c, err := bounded.Accept()
		if err != nil {
			if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return nil
			}
			s.log.Warn().Err(err).Msg("nats connection not accepted") // too many files, most likely
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-ctx.Done():
				return nil
			}
		}
		wg.Go(func() { r.serve(inner, c.(*conns.Conn)) })
	}
}

// info asks the server how it introduces itself.
func (s *Server) info() (map[string]any, error) {
	c, err := s.ns.InProcessConn()
	if err != nil {
		return nil, err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(readerTimeout))
	line, err := readLine(bufio.NewReaderSize(c, maxLine))
	if err != nil {
		return nil, err
	}
	var m map[string]any
	if err := json.Unmarshal(bytes.TrimPrefix(line, []byte("INFO ")), &m); err != nil {
		return nil, err
	}
	for _, k := range []string{"client_id", "client_ip", "connect_urls", "host", "port", "git_commit", "go"} {
		delete(m, k)
	}
	m["tls_required"], m["tls_available"], m["auth_required"] = true, true, true
	return m, nil
}

type readers struct {
	s      *Server
	cfg    Readers
	info   map[string]any // without a nonce
	fanout *fanout

	mu   sync.Mutex
	open map[*reader]bool
}

// reader is a connection whose user is known.
type reader struct {
	name, key string
	end       func()
	client    uint64       // the server's number of it; 0: not connected to it yet. readers.mu guards it
	follow    *following   // as client; nil: he follows nothing by the fan-out
	stalled   atomic.Int64 // see rules
}

// serve has a connection to its end.
func (r *readers) serve(ctx context.Context, nc *conns.Conn) {
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	defer stop()
	nc.SetDeadline(time.Now().Add(readerTimeout))
	var raw [nonceBytes]byte
	rand.Read(raw[:]) // never fails
	nonce := base64.RawURLEncoding.EncodeToString(raw[:])
	info, err := json.Marshal(withNonce(r.info, nonce))
	if err != nil {
		return
	}
	if _, err := fmt.Fprintf(nc, "INFO %s\r\n", info); err != nil {
		return
	}
	t := tls.Server(nc, r.cfg.TLS)
	if t.HandshakeContext(ctx) != nil {
		return
	}
	defer t.Close()
	br := bufio.NewReaderSize(t, maxLine)
	line, err := readLine(br)
	if err != nil {
		return
	}
	connect := bytes.Clone(line)
	who, err := authenticate(connect, nonce, r.cfg.User)
	if err != nil {
		if r.cfg.Refused != nil {
			r.cfg.Refused(nc.RemoteAddr().String())
		}
		refuse(t, "Authorization Violation")
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Not the TLS connection: a writer that waits would keep it open.
	who.end = func() { cancel(); nc.NetConn().Close() }
	if !r.admit(who) {
		refuse(t, "maximum connections exceeded")
		return
	}
	defer r.leave(who)
	nc.Detach()
	nc.SetDeadline(time.Time{})
	if err := r.serveReader(ctx, cancel, t, br, connect, who); err != nil {
		r.s.log.Info().Err(err).Str("user", who.name).Msg("nats connection ended")
	}
}

// refuse tells a client why before the connection is closed. What it sent meanwhile is
// read, or the system would drop the answer.
func refuse(t *tls.Conn, why string) {
	fmt.Fprintf(t, "-ERR '%s'\r\n", why)
	t.CloseWrite()
	t.SetDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, t, 64<<10)
}

func withNonce(info map[string]any, nonce string) map[string]any {
	out := map[string]any{"nonce": nonce}
	for k, v := range info {
		out[k] = v
	}
	return out
}

// authenticate returns who signed the nonce. A CONNECT names the user's public key by a JWT or
// by itself. The JWT is no more than that: what counts is that the state has the key, and
// that the client has its private half.
func authenticate(line []byte, nonce string, user func(string) (string, bool)) (*reader, error) {
	op, arg, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
	if !ok || !bytes.EqualFold(op, []byte("CONNECT")) {
		return nil, fmt.Errorf("%w: it does not begin with CONNECT", ErrProtocol)
	}
	var o struct {
		JWT  string `json:"jwt"`
		NKey string `json:"nkey"`
		Sig  string `json:"sig"`
	}
	if err := json.Unmarshal(arg, &o); err != nil {
		return nil, fmt.Errorf("%w: CONNECT is no JSON", ErrProtocol)
	}
	key := o.NKey
	if o.JWT != "" {
		c, err := jwt.DecodeUserClaims(o.JWT)
		if err != nil {
			return nil, errNotUser
		}
		key = c.Subject
	}
	name, ok := user(key)
	if !ok {
		return nil, errNotUser
	}
	// Both alphabets, as the server takes them.
	sig, err := base64.RawURLEncoding.DecodeString(o.Sig)
	if err != nil {
		if sig, err = base64.StdEncoding.DecodeString(o.Sig); err != nil {
			return nil, errNotUser
		}
	}
	pub, err := nkeys.FromPublicKey(key)
	if err != nil || pub.Verify([]byte(nonce), sig) != nil {
		return nil, errNotUser
	}
	return &reader{name: name, key: key}, nil
}

// admit counts a connection, if there is room and its user still is one.
func (r *readers) admit(c *reader) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := 0
	for o := range r.open {
		if o.name == c.name {
			n++
		}
	}
	if n >= maxReaderUser || len(r.open) >= maxReaders {
		return false
	}
	if r.open == nil {
		r.open = map[*reader]bool{}
	}
	r.open[c] = true
	// In the map first: a revocation from now on finds it there.
	if _, ok := r.cfg.User(c.key); !ok {
		delete(r.open, c)
		return false
	}
	return true
}

func (r *readers) leave(c *reader) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.open, c)
}

// watch ends the connections of whoever is no user any more.
func (r *readers) watch(ctx context.Context) {
	changed, end := r.cfg.Changed()
	defer end()
	for {
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
		r.mu.Lock()
		for c := range r.open {
			if _, ok := r.cfg.User(c.key); !ok {
				c.end()
			}
		}
		r.mu.Unlock()
	}
}

// relieve cuts off readers who do not take what waits for them, when that is too much in all,
// until ctx ends.
func (r *readers) relieve(ctx context.Context) {
	t := time.NewTicker(stalledLook)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
		for _, b := range tooFar(r.behind(), readersPending) {
			r.cut(b.reader, b.bytes)
		}
	}
}

// cut ends the connection of a reader for whom so many bytes wait.
func (r *readers) cut(c *reader, bytes int) {
	r.s.refuse(RefusedSlow)
	r.s.log.Info().Str("user", c.name).Int("bytes", bytes).Msg("nats user does not read, cut off")
	c.end()
}

// backlog is what waits in memory for a reader who does not take it.
type backlog struct {
	reader *reader
	bytes  int
}

// behind returns the backlogs of those who take nothing.
func (r *readers) behind() (l []backlog) {
	type place struct {
		client uint64
		follow *following
	}
	stalled := map[*reader]place{}
	r.mu.Lock()
	for c := range r.open {
		if at := c.stalled.Load(); at != 0 && c.client != 0 && time.Since(time.Unix(0, at)) > stalledAfter {
			stalled[c] = place{c.client, c.follow}
		}
	}
	r.mu.Unlock()
	for c, p := range stalled {
		if z, err := r.s.ns.Connz(&server.ConnzOptions{CID: p.client}); err == nil && len(z.Conns) == 1 {
			l = append(l, backlog{c, z.Conns[0].Pending + p.follow.behind()})
		}
	}
	return l
}

// tooFar returns the largest of l, so many that what the others have is no more than most.
func tooFar(l []backlog, most int) []backlog {
	slices.SortFunc(l, func(a, b backlog) int { return cmp.Compare(b.bytes, a.bytes) })
	sum := 0
	for _, b := range l {
		sum += b.bytes
	}
	n := 0
	for ; sum > most; n++ {
		sum -= l[n].bytes
	}
	return l[:n]
}

// serveReader passes on between a client whose CONNECT was read and the server.
func (r *readers) serveReader(ctx context.Context, cancel func(), conn net.Conn, br *bufio.Reader, connect []byte, who *reader) error {
	s := r.s
	cred, err := s.open(session{accountAgents, ReaderPermissions(who.name)})
	if err != nil {
		return err
	}
	defer s.drop(cred)
	srv, err := s.ns.InProcessConn()
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer srv.Close()
	down := bufio.NewReaderSize(srv, maxDownLine)
	srv.SetReadDeadline(time.Now().Add(readerTimeout))
	greeting, err := readLine(down) // its INFO, which the client had already
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	srv.SetReadDeadline(time.Time{})
	var info struct {
		Client uint64 `json:"client_id"`
	}
	if err := json.Unmarshal(bytes.TrimPrefix(greeting, []byte("INFO ")), &info); err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	inbox := protocol.UserInboxPrefix(who.name) + "."
	follow := newFollowing(inbox, connect, who.end, func() { r.cut(who, maxPending) })
	if follow != nil {
		if !r.fanout.add(follow) {
			return errors.New("nothing can be followed now")
		}
		defer r.fanout.remove(follow)
	}
	r.mu.Lock()
	who.client, who.follow = info.Client, follow
	r.mu.Unlock()
	line, err := rewriteConnect(connect, cred, "user "+who.name)
	if err != nil {
		return err
	}
	limit := rate.NewLimiter(readerLines, readerLinesAtOnce)
	err = relay(ctx, cancel, conn, br, srv, down, func() ([]byte, error) { return line, nil },
		rules{inbox: inbox, maxPayload: maxReaderRequest, refused: s.refuse, stalled: &who.stalled, follow: follow,
			next: func(int) error { return limit.Wait(ctx) }})
	if errors.Is(err, ErrProtocol) {
		s.refuse(RefusedLine)
	}
	return err
}
