package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/rs/zerolog"
)

const (
	natsTimeout   = 5 * time.Second
	natsReconnect = 200 * time.Millisecond
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

// openStateConn connects to the external NATS servers that hold the state log.
// The connection comes back by itself for as long as the hub runs.
func openStateConn(ctx context.Context, urls, creds string, log zerolog.Logger) (*nats.Conn, error) {
	warnPlain(urls, log)
	opts := []nats.Option{
		nats.Name("causeway-hub state"), nats.Timeout(natsTimeout), nats.MaxReconnects(-1), nats.IgnoreAuthErrorAbort(),
		nats.ReconnectWait(natsReconnect), nats.ReconnectJitter(natsReconnect, natsReconnect),
		// A transaction belongs to the moment: none is kept to be sent after an outage.
		nats.ReconnectBufSize(-1),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { log.Warn().Err(err).Msg("state log's nats lost, connecting again") }),
		nats.ReconnectHandler(func(c *nats.Conn) { log.Info().Str("addr", c.ConnectedAddr()).Msg("state log's nats is back") }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { log.Warn().Err(err).Msg("state log's nats") }),
	}
	if creds != "" {
		if _, err := os.Stat(creds); err != nil {
			return nil, fmt.Errorf("nats-creds: %w", err)
		}
		opts = append(opts, nats.UserCredentials(creds))
	}
	nc, err := nats.Connect(urls, opts...)
	if err != nil {
		return nil, fmt.Errorf("nats-url: cannot reach %s: %w; check that a NATS server with JetStream runs there and takes the credentials of --nats-creds", urls, err)
	}
	return nc, ctx.Err()
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
		log.Warn().Str("addr", net.JoinHostPort(host, u.Port())).Msg("the state log's nats may be without TLS; use tls:// unless the network between is trusted")
	}
}
