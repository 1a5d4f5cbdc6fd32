package items

import (
	"context"
	"fmt"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"causeway/netns"
	"causeway/netns/table"
	"causeway/protocol"
)

// flowLogs have the node log the flows of its tunnel: agent/flows does, while there is one.
type flowLogs struct{}

func (flowLogs) Kind() string { return protocol.ItemFlowLog }

func (flowLogs) Check(i protocol.Item) error {
	_, err := bodyOf[protocol.FlowLog](i)
	return err
}

func (flowLogs) Apply(context.Context, []protocol.Item) error { return nil }

func (flowLogs) Text(protocol.Item) string { return "this node logs the flows of its tunnel" }

// Part is a rule by which conntrack is there: it is not on a host where nothing asks for it.
func (flowLogs) Part(v View, l []protocol.Item) (netns.Part, error) {
	if len(l) == 0 {
		return nil, nil
	}
	iface := make([]byte, 16)
	copy(iface, v.Interface)
	state := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: iface},
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(expr.CtStateBitNEW), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
		&expr.Counter{},
	}
	return table.New(table.Config{Kind: protocol.ItemFlowLog, Chains: []table.Chain{{Name: "in", Hook: nftables.ChainHookPrerouting, HookName: "prerouting",
		Rules: []table.Rule{{Text: fmt.Sprintf("iifname %q ct state new counter", v.Interface), Exprs: state}}}}})
}

// Logging reports whether a flow log is among what a node has taken.
func Logging(l []Held) bool {
	return slices.ContainsFunc(l, func(h Held) bool { return h.Kind == protocol.ItemFlowLog })
}
