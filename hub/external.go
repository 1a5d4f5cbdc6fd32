package hub

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rs/zerolog"

	"causeway/hub/facts/event"
	"causeway/hub/fleet"
	"causeway/hub/state"
	"causeway/protocol"
)

const (
	natsTimeout   = 5 * time.Second
	natsReconnect = 200 * time.Millisecond
	// A server that is silent so long is given up for the next one.
	natsPing     = 3 * time.Second
	natsPingsOut = 2
	// natsLook is how often the cluster is asked whether it takes anything.
	natsLook = time.Second
	// natsStart is how long a cluster may take to have a majority when the hub starts.
	natsStart = 30 * time.Second
	// clusterReplicas is what a cluster keeps of each stream unless an operator says otherwise.
	clusterReplicas = 3
	maxCredsFile    = 64 << 10
)

// checkNATSURL checks a list of NATS servers. Passwords belong into the
// credentials file: a command line is read by everybody on the host.
func checkNATSURL(list string) error {
	if list == "" {
		return nil
	}
	for _, s := range strings.Split(list, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		switch {
		case err != nil || u.Host == "" || u.Scheme != "nats" && u.Scheme != "tls":
			return errors.New("nats-url: give tls://HOST:PORT or nats://HOST:PORT, several separated by commas")
		case u.User != nil:
			return errors.New("nats-url: give no user or password in it; name a file of credentials with --nats-creds")
		}
	}
	return nil
}

// checkCreds checks a file of credentials without keeping what is in it.
func checkCreds(path string) error {
	fi, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("nats-creds: there is no file %s", path)
	case err != nil:
		return fmt.Errorf("nats-creds: %w", err)
	case !fi.Mode().IsRegular():
		return fmt.Errorf("nats-creds: %s is no file", path)
	case fi.Mode().Perm()&0o037 != 0:
		return fmt.Errorf("nats-creds: %s holds a secret, but others may read or change it (mode %#o); chmod 600 it", path, fi.Mode().Perm())
	case fi.Size() > maxCredsFile:
		return fmt.Errorf("nats-creds: %s is too large for a file of credentials", path)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("nats-creds: %w", err)
	}
	defer clear(b)
	for _, part := range []string{"BEGIN NATS USER JWT", "BEGIN USER NKEY SEED"} {
		if !strings.Contains(string(b), part) {
			return fmt.Errorf("nats-creds: %s is no file of NATS credentials: it has no %q; 'nsc generate creds' makes one", path, part)
		}
	}
	return nil
}

// external is the NATS cluster that holds log and inventory in place of the
// server inside the hub. Its connection comes back by itself for as long as the
// hub runs. Its methods may be called concurrently.
type external struct {
	conn   *nats.Conn
	js     jetstream.JetStream // makes every stream and bucket replicated
	events *event.Log
	log    zerolog.Logger

	replicas int
	stream   jetstream.Stream // watch's own: the state log; nil: not looked up yet

	mu    sync.Mutex
	since time.Time // of the present condition
	cause string    // why nothing can be stored; empty: it can
}

// openExternal connects, and waits until the cluster answers.
func openExternal(ctx context.Context, cfg Config, events *event.Log) (*external, error) {
	log := cfg.Log
	warnPlain(cfg.NATSURL, log)
	e := &external{events: events, log: log, since: time.Now().UTC()}
	opts := []nats.Option{
		nats.Name("causeway-hub"), nats.Timeout(natsTimeout), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(), nats.IgnoreDiscoveredServers(),
		nats.ReconnectWait(natsReconnect), nats.ReconnectJitter(natsReconnect, natsReconnect), nats.PingInterval(natsPing), nats.MaxPingsOutstanding(natsPingsOut),
		// A transaction belongs to the moment: none is kept to be sent after an outage.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Warn().Err(err).Msg("external nats server lost, connecting again") }),
		nats.ReconnectHandler(func(c *nats.Conn) {
			log.Info().Str("addr", c.ConnectedAddr()).Msg("connected to external nats again")
		}),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn().Err(err).Msg("external nats") }),
	}
	if cfg.NATSCreds != "" {
		if err := checkCreds(cfg.NATSCreds); err != nil {
			return nil, err
		}
		opts = append(opts, nats.UserCredentials(cfg.NATSCreds))
	}
	if strings.Contains(cfg.NATSURL, "tls://") || cfg.NATSCA != "" {
		opts = append(opts, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS12}))
	}
	if cfg.NATSCA != "" {
		opts = append(opts, nats.RootCAs(cfg.NATSCA))
	}
	var err error
	if e.conn, err = nats.Connect(cfg.NATSURL, opts...); err != nil {
		return nil, fmt.Errorf("nats-url: cannot reach %s: %w; check that a NATS server with JetStream runs there and takes the credentials of --nats-creds", cfg.NATSURL, err)
	}
	e.replicas = cfg.NATSReplicas
	if e.replicas == 0 {
		e.replicas = 1
		if e.conn.ConnectedClusterName() != "" {
			e.replicas = clusterReplicas
		}
	}
	if e.replicas == 1 {
		log.Warn().Msg("the external nats keeps each stream on one server alone; with a cluster of three the hub keeps three replicas")
	}
	js, err := jetstream.New(e.conn)
	if err == nil {
		e.js = replicated{js, e.replicas}
		err = e.awaitMajority(ctx)
	}
	if err != nil {
		e.conn.Close()
		return nil, err
	}
	return e, nil
}

// awaitMajority waits until JetStream answers.
func (e *external) awaitMajority(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, natsStart)
	defer cancel()
	for {
		actx, done := context.WithTimeout(ctx, natsTimeout)
		_, err := e.js.AccountInfo(actx)
		done()
		var api *jetstream.APIError
		switch {
		case err == nil:
			return nil
		case errors.Is(err, jetstream.ErrJetStreamNotEnabledForAccount), errors.As(err, &api) && api.Code != 503 && api.Code != 500:
			return fmt.Errorf("nats-url: JetStream does not answer: %w; it has to be enabled for the account of --nats-creds", err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("nats-url: JetStream does not answer: %w; have most servers of the cluster been started, and is JetStream enabled on them?", err)
		case <-time.After(natsReconnect):
		}
	}
}

// explain words why a stream could not be opened.
func (e *external) explain(err error) error {
	const noPeers = 10005
	var api *jetstream.APIError
	if e != nil && errors.As(err, &api) && api.ErrorCode == noPeers {
		return fmt.Errorf("%w; %d replicas need so many servers with JetStream and room: start them, or say --nats-replicas 1", err, e.replicas)
	}
	return err
}

// raise gives a stream that was made with fewer replicas the number that is wanted.
func (e *external) raise(ctx context.Context, name string) error {
	s, err := e.js.Stream(ctx, name)
	if err != nil {
		return err
	}
	c := s.CachedInfo().Config
	if c.Replicas >= e.replicas {
		return nil
	}
	if _, err := e.js.UpdateStream(ctx, c); err != nil {
		return fmt.Errorf("keep %d replicas of %s: %w", e.replicas, name, e.explain(err))
	}
	e.log.Info().Str("stream", name).Int("replicas", e.replicas).Msg("replicas raised")
	return nil
}

// watch notes whether the cluster takes anything, until ctx ends.
func (e *external) watch(ctx context.Context) error {
	t := time.NewTicker(natsLook)
	defer t.Stop()
	failed := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		cause := e.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil
		case cause == "":
			failed = 0
			e.set("")
		default:
			// An election is no outage, and changes wait for it.
			if failed++; failed > 2 || !e.conn.IsConnected() {
				e.set(cause)
			}
		}
	}
}

// tellOthers tells the other hubs on the log what nodes announce to this one, and hears them, until ctx ends.
func (e *external) tellOthers(ctx context.Context, c *fleet.Table) error {
	sub, err := e.conn.Subscribe(fleet.ElsewhereSubject, func(m *nats.Msg) { c.HearOther(m.Data) })
	if err != nil {
		return fmt.Errorf("hear other hubs: %w", err)
	}
	defer sub.Unsubscribe()
	t := time.NewTicker(fleet.ElsewhereEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		for _, b := range c.TellOthers() {
			if e.conn.Publish(fleet.ElsewhereSubject, b) != nil {
				break // away, as watch says; the next time tells all anew
			}
		}
	}
}

// look asks for the state log's leader.
func (e *external) look(ctx context.Context) string {
	if !e.conn.IsConnected() {
		return "no server of --nats-url answers"
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if e.stream == nil {
		s, err := e.js.Stream(ctx, state.StreamName)
		if err != nil {
			return noMajority(err)
		}
		e.stream = s
	}
	if _, err := e.stream.GetMsg(ctx, 1); err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) { // its leader alone answers that
		return noMajority(err)
	}
	return ""
}

func noMajority(err error) string {
	return "the state log has no leader, most of its replicas are away: " + err.Error()
}

func (e *external) set(cause string) {
	e.mu.Lock()
	was := e.cause
	if (was == "") != (cause == "") {
		e.since = time.Now().UTC()
	}
	e.cause = cause
	e.mu.Unlock()
	switch {
	case was == "" && cause != "":
		e.events.Add(event.NATSAway, "", cause)
		e.log.Error().Str("cause", cause).Msg("external nats is away: no change is taken; agents go on")
	case was != "" && cause == "":
		e.events.Add(event.NATSBack, "", "the external NATS takes changes again")
		e.log.Info().Msg("external nats is back, changes are taken")
	}
}

// away returns why nothing can be decided now, or nil.
func (e *external) away() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cause == "" {
		return nil
	}
	return &state.AwayError{Since: e.since, Cause: e.cause}
}

// condition is what status shows.
func (e *external) condition() protocol.Condition {
	e.mu.Lock()
	defer e.mu.Unlock()
	return protocol.Condition{Name: "nats", OK: e.cause == "", Since: e.since, Cause: e.cause}
}

// replicated makes every stream and bucket with n replicas. A stream that is changed keeps those that it has
// beyond: an operator may have raised it.
type replicated struct {
	jetstream.JetStream
	n int
}

func (r replicated) CreateStream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	c.Replicas = r.n
	return r.JetStream.CreateStream(ctx, c)
}

func (r replicated) UpdateStream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	c.Replicas = max(c.Replicas, r.n)
	return r.JetStream.UpdateStream(ctx, c)
}

func (r replicated) CreateOrUpdateStream(ctx context.Context, c jetstream.StreamConfig) (jetstream.Stream, error) {
	c.Replicas = r.n
	return r.JetStream.CreateOrUpdateStream(ctx, c)
}

func (r replicated) CreateKeyValue(ctx context.Context, c jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	c.Replicas = r.n
	return r.JetStream.CreateKeyValue(ctx, c)
}

func (r replicated) UpdateKeyValue(ctx context.Context, c jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	c.Replicas = r.n
	return r.JetStream.UpdateKeyValue(ctx, c)
}

func (r replicated) CreateOrUpdateKeyValue(ctx context.Context, c jetstream.KeyValueConfig) (jetstream.KeyValue, error) {
	c.Replicas = r.n
	return r.JetStream.CreateOrUpdateKeyValue(ctx, c)
}

func (r replicated) CreateOrUpdateObjectStore(ctx context.Context, c jetstream.ObjectStoreConfig) (jetstream.ObjectStore, error) {
	c.Replicas = r.n
	return r.JetStream.CreateOrUpdateObjectStore(ctx, c)
}

// warnPlain says so where transactions would cross a network in the clear.
func warnPlain(urls string, log zerolog.Logger) {
	for _, s := range strings.Split(urls, ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil || u.Scheme == "tls" {
			continue
		}
		host := u.Hostname()
		if a, err := netip.ParseAddr(host); err == nil && a.IsLoopback() || host == "localhost" {
			continue
		}
		log.Warn().Str("addr", net.JoinHostPort(host, u.Port())).Msg("external nats may be without TLS; use tls:// unless the network between is trusted")
	}
}
