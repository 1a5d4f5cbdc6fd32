package join

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"time"

	"github.com/flynn/noise"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/rs/zerolog"

	"causeway/hub/conns"
	"causeway/hub/facts/event"
	"causeway/hub/failpoint"
	"causeway/hub/state"
	"causeway/protocol"
	"causeway/tunnel/underlay/stream"
)

// Limits of the HTTPS server, beside those of the door.
const (
	readTimeout     = 10 * time.Second
	writeTimeout    = 30 * time.Second
	redeemTimeout   = 20 * time.Second
	maxAgentVersion = 64
	// Connections that are no streams: nobody needs one for longer than a request. A
	// source may be a load balancer, with many agents behind it.
	maxConns          = 4096
	maxConnsPerSource = 1024
)

// Config configures a Server.
type Config struct {
	Dir    string // for the certificate
	Keys   Keys
	Store  *state.Store
	Events *event.Log
	// Streams takes the requests for streams; nil: there are none.
	Streams http.Handler
	// SourceRate is how many requests one source may send in a second; 0: DefaultSourceRate.
	// Hosts behind one NAT or load balancer are one source.
	SourceRate int
	// Heard waits, soon after the hub's start, until its nodes have said what they know of the
	// state: a number is given away after that. Its error is why none is; nil: nobody is asked.
	Heard func(context.Context) error
	// Witness takes a mark that whoever asks for the hub list shows, and fails if it is not this
	// cluster's; nil: nobody looks at it.
	Witness func(context.Context, protocol.StateMark) error
	// Stray hears of a host that asks with the identity of this node, by which it gets no
	// session: it has a key that was rotated out, or the node is gone. nil: nobody does.
	Stray func(n state.Node, a protocol.NodeAsk, from netip.Addr)
	Log   zerolog.Logger
}

// Server answers joins. Its methods may be called concurrently.
type Server struct {
	cfg   Config
	cert  tls.Certificate
	door  *door
	audit auditor
	joins *prometheus.CounterVec // by result
}

// Results of a join.
const (
	joinAccepted  = "accepted" // a node that repeats its join counts again
	joinRefused   = "refused"  // with a reason, which the audit has
	joinBusy      = "busy"     // the hub could store nothing
	joinMalformed = "malformed"
	joinLimited   = "limited" // by rate
)

// New loads or makes the certificate. It listens on nothing.
func New(cfg Config) (*Server, error) {
	cert, err := certificate(cfg.Dir, time.Now())
	if err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, cert: cert, door: newDoor(cmp.Or(cfg.SourceRate, DefaultSourceRate)), audit: newAuditor(),
		joins: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "causeway_hub_joins_total", Help: "Requests to join, by result."}, []string{"result"})}
	for _, r := range []string{joinAccepted, joinRefused, joinBusy, joinMalformed, joinLimited} {
		s.joins.WithLabelValues(r)
	}
	return s, nil
}

// Metrics counts joins.
func (s *Server) Metrics() prometheus.Collector { return s.joins }

// CertificateExpires is until when the HTTPS listener's certificate is good.
func (s *Server) CertificateExpires() time.Time { return s.cert.Leaf.NotAfter }

// Handler returns the endpoints.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+protocol.PathHubList, s.hubList)
	mux.HandleFunc("POST "+protocol.PathJoin, s.join)
	if s.cfg.Streams != nil {
		mux.Handle("GET "+protocol.PathStreams, s.cfg.Streams)
	}
	return mux
}

// Serve answers HTTPS on l, which it closes, until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	hs := &http.Server{
		Handler: s.Handler(), TLSConfig: &tls.Config{Certificates: []tls.Certificate{s.cert}, MinVersion: tls.VersionTLS12, DynamicRecordSizingDisabled: true},
		ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: readTimeout, MaxHeaderBytes: 16 << 10,
		ConnContext: withConn, ErrorLog: stdlog.New(io.Discard, "", 0), // handshakes of scanners; nothing an operator can act on
	}
	end := make(chan struct{})
	go func() {
		defer close(end)
		<-ctx.Done()
		sctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if hs.Shutdown(sctx) != nil {
			hs.Close()
		}
	}()
	err := hs.ServeTLS(conns.New(stream.Listener(l), maxConns, maxConnsPerSource), "", "")
	if errors.Is(err, http.ErrServerClosed) {
		<-end
		return nil
	}
	return fmt.Errorf("serve https: %w", err)
}

// invited reports whether a request shows the ticket of a token, which may be shown so often. Its
// connection is kept then, whatever else its source has open.
func (s *Server) invited(r *http.Request) bool {
	text := r.Header.Get(protocol.TicketHeader)
	if text == "" {
		return false
	}
	t, err := protocol.ParseTicket(text)
	now := time.Now()
	// The token's budget last: nobody uses it up who knows its id alone.
	if err != nil || !s.cfg.Store.State().ShowsTicket(t, now) || !s.door.token(t.ID.String(), now) {
		return false
	}
	if c, ok := r.Context().Value(connKey{}).(*conns.Conn); ok {
		c.Detach()
	}
	return true
}

// connKey is the key of a request's *conns.Conn in its context.
type connKey struct{}

// withConn puts a connection into the context of its requests.
func withConn(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if b, ok := c.(*conns.Conn); ok {
		return context.WithValue(ctx, connKey{}, b)
	}
	return ctx
}

// admits reports whether there is room for a request among all, and whether it may be opened: it
// has to be invited, or within its source's own rate, too.
func (s *Server) admits(r *http.Request) (room, open bool) {
	if s.invited(r) {
		return true, true
	}
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil || !s.door.source(ap.Addr(), time.Now()) {
		return false, false
	}
	room = s.door.room(ap.Addr(), time.Now())
	return room, room || s.door.open(ap.Addr(), time.Now())
}

// later tells the client to come again.
func later(w http.ResponseWriter) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "too many requests, try again", http.StatusTooManyRequests)
}

// shows reports whether a request shows an open token, which may be shown so often.
func (s *Server) shows(req protocol.JoinRequest) bool {
	r := state.RedeemRequest{Token: req.TokenID}
	if copy(r.Secret[:], req.Secret) != len(r.Secret) || len(req.Secret) != len(r.Secret) {
		return false
	}
	return s.cfg.Store.State().ShowsOpenToken(r, time.Now()) && s.door.token(req.TokenID.String(), time.Now())
}

func (s *Server) hubList(w http.ResponseWriter, r *http.Request) {
	if room, _ := s.admits(r); !room {
		later(w)
		return
	}
	st := s.cfg.Store.State()
	if st.HubList == nil {
		http.Error(w, "no hub list yet, try again", http.StatusServiceUnavailable)
		return
	}
	ans := protocol.HubListAnswer{SignedHubList: *st.HubList}
	if text := r.URL.Query().Get(protocol.NonceParameter); text != "" {
		var n protocol.ListNonce
		if n.UnmarshalText([]byte(text)) != nil {
			bad(w)
			return
		}
		ans.Fresh = st.HubList.Fresh(s.cfg.Keys.Cluster, st.Hubs.Serial, n, time.Now())
		if text := r.URL.Query().Get(protocol.NodeParameter); text != "" {
			a, err := protocol.ParseNodeAsk(text)
			if err != nil {
				bad(w)
				return
			}
			ans.Standing = s.standing(st, a, n, r.RemoteAddr)
		}
	}
	if text := r.URL.Query().Get(protocol.MarkParameter); text != "" && s.cfg.Witness != nil {
		m, err := protocol.ParseStateMark(text)
		if err != nil {
			bad(w)
			return
		}
		if err := s.cfg.Witness(r.Context(), m); err == nil { // only a member has one
			own := st.Mark(s.cfg.Keys.Cluster)
			ans.Mark = &own
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(ans)
}

func (s *Server) join(w http.ResponseWriter, r *http.Request) {
	result := joinMalformed
	defer func() { s.joins.WithLabelValues(result).Inc() }()
	room, open := s.admits(r)
	if !open {
		result = joinLimited
		later(w)
		return
	}
	msg, err := io.ReadAll(http.MaxBytesReader(w, r.Body, protocol.MaxJoinMessage))
	if err != nil {
		bad(w)
		return
	}
	failpoint.Hit("join-read")
	hs, key, req, err := openAny(s.cfg.Keys, msg)
	if err != nil {
		bad(w)
		return
	}
	if !room && !s.shows(req) {
		result = joinLimited
		later(w)
		return
	}
	failpoint.Hit("join-opened")
	ctx, cancel := context.WithTimeout(r.Context(), redeemTimeout)
	defer cancel()
	answer := s.redeem(ctx, r.RemoteAddr, key, req)
	switch {
	case answer.Refused == nil:
		result = joinAccepted
	case answer.Refused.Code == protocol.RefusedBusy, answer.Refused.Code == protocol.RefusedHalted:
		result = joinBusy
	default:
		result = joinRefused
	}
	failpoint.Hit("join-stored")
	b, err := json.Marshal(answer)
	if err == nil {
		b, _, _, err = hs.WriteMessage(nil, b)
	}
	if err != nil {
		s.cfg.Log.Error().Err(err).Msg("join answer not written")
		bad(w)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	failpoint.Hit("join-sealed")
	w.Write(b)
	failpoint.Hit("join-written")
}

// bad is the whole answer to what is no join message for this hub.
func bad(w http.ResponseWriter) { w.WriteHeader(http.StatusBadRequest) }

var suite = noise.NewCipherSuite(noise.DH25519, noise.CipherChaChaPoly, noise.HashBLAKE2s)

// openAny opens a request to any of the hub's keys: the list that the host has
// may be a moment old.
func openAny(k Keys, msg []byte) (hs *noise.HandshakeState, key protocol.WireGuardPublicKey, req protocol.JoinRequest, err error) {
	for _, own := range k.hub() {
		if hs, key, req, err = openRequest(own, msg); err == nil {
			return hs, key, req, nil
		}
	}
	return hs, key, req, err
}

// openRequest opens Noise message 1. The key is the initiator's static key, whose
// possession it proved.
func openRequest(hub protocol.WireGuardPrivateKey, msg []byte) (*noise.HandshakeState, protocol.WireGuardPublicKey, protocol.JoinRequest, error) {
	var key protocol.WireGuardPublicKey
	var req protocol.JoinRequest
	pub := hub.Public()
	hs, err := noise.NewHandshakeState(noise.Config{
		CipherSuite: suite, Pattern: noise.HandshakeIK, Initiator: false, Prologue: []byte(protocol.JoinPrologue),
		StaticKeypair: noise.DHKey{Private: hub[:], Public: pub[:]},
	})
	if err != nil {
		return nil, key, req, err
	}
	payload, _, _, err := hs.ReadMessage(nil, msg)
	if err != nil {
		return nil, key, req, err
	}
	if len(hs.PeerStatic()) != len(key) {
		return nil, key, req, errors.New("no static key")
	}
	copy(key[:], hs.PeerStatic())
	// A low-order key would agree with everybody on the same secret.
	if _, err := hub.SharedSecret(key); err != nil {
		return nil, key, req, err
	}
	if err := json.Unmarshal(payload, &req); err != nil {
		return nil, key, req, err
	}
	return hs, key, req, nil
}

// redeem decides the join and words the answer.
func (s *Server) redeem(ctx context.Context, from string, key protocol.WireGuardPublicKey, req protocol.JoinRequest) protocol.JoinAnswer {
	ans := protocol.JoinAnswer{Version: protocol.Version}
	refuse := func(code, told, reason string, shown bool) protocol.JoinAnswer {
		s.refused(ctx, state.JoinRefused{From: from, Token: req.TokenID, Name: protocol.OneLine(req.Name, 80), Reason: reason}, shown)
		ans.Refused = &protocol.Refusal{Code: code, Message: told}
		return ans
	}
	busy := func(err error) protocol.JoinAnswer {
		s.cfg.Log.Error().Err(err).Str("addr", from).Str("token", req.TokenID.String()).Msg("join not stored")
		ans.Refused = &protocol.Refusal{Code: protocol.RefusedBusy, Message: "the hub cannot store the join now"}
		if back := (*state.SetBackError)(nil); errors.As(err, &back) {
			ans.Refused.Code = protocol.RefusedHalted
			ans.Refused.Message = "the hub's state was set back to an earlier time, and nobody joins until whoever runs the hub has mended that: 'causeway doctor' there says how"
		}
		return ans
	}
	if req.Version < 1 || req.Version > protocol.Version+1 {
		told := fmt.Sprintf("the hub speaks protocol version %d, the agent %d", protocol.Version, req.Version)
		return refuse(protocol.RefusedVersion, told, told, false)
	}
	rr := state.RedeemRequest{Token: req.TokenID, WireGuardKey: key, IdentityKey: req.IdentityKey, Name: req.Name, Replace: req.Replace, Proves: req.Proves}
	whole := copy(rr.Secret[:], req.Secret) == len(rr.Secret) && len(req.Secret) == len(rr.Secret) && !req.IdentityKey.IsZero()
	if !whole { // decided all the same, so that it is refused like any wrong secret
		rr.Secret = protocol.TokenSecret{}
	}
	if s.cfg.Heard != nil {
		if err := s.cfg.Heard(ctx); errors.As(err, new(*state.SetBackError)) {
			return busy(err)
		} else if err != nil {
			ans.Refused = &protocol.Refusal{Code: protocol.RefusedBusy, Message: err.Error()}
			return ans
		}
	}
	before := s.cfg.Store.State().Seq
	st, err := s.cfg.Store.Redeem(ctx, "token:"+req.TokenID.String(), "join from "+from, rr)
	var r *state.Refusal
	switch {
	case errors.As(err, &r) && r.Told:
		return refuse(protocol.RefusedRequest, r.Reason, r.Reason, r.Shown)
	case errors.As(err, &r):
		return refuse(protocol.RefusedToken, told, r.Reason, r.Shown)
	case err != nil:
		return busy(err)
	}
	n, ok := st.NodeByKey(key)
	overlay, err := st.OverlayOf(n.Number)
	if !ok || err != nil {
		return busy(fmt.Errorf("node of token %s is not in the state: %w", req.TokenID, err))
	}
	if st.Seq != before {
		s.cfg.Log.Info().Str("node", n.Name).Str("site", n.Site).Uint32("number", uint32(n.Number)).Str("addr", from).Msg("node joined")
	}
	ans.Number, ans.Name, ans.Site, ans.Overlay, ans.HubList = n.Number, n.Name, n.Site, overlay, st.HubList
	ans.Routes = []netip.Prefix{}
	for _, r := range st.Routes.All() {
		if r.Node == n.Number && r.FromToken {
			ans.Routes = append(ans.Routes, r.Prefix)
		}
	}
	slices.SortFunc(ans.Routes, netip.Prefix.Compare)
	mark := st.Mark(s.cfg.Keys.Cluster)
	ans.Mark = &mark
	return ans
}
