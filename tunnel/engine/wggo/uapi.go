package wggo

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"causeway/protocol"
	"causeway/tunnel/engine"
)

// script builds a 'set' operation of WireGuard's configuration protocol:
// https://www.wireguard.com/xplatform/#configuration-protocol
type script struct{ b strings.Builder }

func (s *script) String() string { return s.b.String() }
func (s *script) empty() bool    { return s.b.Len() == 0 }

func (s *script) line(key, value string) {
	s.b.WriteString(key)
	s.b.WriteByte('=')
	s.b.WriteString(value)
	s.b.WriteByte('\n')
}

func (s *script) privateKey(k protocol.WireGuardPrivateKey) *script {
	s.line("private_key", hex.EncodeToString(k[:]))
	return s
}

// add puts a peer in. The endpoint is its number, which ParseEndpoint knows.
func (s *script) add(p engine.Peer) *script {
	s.line("public_key", hex.EncodeToString(p.Key[:]))
	if p.PresharedKey != [32]byte{} {
		s.line("preshared_key", hex.EncodeToString(p.PresharedKey[:]))
	}
	s.line("endpoint", strconv.FormatUint(uint64(p.Number), 10))
	s.line("persistent_keepalive_interval", seconds(p.Keepalive))
	s.line("replace_allowed_ips", "true")
	for _, a := range p.AllowedIPs {
		s.line("allowed_ip", a.String())
	}
	return s
}

func (s *script) remove(k protocol.WireGuardPublicKey) *script {
	s.line("public_key", hex.EncodeToString(k[:]))
	s.line("remove", "true")
	return s
}

// allowedIPs adds (sign empty) or takes away (sign "-") prefixes.
func (s *script) allowedIPs(k protocol.WireGuardPublicKey, sign string, prefixes []netip.Prefix) {
	if len(prefixes) == 0 {
		return
	}
	s.line("public_key", hex.EncodeToString(k[:]))
	s.line("update_only", "true")
	for _, a := range prefixes {
		s.line("allowed_ip", sign+a.String())
	}
}

func (s *script) keepalive(k protocol.WireGuardPublicKey, d time.Duration) {
	s.line("public_key", hex.EncodeToString(k[:]))
	s.line("update_only", "true")
	s.line("persistent_keepalive_interval", seconds(d))
}

func seconds(d time.Duration) string { return strconv.FormatInt(int64(d/time.Second), 10) }

// counters are a peer's traffic, over one stay in the device or all of them.
type counters struct {
	rx, tx    uint64
	handshake time.Time
}

func (c *counters) add(d counters) {
	c.rx += d.rx
	c.tx += d.tx
	if d.handshake.After(c.handshake) {
		c.handshake = d.handshake
	}
}

// countersLocked reads the counters of the peers that are in the device.
func (e *Engine) countersLocked() map[protocol.WireGuardPublicKey]counters {
	if e.dev == nil {
		return nil
	}
	text, err := e.dev.IpcGet()
	if err != nil {
		e.cfg.Log.Warn().Err(err).Msg("counters not read")
		return nil
	}
	out, err := parseCounters(text)
	if err != nil {
		e.cfg.Log.Warn().Err(err).Msg("counters not read")
	}
	return out
}

// foldLocked moves what the device counted for peers that are about to leave it
// into their base.
func (e *Engine) foldLocked(leaving ...*peer) {
	live := e.countersLocked()
	for _, p := range leaving {
		if p.present.Load() {
			p.base.add(live[p.cfg.Key])
		}
	}
}

func parseCounters(text string) (map[protocol.WireGuardPublicKey]counters, error) {
	out := map[protocol.WireGuardPublicKey]counters{}
	var key protocol.WireGuardPublicKey
	var c counters
	var sec int64
	var started bool
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		var err error
		switch name {
		case "public_key":
			if started {
				out[key] = c
			}
			started, c, sec = true, counters{}, 0
			var n int
			if n, err = hex.Decode(key[:], []byte(value)); err == nil && n != len(key) {
				err = fmt.Errorf("key of %d bytes", n)
			}
		case "rx_bytes":
			c.rx, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			c.tx, err = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			var nsec int64
			if nsec, err = strconv.ParseInt(value, 10, 64); err == nil && (sec != 0 || nsec != 0) {
				c.handshake = time.Unix(sec, nsec)
			}
		}
		if err != nil {
			return out, fmt.Errorf("parse device state: %s: %w", name, err)
		}
	}
	if started {
		out[key] = c
	}
	return out, nil
}
