package state

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"causeway/protocol"
)

// Restored stands where a log was restored from a backup. What happened after the
// backup is unknown: netmaps get a higher epoch, numbers that may have been given
// away are passed over, and tokens that may have been redeemed and admins'
// certificates and NATS users that may have been revoked are void.
type Restored struct {
	Epoch      uint64              `json:"epoch"`
	NextNumber protocol.NodeNumber `json:"next_number"`
}

func (c Restored) apply(s *State, t time.Time) error {
	switch {
	case c.Epoch <= s.Epoch:
		return Errorf(Invalid, "restored with epoch %d, which is not above %d", c.Epoch, s.Epoch)
	case c.NextNumber < s.NextNumber || !c.NextNumber.Valid():
		return Errorf(Invalid, "restored with the next number %d, below %d", c.NextNumber, s.NextNumber)
	}
	if _, err := s.OverlayOf(c.NextNumber); err != nil {
		return Errorf(Full, "the overlay has no room for passing over numbers up to %d: %v", c.NextNumber, err)
	}
	for name, a := range s.Admins.All() {
		a.Revoked = true
		s.Admins.Set(name, a)
	}
	for name, u := range s.NATSUsers.All() {
		u.Revoked = true
		s.NATSUsers.Set(name, u)
	}
	if u := s.Upgrade; u != nil && u.State == UpgradeRunning {
		stopped := *u
		stopped.State, stopped.Ended = UpgradeStopped, t
		s.Upgrade = &stopped
	}
	s.Epoch, s.NextNumber, s.Settling = c.Epoch, c.NextNumber, true
	return nil
}

// Describe returns one line.
func (c Restored) Describe() string {
	return fmt.Sprintf("state restored from a backup: netmap epoch %d, numbers go on at %d", c.Epoch, c.NextNumber)
}

// Settled ends the time in which a restored hub only listens to its nodes.
type Settled struct {
	Nodes int `json:"nodes"` // that came back, of
	Of    int `json:"of"`
}

func (c Settled) apply(s *State, _ time.Time) error {
	s.Settling = false
	return nil
}

// Describe returns one line.
func (c Settled) Describe() string {
	return fmt.Sprintf("the restored state takes effect: %d of %d nodes have come back", c.Nodes, c.Of)
}

// Gone are the nodes that left or were revoked, the last ones first.
func (s *State) Gone() []protocol.NodeNumber {
	var gone []Node
	for _, n := range s.Nodes.All() {
		if !n.Live() {
			gone = append(gone, n)
		}
	}
	slices.SortFunc(gone, func(a, b Node) int { return cmp.Or(b.GoneTime.Compare(a.GoneTime), cmp.Compare(b.Number, a.Number)) })
	out := make([]protocol.NodeNumber, len(gone))
	for i, n := range gone {
		out[i] = n.Number
	}
	return out
}

// NumbersPassed passes over numbers that were given away after the backup which
// the log was restored from, or whose addresses objects have.
type NumbersPassed struct {
	NextNumber protocol.NodeNumber `json:"next_number"`
}

func (c NumbersPassed) apply(s *State, _ time.Time) error {
	if c.NextNumber <= s.NextNumber || !c.NextNumber.Valid() {
		return Errorf(Invalid, "numbers up to %d passed over, and the next is %d", c.NextNumber, s.NextNumber)
	}
	s.NextNumber = c.NextNumber // whether the overlay has room is asked when it is given
	return nil
}

// Describe returns one line.
func (c NumbersPassed) Describe() string {
	return fmt.Sprintf("numbers below %d are passed over: they were given away after the backup that this state was restored from, or services have their addresses", c.NextNumber)
}

// Forgotten reports which of nodes, which are said to be gone, are live here, and
// whether there are some of which this log has never heard.
func (s *State) Forgotten(nodes []protocol.NodeNumber) (live []protocol.NodeNumber, unheard bool) {
	for _, n := range nodes {
		if node, ok := s.Nodes.Find(n); ok && node.Live() {
			live = append(live, n)
		}
		unheard = unheard || n >= s.NextNumber
	}
	return live, unheard
}

// Forget takes out those of nodes that are live, and gives none of their numbers
// again: the cluster key vouches that they left or were revoked after the backup
// that this log was restored from.
func Forget(d *Draft, nodes []protocol.NodeNumber) error {
	live, unheard := d.Forgotten(nodes)
	for _, n := range live {
		if err := d.Add(NodeGone{n, GoneRevoked}); err != nil {
			return err
		}
	}
	if !unheard {
		return nil
	}
	if next := min(slices.Max(nodes)+1, protocol.MaxNodeNumber); next > d.NextNumber {
		return d.Add(NumbersPassed{next})
	}
	return nil
}

// Settle decides that the restored state takes effect.
func Settle(d *Draft, nodes, of int) error {
	if !d.Settling {
		return nil
	}
	return d.Add(Settled{nodes, of})
}

// Restore decides what follows a restored log. Numbers up to skip ahead count as
// given away; nodes of the names in revoked are revoked.
func Restore(d *Draft, skip uint32, revoked []string) error {
	return RestoreBeyond(d, protocol.StateMark{}, skip, revoked)
}

// RestoreBeyond is Restore where it is known how far the state had come: numbers count from
// there, and the epoch goes beyond that one.
func RestoreBeyond(d *Draft, known protocol.StateMark, skip uint32, revoked []string) error {
	if d.Epoch == 0 {
		return Errorf(Invalid, "the backup holds no cluster")
	}
	next := uint64(max(d.NextNumber, known.NextNumber)) + uint64(skip)
	if next > uint64(protocol.MaxNodeNumber) {
		return Errorf(Full, "there are not %d more node numbers to pass over", skip)
	}
	if err := d.Add(Restored{max(d.Epoch, known.Epoch) + 1, protocol.NodeNumber(next)}); err != nil {
		return err
	}
	for _, name := range revoked {
		n, err := d.FindNode(name)
		if err != nil {
			return err
		}
		if err := d.Add(NodeGone{n.Number, GoneRevoked}); err != nil {
			return err
		}
	}
	for id, tok := range d.Tokens.All() {
		if tok.State(d.Now) == TokenOpen {
			if err := d.Add(TokenCancelled{id}); err != nil {
				return err
			}
		}
	}
	return nil
}

// Import makes the log from transactions as a backup has them: next returns one
// after the other, and io.EOF at the end. Nothing that does not fold is taken. It
// returns the state, which Open then finds.
func Import(ctx context.Context, js jetstream.JetStream, next func() ([]byte, error)) (*State, error) {
	if _, err := createStream(ctx, js, 0, 1); err != nil {
		return nil, fmt.Errorf("make the state log: %w", err)
	}
	st := New()
	for {
		data, err := next()
		if errors.Is(err, io.EOF) {
			return st, nil
		}
		if err != nil {
			return nil, err
		}
		t, err := decodeTransaction(st.Seq+1, data)
		if err != nil {
			return nil, err
		}
		if err := st.apply(t); err != nil {
			return nil, err
		}
		_, err = js.PublishMsg(ctx, &nats.Msg{Subject: subject, Data: data},
			jetstream.WithExpectStream(StreamName), jetstream.WithExpectLastSequence(t.Sequence-1), jetstream.WithRetryAttempts(0))
		if err != nil {
			return nil, fmt.Errorf("store transaction %d: %w", t.Sequence, err)
		}
	}
}

// EachRaw calls each with the transactions from first to last as they stand in the log, or stood before it was
// cut.
func (s *Store) EachRaw(ctx context.Context, first, last uint64, each func([]byte) error) error {
	p, err := s.past(ctx)
	if err != nil {
		return err
	}
	for seq := first; seq <= last; seq++ {
		b, err := p.raw(ctx, seq)
		if err != nil {
			return err
		}
		if err := each(b); err != nil {
			return err
		}
	}
	return nil
}
