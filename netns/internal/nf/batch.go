// Package nf writes an nftables table of family inet by netlink: expressions, the batch of one transaction, and what
// others do to a table that stands.
package nf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"causeway/netns/internal/kernel"
)

// Batch gathers the messages of one transaction (linux/netfilter/nf_tables.h). Of
// google/nftables it has the expressions but for those of a direction of conntrack's: that library
// writes the direction in four bytes of which the kernel reads the first, always 0, and has
// no addresses of one family, without which the program nft cannot list a rule.
type Batch struct {
	Table string // whose name all of it is about
	msgs  []netlink.Message
	err   error
}

// Buffer is what one transaction may hold, in bytes: 4 MB are 30,000 prefixes.
const Buffer = 64 << 20

// perMessage is how many elements one netlink attribute takes, which ends at 64 KiB.
const perMessage = 400

func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

func attr(typ uint16, data []byte) netlink.Attribute { return netlink.Attribute{Type: typ, Data: data} }

func text(typ uint16, s string) netlink.Attribute { return attr(typ, append([]byte(s), 0)) }

func (b *Batch) nested(typ uint16, in ...netlink.Attribute) netlink.Attribute {
	data, err := netlink.MarshalAttributes(in)
	b.err = errors.Join(b.err, err)
	return attr(typ|unix.NLA_F_NESTED, data)
}

func (b *Batch) add(typ uint16, flags netlink.HeaderFlags, attrs ...netlink.Attribute) {
	data, err := netlink.MarshalAttributes(attrs)
	b.err = errors.Join(b.err, err)
	b.msgs = append(b.msgs, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | typ), Flags: netlink.Request | flags},
		Data:   append([]byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}, data...),
	})
}

// Len is how many messages it has.
func (b *Batch) Len() int { return len(b.msgs) }

// Size is how many bytes it has, about.
func (b *Batch) Size() (n int) {
	for _, m := range b.msgs {
		n += len(m.Data)
	}
	return n
}

// Commit sends the transaction. All of it holds then, or nothing. A table whose changes are watched is written by
// Standing.Commit.
func (b *Batch) Commit() error {
	return b.on(func(c *netlink.Conn) error { return b.send(c) })
}

// on opens a socket for f, on a thread that is known as ours.
func (b *Batch) on(f func(*netlink.Conn) error) error {
	if b.err != nil {
		return b.err
	}
	return kernel.Own(func() error {
		c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return err
		}
		defer kernel.CloseLater(c.Close)
		if err := errors.Join(c.SetWriteBuffer(Buffer), c.SetReadBuffer(Buffer)); err != nil {
			return fmt.Errorf("netlink buffer: %w", err)
		}
		return f(c)
	})
}

func (b *Batch) send(c *netlink.Conn) error {
	end := func(typ netlink.HeaderType) netlink.Message {
		return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request}, Data: []byte{unix.NFPROTO_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}}
	}
	l := append([]netlink.Message{end(unix.NFNL_MSG_BATCH_BEGIN)}, b.msgs...)
	// The last one is acknowledged: by then all have failed or none.
	l[len(l)-1].Header.Flags |= netlink.Acknowledge
	if _, err := c.SendMessages(append(l, end(unix.NFNL_MSG_BATCH_END))); err != nil {
		return err
	}
	_, err := c.Receive()
	return err
}

// hold commits, and leaves the socket open, whose all of it is.
func (b *Batch) hold() (c *netlink.Conn, err error) {
	if b.err != nil {
		return nil, b.err
	}
	err = kernel.Own(func() (err error) {
		if c, err = netlink.Dial(unix.NETLINK_NETFILTER, nil); err != nil {
			return err
		}
		if err = b.send(c); err != nil {
			c.Close()
		}
		return err
	})
	return c, err
}

// kernelLacks reports whether the kernel does not know what it was asked for.
func kernelLacks(err error) bool {
	return errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)
}

// generation is that of nftables; false: not known.
func generation(c *netlink.Conn) (uint32, bool) {
	msgs, err := c.Execute(netlink.Message{Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETGEN, Flags: netlink.Request},
		Data: []byte{unix.NFPROTO_INET, unix.NFNETLINK_V0, 0, 0}})
	if err != nil || len(msgs) == 0 || len(msgs[0].Data) < kernel.NfgenmsgSize {
		return 0, false
	}
	id, _ := genOf(msgs[0].Data[kernel.NfgenmsgSize:])
	return id, id != 0
}

// AddTable makes the table that may be there, and takes flags from it that put it to sleep.
func (b *Batch) AddTable() {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, text(unix.NFTA_TABLE_NAME, b.Table), attr(unix.NFTA_TABLE_FLAGS, be32(0)))
}

// DelTable deletes it.
func (b *Batch) DelTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, text(unix.NFTA_TABLE_NAME, b.Table))
}

// Chain makes a chain empty that may be there; hook is nil for one that others jump to.
func (b *Batch) Chain(name string, hook *nftables.ChainHook, priority int32) {
	b.chain(name, nftables.ChainTypeFilter, hook, priority)
}

// NATChain makes a chain of a hook empty that may be there, which sees the first packet of each flow.
func (b *Batch) NATChain(name string, hook *nftables.ChainHook, priority int32) {
	b.chain(name, nftables.ChainTypeNAT, hook, priority)
}

func (b *Batch) chain(name string, typ nftables.ChainType, hook *nftables.ChainHook, priority int32) {
	l := []netlink.Attribute{text(unix.NFTA_CHAIN_TABLE, b.Table), text(unix.NFTA_CHAIN_NAME, name)}
	if hook != nil {
		l = append(l, b.nested(unix.NFTA_CHAIN_HOOK, attr(unix.NFTA_HOOK_HOOKNUM, be32(uint32(*hook))), attr(unix.NFTA_HOOK_PRIORITY, be32(uint32(priority)))),
			attr(unix.NFTA_CHAIN_POLICY, be32(accepts)), text(unix.NFTA_CHAIN_TYPE, string(typ)))
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, l...)
	b.FlushChain(name)
}

// FlushChain empties a chain.
func (b *Batch) FlushChain(name string) {
	b.add(unix.NFT_MSG_DELRULE, 0, text(unix.NFTA_RULE_TABLE, b.Table), text(unix.NFTA_RULE_CHAIN, name))
}

// RemoveChain removes a chain that nothing refers to, with what is in it.
func (b *Batch) RemoveChain(name string) {
	b.FlushChain(name)
	b.add(unix.NFT_MSG_DELCHAIN, 0, text(unix.NFTA_CHAIN_TABLE, b.Table), text(unix.NFTA_CHAIN_NAME, name))
}

// ctOf loads something of a flow in a direction.
type ctOf struct {
	expr.Any // none: it is here to be one of a list
	key, dir uint32
	reg      uint32
}

// Rule adds a rule at a chain's end.
func (b *Batch) Rule(chain string, parts ...[]expr.Any) {
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
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, text(unix.NFTA_RULE_TABLE, b.Table), text(unix.NFTA_RULE_CHAIN, chain),
		b.nested(unix.NFTA_RULE_EXPRESSIONS, l...))
}

// Set is what a set of the table is made of.
type Set struct {
	Name     string
	Key      []nftables.SetDatatype // more than one: a concatenation
	Data     []nftables.SetDatatype // of a map; none: a set
	Verdicts bool                   // a map of verdicts
	Interval bool
	Plain    bool // it is not said that the key is a concatenation: kernels before 5.6 do not take that
	// Size makes it one that rules add to, at most so many elements; each goes when it was not met for Timeout.
	Size    uint32
	Timeout time.Duration
}

// Flags and attributes that unix lacks.
const (
	accepts          = 1
	nftSetConcat     = 0x80
	nftaSetDescField = 2 // NFTA_SET_DESC_CONCAT
	nftaElemKeyEnd   = 10
)

// MakeSet makes a set empty that may be there.
func (b *Batch) MakeSet(s Set, id uint32) {
	flags := uint32(0)
	var fields []netlink.Attribute
	for _, k := range s.Key {
		fields = append(fields, b.nested(unix.NFTA_LIST_ELEM, attr(1, be32(k.Bytes)))) // NFTA_SET_FIELD_LEN
	}
	magic, n := concatenated(s.Key)
	l := []netlink.Attribute{text(unix.NFTA_SET_TABLE, b.Table), text(unix.NFTA_SET_NAME, s.Name), attr(unix.NFTA_SET_KEY_TYPE, be32(magic)),
		attr(unix.NFTA_SET_KEY_LEN, be32(n)), attr(unix.NFTA_SET_ID, be32(id))}
	var desc []netlink.Attribute
	if len(s.Key) > 1 && !s.Plain {
		flags |= nftSetConcat
		desc = append(desc, b.nested(nftaSetDescField, fields...))
	}
	if s.Size > 0 {
		flags |= unix.NFT_SET_EVAL | unix.NFT_SET_TIMEOUT
		desc = append(desc, attr(unix.NFTA_SET_DESC_SIZE, be32(s.Size)))
		l = append(l, attr(unix.NFTA_SET_TIMEOUT, binary.BigEndian.AppendUint64(nil, uint64(s.Timeout.Milliseconds()))))
	}
	if len(desc) > 0 {
		l = append(l, b.nested(unix.NFTA_SET_DESC, desc...))
	}
	if s.Interval {
		flags |= unix.NFT_SET_INTERVAL
	}
	if s.Verdicts {
		flags |= unix.NFT_SET_MAP
		l = append(l, attr(unix.NFTA_SET_DATA_TYPE, be32(unix.NFT_DATA_VERDICT)), attr(unix.NFTA_SET_DATA_LEN, be32(0)))
	} else if len(s.Data) > 0 {
		flags |= unix.NFT_SET_MAP
		magic, n := concatenated(s.Data)
		l = append(l, attr(unix.NFTA_SET_DATA_TYPE, be32(magic)), attr(unix.NFTA_SET_DATA_LEN, be32(n)))
	}
	// For the program nft, which prints values by it.
	order := func(typ byte, first nftables.SetDatatype) []byte {
		v := uint32(2)
		if first.Name == nftables.TypeMark.Name {
			v = 1 // the host's
		}
		return binary.NativeEndian.AppendUint32([]byte{typ, 4}, v)
	}
	const keyOrder, dataOrder = 0, 1 // NFTNL_UDATA_SET_KEYBYTEORDER and DATABYTEORDER
	user := order(keyOrder, s.Key[0])
	if len(s.Data) > 0 {
		user = append(user, order(dataOrder, s.Data[0])...)
	}
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, append(l, attr(unix.NFTA_SET_FLAGS, be32(flags)), attr(unix.NFTA_SET_USERDATA, user))...)
	b.add(unix.NFT_MSG_DELSETELEM, 0, text(unix.NFTA_SET_ELEM_LIST_TABLE, b.Table), text(unix.NFTA_SET_ELEM_LIST_SET, s.Name)) // all
}

// DelSet removes a set that nothing refers to.
func (b *Batch) DelSet(name string) {
	b.add(unix.NFT_MSG_DELSET, 0, text(unix.NFTA_SET_TABLE, b.Table), text(unix.NFTA_SET_NAME, name))
}

// concatenated is the type of values of one or several types, and how long one is.
func concatenated(l []nftables.SetDatatype) (magic, n uint32) {
	if len(l) == 1 {
		return l[0].GetNFTMagic(), l[0].Bytes
	}
	for _, k := range l {
		magic = magic<<nftables.SetConcatTypeBits | k.GetNFTMagic()
		n += (k.Bytes + 3) &^ 3
	}
	return magic, n
}

// Element is one of a set, or of a map: then it has data or a chain to go to.
type Element struct {
	Key, KeyEnd []byte
	End         bool // the first value behind an interval
	Data        []byte
	Chain       string
	Returns     bool // the chain is jumped to, so that it comes back
}

// Elements adds or deletes elements, as many to a message as it takes.
func (b *Batch) Elements(set string, add bool, l []Element) {
	typ, flags := uint16(unix.NFT_MSG_DELSETELEM), netlink.HeaderFlags(0)
	if add {
		typ, flags = unix.NFT_MSG_NEWSETELEM, netlink.Create
	}
	for len(l) > 0 {
		n := min(len(l), perMessage)
		list := make([]byte, 0, n*(len(l[0].Key)+len(l[0].KeyEnd)+len(l[0].Data)+32))
		for _, e := range l[:n] {
			list = e.append(list)
		}
		l = l[n:]
		b.add(typ, flags, text(unix.NFTA_SET_ELEM_LIST_TABLE, b.Table), text(unix.NFTA_SET_ELEM_LIST_SET, set), attr(unix.NFTA_SET_ELEM_LIST_ELEMENTS|unix.NLA_F_NESTED, list))
	}
}

// append writes it as one attribute of a list. There may be hundreds of thousands, so nothing is allocated for one.
func (e Element) append(b []byte) []byte {
	value := func(b []byte, typ uint16, v []byte) []byte {
		b, at := begin(b, typ|unix.NLA_F_NESTED)
		b, in := begin(b, unix.NFTA_DATA_VALUE)
		b = finish(append(b, v...), in)
		return finish(b, at)
	}
	b, at := begin(b, unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED)
	b = value(b, unix.NFTA_SET_ELEM_KEY, e.Key)
	if e.KeyEnd != nil {
		b = value(b, nftaElemKeyEnd, e.KeyEnd)
	}
	if e.End {
		b, in := begin(b, unix.NFTA_SET_ELEM_FLAGS)
		return finish(finish(binary.BigEndian.AppendUint32(b, unix.NFT_SET_ELEM_INTERVAL_END), in), at)
	}
	if e.Data != nil {
		b = value(b, unix.NFTA_SET_ELEM_DATA, e.Data)
	}
	if e.Chain != "" {
		code := int32(unix.NFT_GOTO)
		if e.Returns {
			code = unix.NFT_JUMP
		}
		var data, verdict, in int
		b, data = begin(b, unix.NFTA_SET_ELEM_DATA|unix.NLA_F_NESTED)
		b, verdict = begin(b, unix.NFTA_DATA_VERDICT|unix.NLA_F_NESTED)
		b, in = begin(b, unix.NFTA_VERDICT_CODE)
		b = finish(binary.BigEndian.AppendUint32(b, uint32(code)), in)
		b, in = begin(b, unix.NFTA_VERDICT_CHAIN)
		b = finish(append(append(b, e.Chain...), 0), in)
		b = finish(finish(b, verdict), data)
	}
	return finish(b, at)
}

// begin writes the header of an attribute whose length finish fills in.
func begin(b []byte, typ uint16) ([]byte, int) {
	at := len(b)
	return binary.NativeEndian.AppendUint16(append(b, 0, 0), typ), at
}

func finish(b []byte, at int) []byte {
	binary.NativeEndian.PutUint16(b[at:], uint16(len(b)-at))
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}
