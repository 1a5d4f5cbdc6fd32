package nf

import (
	"fmt"
	"io"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// HooksTable is the table of HoldHooks.
const HooksTable = "causeway-hooks"

// nftTableOwner is NFT_TABLE_F_OWNER: the table is its socket's. Nobody else can change it, a flush of all rules passes it by, and it goes
// with the socket. Since Linux 5.12.
const nftTableOwner = 2

// HoldHooks keeps the kernel translating open connections on the host while others flush all rules: it does so only while some chain of
// type nat is there, and some rule that asks for connections. It makes a table of chains that change nothing, which goes with what is
// returned, or with the process. An older kernel has none: (nil, nil). It works in the network namespace of the calling thread.
func HoldHooks() (io.Closer, error) {
	b := Batch{Table: HooksTable}
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create|netlink.Excl, text(unix.NFTA_TABLE_NAME, b.Table), attr(unix.NFTA_TABLE_FLAGS, be32(nftTableOwner)))
	for _, h := range []*nftables.ChainHook{nftables.ChainHookPrerouting, nftables.ChainHookInput, nftables.ChainHookOutput, nftables.ChainHookPostrouting} {
		name := fmt.Sprint("hook-", *h)
		b.NATChain(name, h, 0)
		b.Rule(name, []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: 1}}) // who only looks keeps the tracking
	}
	c, err := b.hold()
	if kernelLacks(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("set nftables table %s: %w", b.Table, err)
	}
	return c, nil
}
