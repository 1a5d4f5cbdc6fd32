package hublink

import (
	"context"
	"fmt"
	"time"

	"causeway/protocol"
)

// nodeAsk says by which key a hub would know this node: the newest that it has.
func (l *Link) nodeAsk(n protocol.ListNonce) protocol.NodeAsk {
	l.mu.Lock()
	q := protocol.NodeAsk{Number: l.own.Now().Number, WireGuardKey: l.own.Now().WireGuardKey.Public(), Epoch: l.own.Now().KeyEpoch}
	if next := l.own.Now().Next; next != nil {
		q.WireGuardKey, q.Epoch = next.Key.Public(), l.own.Now().KeyEpoch+1
	}
	k := l.own.Now().IdentityKey
	l.mu.Unlock()
	q.Time = l.now()
	return q.Sign(n, k)
}

// hearStanding takes what a hub that gives this node no session says of why, over HTTPS: by its state's
// mark, and by what it knows of this node. Whatever the cluster key did not sign says nothing.
func (l *Link) hearStanding(ctx context.Context, q ListQuestion, answer protocol.HubListAnswer) {
	s, hubs := answer.Standing, answer.Mark
	if s != nil && (answer.ClusterKey.Pin() != l.own.Now().Pin || s.Number != l.own.Now().Number || !protocol.ValidName(s.Name) || !s.SignedBy(q.Nonce, answer.ClusterKey)) {
		s = nil
	}
	if hubs != nil && hubs.Check(l.own.Now().Pin) != nil {
		hubs = nil
	}
	l.mu.Lock()
	site, name := l.own.Now().Site, l.own.Now().Name
	l.mu.Unlock()
	why := noSession(site, name, q, s, hubs)
	l.mu.Lock()
	l.hubSays = why
	l.mu.Unlock()
	if s != nil && s.Gone != "" {
		l.setRevoked(ctx)
	}
}

// noSession words why a hub gives a node of this site no session; "": what it says does not tell. s and hubs are
// nil if it did not say.
func noSession(site, name string, q ListQuestion, s *protocol.Standing, hubs *protocol.StateMark) string {
	again := func(token string) string {
		return fmt.Sprintf("on the hub 'causeway token create --site %s%s' (with --route for what it routes), then here, with the agent stopped, 'causeway-agent join --replace TOKEN --name %s'", site, token, name)
	}
	back := hubs != nil && q.Mark != nil && hubs.Less(*q.Mark)
	restored := hubs != nil && q.Mark != nil && hubs.Epoch > q.Mark.Epoch
	switch {
	case s != nil && s.Gone != "":
		how, token := "left the cluster", ""
		if s.Gone != protocol.StandingLeft {
			how = "was revoked"
		}
		if s.Taken {
			how, token = how+", and another node has its name", " --replace "+s.Name
		}
		return fmt.Sprintf("this node (number %d) %s: if this host's disk was set back to before that, or is a copy, put the newer state directory back, or stop this agent; to join anew: %s", s.Number, how, again(token))
	case back:
		return fmt.Sprintf("the hub's state was set back: it ends at transaction %d of %s, and this node has seen transaction %d of %s; "+
			"on the hub's host: 'causeway doctor' says how to mend that. If this node joined or changed its key in between, it has to join again",
			hubs.Sequence, hubs.Time.Format(time.RFC3339), q.Mark.Sequence, q.Mark.Time.Format(time.RFC3339))
	case s != nil && s.Outdates(q.Node):
		return fmt.Sprintf("the hub knows this node by a newer key, of epoch %d since %s, and this host has that of epoch %d: the disk or state directory here was set back to an earlier time, or is a copy of the node's, "+
			"and a key that was rotated out is not taken again. Put the newer state directory back; or, to take the node's place anew: %s", s.KeyEpoch, s.KeySince.UTC().Format(time.RFC3339), q.Node.Epoch, again(" --replace "+s.Name))
	case restored && s != nil && s.WireGuardKey != q.Node.WireGuardKey:
		return fmt.Sprintf("the hub's state was restored from an earlier time, from before this node's key of epoch %d, and it gives this node no session: it has to join again: %s", q.Node.Epoch, again(" --replace "+s.Name))
	case restored && s == nil:
		return "the hub's state was restored from an earlier time, and it gives this node no session: if this node joined or changed its key since then, it has to join again: " + again("")
	}
	return ""
}

// hubsWord says why a hub that is there gives no session, as far as it told; "": it did not.
func (l *Link) hubsWord() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.hubSays
}
