package hub

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"causeway/hub/dns"
	"causeway/hub/fleet"
	"causeway/hub/service"
	"causeway/hub/state"
)

// publicEvery is how often the hub looks at what it answers, and publicFirst until there is anything.
const (
	publicEvery = time.Second
	publicFirst = 50 * time.Millisecond
)

// publicZone reads what is set of public names.
func (c Config) publicZone() (z dns.Zone, listen netip.AddrPort, err error) {
	if c.ListenDNS == "" {
		if c.DNSZone != "" || c.DNSServers != "" {
			return z, listen, errors.New("dns-zone, dns-ns: they are for --listen-dns, which is missing")
		}
		return z, listen, nil
	}
	if listen, err = listenAddr(c.ListenDNS); err != nil {
		return z, listen, fmt.Errorf("listen-dns %q: %w", c.ListenDNS, err)
	}
	if c.DNSZone == "" || c.DNSServers == "" {
		return z, listen, errors.New("listen-dns: it answers a zone, so that --dns-zone (such as lb.example.com) and --dns-ns (the name servers to which the zone above leads, such as ns1.lb.example.com=203.0.113.1) are needed")
	}
	z, err = dns.ParseZone(c.DNSZone, c.DNSServers)
	return z, listen, err
}

// listenDNS opens where public names are asked for.
func (r *run) listenDNS(ctx context.Context) error {
	if r.dnsZone.Name == "" {
		return nil
	}
	at := r.dns.String()
	if !r.dns.Addr().IsValid() {
		at = fmt.Sprintf(":%d", r.dns.Port())
	}
	tcp, err := listenTCP(ctx, "listen-dns", at)
	if err != nil {
		return err
	}
	r.after("listen-dns tcp", func() { tcp.Close() })
	var lc net.ListenConfig
	udp, err := lc.ListenPacket(ctx, "udp", tcp.Addr().String()) // with port 0 the same one
	if err != nil {
		return explainPort("listen-dns", "udp", at, err)
	}
	r.after("listen-dns udp", func() { udp.Close() })
	r.sockets.dnsTCP, r.sockets.dnsUDP = r.files.Guard(tcp), udp.(*net.UDPConn)
	r.names = dns.New(dns.Config{Zone: r.dnsZone})
	return nil
}

// followNames has public names answered by what is known, until ctx ends.
func (r *run) followNames(ctx context.Context) error {
	t := time.NewTicker(publicFirst)
	defer t.Stop()
	p := publicNames{was: map[string]publicName{}}
	for {
		if v, changed := p.look(r.store.State(), r.fleet.Services(), r.fleet.Snapshot()); changed {
			r.names.Set(v)
			t.Reset(publicEvery)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
	}
}

// publicNames work out what is answered, and keep it while nothing of it changes. One goroutine alone uses it.
type publicNames struct {
	was    map[string]publicName
	serial uint64
}

// publicName is a name as it was worked out.
type publicName struct {
	result *service.Result
	words  []service.Word
	name   dns.Name
}

// look works out what is answered now. Before the hub knows who serves there is nothing.
func (p *publicNames) look(st *state.State, services *fleet.Services, known fleet.Snapshot) (v dns.View, changed bool) {
	if services == nil {
		return v, false
	}
	names := map[string]*service.Result{}
	if services.Told != nil {
		names = services.Told.PublicNames()
	}
	words := known.Words()
	next := map[string]publicName{}
	changed = len(names) != len(p.was) || p.serial != st.Seq
	for name, r := range names {
		var said []service.Word
		for _, e := range r.Endpoints {
			said = append(said, words.On(r.Name, e))
		}
		x, there := p.was[name]
		if !there || x.result != r || !slices.Equal(x.words, said) {
			changed = true
			of := func(v6 bool) (out dns.Addresses) {
				a := r.Answered(v6, func(e service.Endpoint) service.Word { return words.On(r.Name, e) })
				for _, s := range a.Sites {
					out.Sites = append(out.Sites, s.Addrs)
				}
				out.Slots = a.Slots
				return out
			}
			x = publicName{r, said, dns.Name{TTL: uint32(time.Duration(r.Public.TTL) / time.Second), Four: of(false), Six: of(true)}}
		}
		next[name] = x
	}
	p.was, p.serial = next, st.Seq
	v = dns.View{Serial: uint32(st.Seq), Names: map[string]dns.Name{}}
	for name, x := range next {
		v.Names[name] = x.name
	}
	return v, changed
}

// zoneText is the zone as people write it; empty: none is answered.
func (h *Hub) zoneText() string { return strings.TrimSuffix(h.dnsZone.Name, ".") }
