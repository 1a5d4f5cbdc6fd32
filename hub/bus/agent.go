package bus

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"causeway/protocol"
)

// Limits of what an agent may send.
const (
	maxLine        = 4096             // of a protocol line, as the server's own limit
	connectTimeout = 30 * time.Second // for the first line
	writeTimeout   = 10 * time.Second // as the server's own
	downBuffer     = 2048             // an agent hears acknowledgements and little else; each has one
)

// ErrProtocol wraps what an agent may not say on a nats stream; it ends the
// stream.
var ErrProtocol = errors.New("nats stream")

// agentPermissions are all that node n of site may do: publish its own facts, incidents, switches and flows,
// listen on its own inboxes and hear that a snapshot is wanted.
func agentPermissions(site string, n protocol.NodeNumber) *server.Permissions {
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: agentSubjects(site, n)},
		Subscribe: &server.SubjectPermission{Allow: []string{protocol.InboxPrefix(n) + ".>", protocol.AskSubject(n)}},
	}
}

// ServeAgent speaks NATS with the agent at the other end of conn as node n of
// site, until either side ends or ctx does. It closes conn. The agent's credentials, if it
// sends any, are replaced; those made for this session are dropped at its end. What it sends
// is taken from the node's budget, which all its streams share.
func (s *Server) ServeAgent(ctx context.Context, conn net.Conn, site string, n protocol.NodeNumber) error {
	defer conn.Close()
	if !protocol.ValidName(site) || !n.Valid() {
		return fmt.Errorf("%w: no valid site and number", ErrProtocol)
	}
	cred, err := s.open(session{accountAgents, agentPermissions(site, n)})
	if err != nil {
		return err
	}
	defer s.drop(cred)
	srv, err := s.ns.InProcessConn()
	if err != nil {
		return fmt.Errorf("connect to nats: %w", err)
	}
	defer srv.Close()
	purse, leave := s.enter(n, func() { srv.Close(); conn.Close() })
	defer leave()
	br := bufio.NewReaderSize(conn, maxLine)
	connect := func() ([]byte, error) {
		conn.SetReadDeadline(time.Now().Add(connectTimeout))
		line, err := readLine(br)
		if err != nil {
			return nil, err
		}
		conn.SetReadDeadline(time.Time{})
		return rewriteConnect(line, cred, fmt.Sprintf("node %d", n))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r := rules{inbox: protocol.InboxPrefix(n) + ".", maxPayload: maxPayload, space: s.space, publish: agentSubjects(site, n), subs: &subscriptions{protocol.InboxPrefix(n) + ".", protocol.AskSubject(n), map[string]bool{}}, refused: s.refuse,
		next: func(n int) error { return purse.pay(ctx, n) }}
	err = relay(ctx, cancel, conn, br, srv, srv, connect, r)
	if errors.Is(err, ErrProtocol) {
		s.refuse(RefusedLine)
	}
	return err
}

func (s *Server) refuse(reason string) { s.refused.WithLabelValues(reason).Inc() }

// rules are what filter holds a client to.
type rules struct {
	inbox      string // with which reply subjects have to begin
	maxPayload uint64
	// space returns why nothing may be stored now: publishes are dropped then. Not
	// acknowledged, they come again.
	space func() error
	// next returns when another line of n bytes, its payload included, may be read on and
	// passed on.
	next func(n int) error
	// publish are the subjects that may be published to; nil: the server's permissions
	// say it. What is for another goes no further than here: the server is shown an empty
	// message, so that it is the one to refuse it.
	publish []string
	subs    *subscriptions // nil: not counted
	refused func(reason string)
	// stalled is set to the time at which a write to the client began, and to 0 when it has
	// ended; nil: nobody asks.
	stalled *atomic.Int64
	// follow has the lines of a reader who follows by the fan-out; nil: the server has all.
	follow *following
}

// relay passes on between client and server, until either ends or ctx does: to the server what
// connect returns, then what the rules let through of up, to the client all of down. It
// closes both, calls cancel, which ends ctx, and returns what the client did against the rules.
func relay(ctx context.Context, cancel func(), client net.Conn, up *bufio.Reader, srv net.Conn, down io.Reader, connect func() ([]byte, error), r rules) error {
	stop := context.AfterFunc(ctx, func() { srv.Close(); client.Close() })
	defer stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		var err error
		to := deadlineWriter{client, r.stalled}
		if b, ok := down.(*bufio.Reader); ok && r.follow != nil {
			err = r.follow.pump(ctx, cancel, to, b)
		} else {
			_, err = io.CopyBuffer(to, onlyReader{down}, make([]byte, downBuffer))
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			r.refused(RefusedSlow)
		}
		cancel() // ends the filter below, also while it waits
		client.Close()
	}()
	line, err := connect()
	if err == nil {
		_, err = srv.Write(line)
	}
	if err == nil {
		err = filter(srv, up, r)
	}
	srv.Close()
	client.Close()
	<-done
	if errors.Is(err, ErrProtocol) {
		return err
	}
	return nil
}

// onlyReader hides a WriteTo, which would not use the buffer.
type onlyReader struct{ io.Reader }

// deadlineWriter gives each write its time: a client that does not read is cut off.
type deadlineWriter struct {
	net.Conn
	since *atomic.Int64 // when the write began that goes on; nil: nobody asks
}

func (w deadlineWriter) Write(b []byte) (int, error) {
	now := time.Now()
	w.SetWriteDeadline(now.Add(writeTimeout))
	if w.since != nil {
		w.since.Store(now.UnixNano())
		defer w.since.Store(0)
	}
	return w.Conn.Write(b)
}

// filter copies the NATS protocol of a client, after its CONNECT, from br to w: PUB, HPUB,
// SUB, UNSUB, PING and PONG. The server's permissions cover subjects but not the reply
// subject of a publish, to which JetStream would answer with its own rights; so a
// reply has to begin with the inbox.
func filter(w io.Writer, br *bufio.Reader, r rules) error {
	for {
		line, err := readLine(br)
		if err != nil {
			return err
		}
		f := words(line)
		payload, err := checkLine(f, r.inbox, r.maxPayload)
		if err != nil {
			return err
		}
		if r.subs != nil && len(f) > 0 {
			if err := r.subs.note(f); err != nil {
				r.refused(RefusedSubs)
				return err
			}
		}
		// The line lies in br's buffer: what is read on moves it, waiting does not.
		if err := r.next(len(line) + int(payload)); err != nil {
			return err
		}
		pass := payload == 0 || r.space == nil || r.space() == nil
		if payload > 0 && r.publish != nil && !slices.Contains(r.publish, f[1]) {
			r.refused(RefusedSubject)
			if _, err := fmt.Fprintf(w, "PUB %s 0\r\n\r\n", f[1]); err != nil {
				return err
			}
			pass = false
		} else if pass {
			if r.follow != nil {
				line = r.follow.take(f, line)
			}
			if len(line) > 0 {
				if _, err := w.Write(line); err != nil {
					return err
				}
			}
		}
		to := w
		if !pass {
			to = io.Discard
		}
		if _, err := io.CopyN(to, br, payload); err != nil {
			return err
		}
	}
}

// readLine returns the next line with its end. It is valid until the next read.
func readLine(br *bufio.Reader) ([]byte, error) {
	line, err := br.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		return nil, fmt.Errorf("%w: line longer than %d bytes", ErrProtocol, maxLine)
	}
	return line, err
}

// words are those of a line, by the same separators as the server's: what it takes for one word
// we do too. The operation is in capitals.
func words(line []byte) []string {
	f := strings.FieldsFunc(string(line), func(r rune) bool { return r == ' ' || r == '\t' || r == '\r' || r == '\n' })
	if len(f) > 0 {
		f[0] = strings.ToUpper(f[0])
	}
	return f
}

// checkLine returns how many bytes of payload, with its end of line, follow.
func checkLine(f []string, inbox string, maxPayload uint64) (payload int64, err error) {
	if len(f) == 0 {
		return 0, nil
	}
	op, counts := f[0], 1
	switch op {
	case "PING", "PONG", "SUB", "UNSUB":
		return 0, nil
	case "HPUB":
		counts = 2
	case "PUB":
	default:
		return 0, fmt.Errorf("%w: operation %.20q is not for clients", ErrProtocol, op)
	}
	// PUB subject [reply] size, HPUB subject [reply] header-size total-size
	switch len(f) - counts {
	case 2:
	case 3:
		if !strings.HasPrefix(f[2], inbox) {
			return 0, fmt.Errorf("%w: reply subject %.80q is not below %s", ErrProtocol, f[2], inbox)
		}
	default:
		return 0, fmt.Errorf("%w: malformed %s", ErrProtocol, op)
	}
	n, err := strconv.ParseUint(f[len(f)-1], 10, 31)
	if err != nil || n > maxPayload {
		return 0, fmt.Errorf("%w: payload size %.20q, at most %d", ErrProtocol, f[len(f)-1], maxPayload)
	}
	return int64(n) + 2, nil
}

// connectOptions are those of CONNECT that are a client's to choose. Anything else,
// credentials first, is left out.
type connectOptions struct {
	Verbose      bool   `json:"verbose"`
	Pedantic     bool   `json:"pedantic"`
	Name         string `json:"name,omitempty"`
	Lang         string `json:"lang,omitempty"`
	Version      string `json:"version,omitempty"`
	Protocol     int    `json:"protocol"`
	Echo         *bool  `json:"echo,omitempty"`
	Headers      bool   `json:"headers"`
	NoResponders bool   `json:"no_responders"`
	Token        string `json:"auth_token"`
}

// rewriteConnect returns the CONNECT line with cred for credentials, and with who, for the
// server's log, before the name that the client gives itself.
func rewriteConnect(line []byte, cred credential, who string) ([]byte, error) {
	op, arg, ok := bytes.Cut(bytes.TrimRight(line, "\r\n"), []byte(" "))
	if !ok || !bytes.EqualFold(op, []byte("CONNECT")) {
		return nil, fmt.Errorf("%w: it does not begin with CONNECT", ErrProtocol)
	}
	var o connectOptions
	if err := json.Unmarshal(arg, &o); err != nil {
		return nil, fmt.Errorf("%w: CONNECT is no JSON", ErrProtocol)
	}
	o.Token, o.Name = string(cred), who+": "+o.Name
	b, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	return append(append([]byte("CONNECT "), b...), '\r', '\n'), nil
}
