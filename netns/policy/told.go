package policy

import (
	"fmt"

	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/nf"
)

// What is refused is told to whoever listens on an NFLOG group of nfnetlink_log, at a bounded rate. It costs
// only what is refused anyway, and next to nothing while nobody listens.
const (
	// ToldGroup is the group.
	ToldGroup = 51806
	// ToldBytes is how much of each packet is told: headers of IP and transport.
	ToldBytes = 128
	// ToldAnswer is the prefix of packets that go against the way in which conntrack saw their flow begin. Not
	// every kernel can tell what conntrack knows of a packet with it.
	ToldAnswer = "answer"
	toldRate   = 100 // packets a second, each way
	toldBurst  = 100
)

// tellRefused has what is refused told. It is a transaction of its own, so that the wall stands on a
// kernel without nfnetlink_log, too.
func tellRefused(stand *nf.Standing) error {
	b := newBatch()
	limit := &expr.Limit{Type: expr.LimitTypePkts, Rate: toldRate, Unit: expr.LimitTimeSecond, Burst: toldBurst}
	const key = 1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_SNAPLEN
	b.Rule(chainTold, nf.Direction(nf.Reply), nf.GoTo(chainToldBack))
	b.Rule(chainTold, []expr.Any{limit, &expr.Log{Key: key, Group: ToldGroup, Snaplen: ToldBytes}})
	b.Rule(chainToldBack, []expr.Any{limit, &expr.Log{Key: key | 1<<unix.NFTA_LOG_PREFIX, Group: ToldGroup, Snaplen: ToldBytes, Data: []byte(ToldAnswer)}})
	if err := stand.Commit(&b.Batch, false); err != nil {
		return fmt.Errorf("what is refused cannot be told: %w; does this kernel have nfnetlink_log?", err)
	}
	return nil
}

// Deaf is why nobody can hear what the part's table refuses; nil: they can.
func (p *Part) Deaf() error {
	if p.known == nil {
		return nil
	}
	p.known.table.mu.Lock()
	defer p.known.table.mu.Unlock()
	return p.known.table.deaf
}
