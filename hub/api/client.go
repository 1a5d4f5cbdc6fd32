package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"causeway/internal/retry"
	"causeway/protocol"
)

// DefaultSocket is where a hub serves its admin API on its own host.
const DefaultSocket = "/run/causeway/hub.sock"

// Limits of Client, so that neither a stuck nor a wrong server can hold or
// fill a caller.
const (
	// DefaultTimeout bounds one request from dial to the last byte.
	DefaultTimeout = 15 * time.Second
	// MaxRequest bounds the body of a request.
	MaxRequest = 1 << 20
	// MaxResponse bounds the body of an answer.
	MaxResponse = 64 << 20
	// A request that is answered with 'come again' is sent again, at these pauses or as it is
	// told, for so long.
	againFirst, againMost, againWithin = 200 * time.Millisecond, 2 * time.Second, 10 * time.Second
	// maxProblem bounds the body of an error answer.
	maxProblem = 64 << 10
)

// Errors that callers tell apart.
var (
	// ErrNoHub says that nothing answers where the hub was expected.
	ErrNoHub = errors.New("no hub")
	// ErrCut says that a connection ended before the answer did.
	ErrCut = errors.New("the connection was cut")
	// ErrNotFound is matched by an Error of status 404.
	ErrNotFound = errors.New("not found")
	// ErrStale is matched by an Error of status 412: what was to be changed is no
	// longer as IfMatch says.
	ErrStale = errors.New("changed meanwhile")
)

// Error is the hub's answer to a request that it refused: an RFC 9457 problem
// document.
type Error struct {
	Status int         `json:"status"`
	Title  string      `json:"title"`
	Detail string      `json:"detail"`
	Parts  []ErrorPart `json:"errors"`
}

// ErrorPart is one of several things wrong with a request.
type ErrorPart struct {
	Message  string `json:"message"`
	Location string `json:"location"`
}

// Error is the problem in one line.
func (e *Error) Error() string {
	s := e.Detail
	if s == "" {
		s = strings.ToLower(e.Title)
	}
	for i, p := range e.Parts {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		s += sep + p.Message
		if p.Location != "" {
			s += " (" + p.Location + ")"
		}
	}
	if s == "" {
		s = "status " + strconv.Itoa(e.Status)
	}
	return oneLine(s)
}

// Is makes errors.Is work with ErrNotFound and ErrStale.
func (e *Error) Is(target error) bool {
	return target == ErrNotFound && e.Status == http.StatusNotFound || target == ErrStale && e.Status == http.StatusPreconditionFailed
}

// oneLine keeps what a server sent from breaking lines or a terminal.
func oneLine(s string) string { return protocol.Printable(strings.TrimSpace(s)) }

// ClientConfig says how a hub is reached. The zero value means DefaultSocket.
type ClientConfig struct {
	// Socket is the path of the hub's unix socket; empty means DefaultSocket.
	// It is not used when Context or Transport is set.
	Socket string
	// Context reaches a hub elsewhere; nil: this host's.
	Context *Context
	// Transport reaches the hub in another way; with it goes BaseURL, for
	// example https://hub.example.net:8443.
	Transport http.RoundTripper
	BaseURL   string
	// Timeout bounds each request; zero means DefaultTimeout.
	Timeout time.Duration
}

// Client calls a hub's admin API. Its methods may be called concurrently.
type Client struct {
	cfg  ClientConfig
	http *http.Client
}

// NewClient checks cfg. It opens nothing; the first call dials.
func NewClient(cfg ClientConfig) (*Client, error) {
	if cfg.Timeout == 0 {
		cfg.Timeout = DefaultTimeout
	}
	if c := cfg.Context; c != nil {
		if now := time.Now(); !now.Before(c.Expires) {
			return nil, fmt.Errorf("the certificate of admin %s expired on %s; have another made on the hub's host with 'causeway admin create'", c.Admin, c.Expires.Local().Format("2006-01-02 15:04"))
		}
		cfg.Transport, cfg.BaseURL = c.transport(), "https://"+HubName
	}
	if cfg.Transport != nil {
		if u, err := url.Parse(cfg.BaseURL); err != nil || u.Host == "" {
			return nil, fmt.Errorf("base URL %q names no host", cfg.BaseURL)
		}
		cfg.BaseURL = strings.TrimSuffix(cfg.BaseURL, "/")
	} else {
		if cfg.Socket == "" {
			cfg.Socket = DefaultSocket
		}
		var d net.Dialer
		cfg.BaseURL = "http://" + HubName // the name stands in the Host header alone
		cfg.Transport = &http.Transport{
			DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return d.DialContext(ctx, "unix", cfg.Socket)
			},
			MaxIdleConns:    2,
			IdleConnTimeout: 30 * time.Second,
		}
	}
	return &Client{cfg, &http.Client{Transport: cfg.Transport}}, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// do sends one request with the JSON of in (nil: no body) and reads the answer
// into out (nil: ignored).
func (c *Client) do(ctx context.Context, method, path string, in, out any, o ...Option) error {
	return c.doWithin(ctx, c.cfg.Timeout, method, path, in, out, o...)
}

func (c *Client) doWithin(ctx context.Context, timeout time.Duration, method, path string, in, out any, o ...Option) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.cfg.BaseURL+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Accept", "application/json, application/problem+json")
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, f := range o {
		f(req.Header)
	}
	res, err := c.success(req, timeout)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if out == nil {
		return nil
	}
	if res.ContentLength > MaxResponse {
		return fmt.Errorf("answer of the hub is %d bytes long, more than %d", res.ContentLength, MaxResponse)
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, MaxResponse+1))
	if err != nil {
		return c.explain(err, timeout)
	}
	if len(b) > MaxResponse {
		return fmt.Errorf("answer of the hub is longer than %d bytes", MaxResponse)
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("read the hub's answer to %s %s: %w", method, path, err)
	}
	return nil
}

// success sends a request and returns the answer of one that succeeded, with its
// body for the caller to close. timeout is what an error names.
func (c *Client) success(req *http.Request, timeout time.Duration) (*http.Response, error) {
	pause := retry.Backoff{First: againFirst, Most: againMost}
	for begun := time.Now(); ; {
		res, err := c.http.Do(req)
		if err != nil {
			return nil, c.explain(err, timeout)
		}
		if res.StatusCode/100 == 2 {
			return res, nil
		}
		wait := pause.Next(retry.After(res.Header, time.Now()))
		if !comeAgain(req, res) || time.Since(begun)+wait > againWithin {
			defer res.Body.Close()
			return nil, readProblem(res)
		}
		res.Body.Close()
		if req.GetBody != nil {
			if req.Body, err = req.GetBody(); err != nil {
				return nil, err
			}
		}
		select {
		case <-req.Context().Done():
			return nil, c.explain(req.Context().Err(), timeout)
		case <-time.After(wait):
		}
	}
}

// comeAgain reports whether an answer says that the same request will be answered soon, and
// that nothing was done: that there are too many, or what only looks finds the hub away behind a proxy.
func comeAgain(req *http.Request, res *http.Response) bool {
	if res.Header.Get("Retry-After") == "" || !retry.Status(res.StatusCode) {
		return false
	}
	return res.StatusCode == http.StatusTooManyRequests || req.Method == http.MethodGet
}

// readProblem makes an Error of any answer that is not a success.
func readProblem(res *http.Response) error {
	e := &Error{Status: res.StatusCode, Title: http.StatusText(res.StatusCode)}
	b, _ := io.ReadAll(io.LimitReader(res.Body, maxProblem))
	switch kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); kind {
	case "application/problem+json", "application/json":
		if json.Unmarshal(b, e) != nil {
			*e = Error{Title: http.StatusText(res.StatusCode)}
		}
		e.Status = res.StatusCode
	case "text/plain":
		e.Detail = string(b[:min(len(b), 300)])
	}
	return e
}

// explain turns an error of the transport into what a person can act on.
func (c *Client) explain(err error, timeout time.Duration) error {
	var ue *url.Error
	looks := false // what changes nothing was asked
	if errors.As(err, &ue) {
		err, looks = ue.Err, ue.Op == "Get" // drops the made-up URL
	}
	where := c.cfg.Socket
	switch {
	case c.cfg.Context != nil:
		where = c.cfg.Context.Hub
		if e := c.cfg.Context.explain(err); e != nil {
			return e
		}
	case where == "":
		where = c.cfg.BaseURL
	}
	switch {
	case errors.Is(err, context.Canceled):
		return err
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("the hub at %s did not answer within %s", where, timeout)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		why := "it stopped or was restarted"
		if c.cfg.Context != nil {
			switch e := c.cfg.Context.refusal(); {
			case e != nil && looks:
				return e
			case e != nil:
				return fmt.Errorf("%w; it ended the connection before it answered: what was asked may be done or not", e)
			}
			why += ", or you are no admin any more"
		}
		return fmt.Errorf("reach the hub at %s: %w before it answered: %s; what was asked may be done or not: look, then try again", where, ErrCut, why)
	case c.cfg.Socket == "":
		return fmt.Errorf("reach the hub at %s: %w", where, err)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("%w at %s: is causeway-hub running on this host? (use --socket)", ErrNoHub, where)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w at %s: the socket is there, but causeway-hub does not run", ErrNoHub, where)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("open %s: permission denied: run as root or as the user of causeway-hub", where)
	case errors.Is(err, syscall.EINVAL):
		return fmt.Errorf("socket path %s is too long: unix sockets allow 107 characters", where)
	}
	return fmt.Errorf("reach the hub at %s: %w", where, err)
}
