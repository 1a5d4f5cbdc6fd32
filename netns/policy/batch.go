package policy

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// batch gathers the messages of one transaction (linux/netfilter/nf_tables.h). Of
// google/nftables it has the expressions but for those of a direction of conntrack's: that library
// writes the direction in four bytes of which the kernel reads the first, always 0, and has
// no addresses of one family, without which the program nft cannot list a rule.
type batch struct {
	msgs []netlink.Message
	err  error
}

// sendBuffer is what one transaction may hold: 4 MB are 30,000 prefixes.
const sendBuffer = 64 << 20

// perMessage is how many elements one netlink attribute takes, which ends at 64 KiB.
const perMessage = 400

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func attr(typ uint16, data []byte) netlink.Attribute { return netlink.Attribute{Type: typ, Data: data} }

func text(typ uint16, s string) netlink.Attribute { return attr(typ, append([]byte(s), 0)) }

func (b *batch) nested(typ uint16, in ...netlink.Attribute) netlink.Attribute {
	data, err := netlink.MarshalAttributes(in)
	b.err = errors.Join(b.err, err)
	return attr(typ|unix.NLA_F_NESTED, data)
}

func (b *batch) add(typ uint16, flags netlink.HeaderFlags, attrs ...netlink.Attribute) {
	data, err := netlink.MarshalAttributes(attrs)
	b.err = errors.Join(b.err, err)
	b.msgs = append(b.msgs, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// commit sends the transaction. All of it holds then, or nothing.
func (b *batch) commit() error {
	if b.err != nil {
		return b.err
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := errors.Join(c.SetWriteBuffer(sendBuffer), c.SetReadBuffer(sendBuffer)); err != nil {
		return fmt.Errorf("netlink buffer: %w", err)
	}
	end := func(typ netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request}, Data: []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	l := append([]netlink.Message{end(unix.NFNL_MSG_BATCH_BEGIN)}, b.msgs...)
	// The last one is acknowledged: by then all have failed or none.
	l[len(l)-1].Header.Flags |= netlink.Acknowledge
	if _, err := c.SendMessages(append(l, end(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	_, err = c.Receive()
	return err
}

func (b *batch) addTable() {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, text(unix.NFTA_TABLE_NAME, TableName))
}

func (b *batch) delTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, text(unix.NFTA_TABLE_NAME, TableName))
}

// chain makes a chain empty that may be there; hook is nil for one that others jump to.
func (b *batch) chain(name string, hook *nftables.ChainHook, priority int32) {
	l := []netlink.Attribute{text(unix.NFTA_CHAIN_TABLE, TableName), text(unix.NFTA_CHAIN_NAME, name)}
	if hook != nil {
		l = append(l, b.nested(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, be32(uint32(*hook))), attr(unix.NFTA_HOOK_PRIORITY, be32(uint32(priority)))),
			attr(unix.NFTA_CHAIN_POLICY, be32(nfAccept)), text(unix.NFTA_CHAIN_TYPE, "filter"))
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, l...)
	b.flushChain(name)
}

func (b *batch) flushChain(name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, text(unix.NFTA_RULE_TABLE, TableName), text(unix.NFTA_RULE_CHAIN, name))
}

func (b *batch) removeChain(name string) {
	b.flushChain(name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, text(unix.NFTA_CHAIN_TABLE, TableName), text(unix.NFTA_CHAIN_NAME, name))
}

// ctOf loads something of a flow in a direction.
type ctOf struct {
	expr.Any // none: it is here to be one of a list
	key, dir uint32
	reg      uint32
}

// rule adds a rule at a chain's end.
func (b *batch) rule(chain string, parts ...[]expr.Any) {
	var l []netlink.Attribute
	for _, part := range parts {
		for _, e := range part {
			if a, ok := e.(ctOf); ok {
				l = append(l, b.nested(unix.NFTA_LIST_ELEM, text(unix.NFTA_EXPR_NAME, "ct"), b.nested(unix.NFTA_EXPR_DATA,
					attr(unix.NFTA_CT_KEY, be32(a.key)), attr(unix.NFTA_CT_DREG, be32(a.reg)), attr(unix.NFTA_CT_DIRECTION, []byte{byte(a.dir)}))))
				continue
			}
			data, err := expr.Marshal(unix.NFPROTO_INET, e)
			b.err = errors.Join(b.err, err)
			l = append(l, attr(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data))
		}
	}
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, text(unix.NFTA_RULE_TABLE, TableName), text(unix.NFTA_RULE_CHAIN, chain),
		b.nested(unix.NFTA_RULE_EXPRESSIONS, l...))
}

// set is what a set of the table is made of.
type set struct {
	name     string
	key      []nftables.SetDatatype // more than one: a concatenation
	data     *nftables.SetDatatype  // of a map; nil: a set
	verdicts bool                   // a map of verdicts
	interval bool
}

// Flags and attributes that unix lacks.
const (
	nfAccept         = 1
	nftSetConcat     = 0x80
	nftaSetDescField = 2 // NFTA_SET_DESC_CONCAT
	nftaElemKeyEnd   = 10
)

// makeSet makes a set empty that may be there.
func (b *batch) makeSet(s set, id uint32) {
	flags, magic, n := uint32(0), uint32(0), uint32(0)
	var fields []netlink.Attribute
	for _, k := range s.key {
		magic = magic<<nftables.SetConcatTypeBits | k.GetNFTMagic()
		n += (k.Bytes + 3) &^ 3
		fields = append(fields, b.nested(unix.NFTA_LIST_ELEM, attr(1, be32(k.Bytes)))) // NFTA_SET_FIELD_LEN
	}
	if len(s.key) == 1 {
		n = s.key[0].Bytes
	}
	l := []netlink.Attribute{text(unix.NFTA_SET_TABLE, TableName), text(unix.NFTA_SET_NAME, s.name), attr(unix.NFTA_SET_KEY_TYPE, be32(magic)),
		attr(unix.NFTA_SET_KEY_LEN, be32(n)), attr(unix.NFTA_SET_ID, be32(id))}
	if len(s.key) > 1 {
		flags |= nftSetConcat
		l = append(l, b.nested(unix.NFTA_SET_DESC, b.nested(nftaSetDescField, fields...)))
	}
	if s.interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.verdicts {
		flags |= unix.NFT_SET_MAP
		l = append(l, attr(unix.NFTA_SET_DATA_TYPE, be32(unix.NFT_DATA_VERDICT)), attr(unix.NFTA_SET_DATA_LEN, be32(0)))
	} else if s.data != nil {
		flags |= unix.NFT_SET_MAP
		l = append(l, attr(unix.NFTA_SET_DATA_TYPE, be32(s.data.GetNFTMagic())), attr(unix.NFTA_SET_DATA_LEN, be32(s.data.Bytes)))
	}
	// For the program nft, which prints values by it.
	order := func(typ byte, host bool) []byte {
		v := uint32(2)
		if host {
			v = 1
		}
		return binary.NativeEndian.AppendUint32([]byte{typ, 4}, v)
	}
	const keyOrder, dataOrder = 0, 1 // NFTNL_UDATA_SET_KEYBYTEORDER and DATABYTEORDER
	user := order(keyOrder, s.key[0].Name == nftables.TypeMark.Name)
	if s.data != nil {
		user = append(user, order(dataOrder, true)...)
	}
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, append(l, attr(unix.NFTA_SET_FLAGS, be32(flags)), attr(unix.NFTA_SET_USERDATA, user))...)
	b.add(unix.NFT_MSG_DELSETELEM, 0, text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName), text(unix.NFTA_SET_ELEM_LIST_SET, s.name)) // all
}

// element is one of a set, or of a map: then it has data or a chain to go to.
type element struct {
	key, keyEnd []byte
	end         bool // the first value behind an interval
	data        []byte
	chain       string
	returns     bool // the chain is jumped to, so that it comes back
}

// elements adds or deletes elements, as many to a message as it takes.
func (b *batch) elements(set string, add bool, l []element) {
	typ, flags := uint16(unix.NFT_MSG_DELSETELEM), netlink.HeaderFlags(0)
	if add {
		typ, flags = unix.NFT_MSG_NEWSETELEM, netlink.Create
	}
	for len(l) > 0 {
		n := min(len(l), perMessage)
		list := make([]netlink.Attribute, 0, n)
		for _, e := range l[:n] {
			list = append(list, b.element(e))
		}
		l = l[n:]
		b.add(typ, flags, text(unix.NFTA_SET_ELEM_LIST_TABLE, TableName), text(unix.NFTA_SET_ELEM_LIST_SET, set), b.nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, list...))
	}
}

func (b *batch) element(e element) netlink.Attribute {
	l := []netlink.Attribute{b.nested(unix.NFTA_SET_ELEM_KEY, attr(unix.NFTA_DATA_VALUE, e.key))}
	if e.keyEnd != nil {
		l = append(l, b.nested(nftaElemKeyEnd, attr(unix.NFTA_DATA_VALUE, e.keyEnd)))
	}
	if e.end {
		l = append(l, attr(unix.NFTA_SET_ELEM_FLAGS, be32(unix.NFT_SET_ELEM_INTERVAL_END)))
	}
	if e.data != nil {
		l = append(l, b.nested(unix.NFTA_SET_ELEM_DATA, attr(unix.NFTA_DATA_VALUE, e.data)))
	}
	if e.chain != "" {
		code := int32(unix.NFT_GOTO)
		if e.returns {
			code = unix.NFT_JUMP
		}
		l = append(l, b.nested(unix.NFTA_SET_ELEM_DATA, b.nested(unix.NFTA_DATA_VERDICT,
			attr(unix.NFTA_VERDICT_CODE, be32(uint32(code))), text(unix.NFTA_VERDICT_CHAIN, e.chain))))
	}
	return b.nested(unix.NFTA_LIST_ELEM, l...)
}
