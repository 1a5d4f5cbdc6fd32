//go:build samplekind

package items

import (
	"context"
	"errors"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"go4.org/netipx"

	"causeway/netns"
	"causeway/netns/table"
	"causeway/protocol"
)

func init() { appliers = append(appliers, samples{}) }

// samples is the example of a kind: what a new one needs on a node.
type samples struct{}

type sample struct {
	Text string `json:"text"`
}

func (samples) Kind() string { return "sample" }

func (samples) Check(i protocol.Item) error {
	v, err := bodyOf[sample](i)
	if err == nil && v.Text == "no" {
		err = errors.New("this node takes no such text")
	}
	return err
}

func (samples) Apply(context.Context, []protocol.Item) error { return nil }

// Part is a set of the texts that are addresses, which a rule counts.
func (samples) Part(l []protocol.Item) (netns.Part, error) {
	seen := table.Set{Name: "seen"}
	for _, i := range l {
		v, _ := bodyOf[sample](i)
		if a, err := netip.ParseAddr(v.Text); err == nil && a.Is4() {
			if e := (table.Element{Range: netipx.IPRangeFrom(a, a)}); !slices.Contains(seen.Elements, e) {
				seen.Elements = append(seen.Elements, e)
			}
		}
	}
	if seen.Elements == nil {
		return nil, nil
	}
	count := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 4}, &expr.Lookup{SourceRegister: 1, SetName: seen.Name}, &expr.Counter{},
	}
	return table.New(table.Config{Kind: "sample", Sets: []table.Set{seen}, Chains: []table.Chain{{Name: "in", Hook: nftables.ChainHookPrerouting, HookName: "prerouting",
		Rules: []table.Rule{{Text: "ip saddr @seen counter", Exprs: count}}}}})
}

func (samples) Text(i protocol.Item) string {
	v, err := bodyOf[sample](i)
	if err != nil {
		return err.Error()
	}
	return v.Text
}
