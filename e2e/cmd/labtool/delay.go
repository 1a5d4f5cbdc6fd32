package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// netfilter's queue, from linux/netfilter/nfnetlink_queue.h.
const (
	nfqPacket  = unix.NFNL_SUBSYS_QUEUE << 8
	nfqVerdict = unix.NFNL_SUBSYS_QUEUE<<8 | 1
	nfqConfig  = unix.NFNL_SUBSYS_QUEUE<<8 | 2

	nfqaPacketHeader  = 1
	nfqaVerdictHeader = 2
	nfqaCfgCommand    = 1
	nfqaCfgParams     = 2
	nfqaCfgMaxLength  = 3
	nfqaCfgMask       = 4
	nfqaCfgFlags      = 5

	nfqBind       = 1
	nfqCopyMeta   = 1
	nfqFailOpen   = 1
	nfqGSO        = 4
	nfqMaxLength  = 0xffff
	nfDrop        = 0
	nfAccept      = 1
	nfqReadBuffer = 32 << 20
)

// delay does to the packets of a netfilter queue what netem does, for kernels
// without it: they go on after base and up to jitter more (which reorders
// them), or with a chance of loss percent not at all. The packets stay in the
// kernel, whole; only their numbers come here.
func delay(ctx context.Context, queue int, base, jitter time.Duration, loss float64) error {
	if queue < 0 || queue > 0xffff || base < 0 || jitter < 0 || loss < 0 || loss > 100 {
		return errors.New("want a queue from 0 to 65535, no negative time, and a loss from 0 to 100 percent")
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return fmt.Errorf("open netfilter socket: %w", err)
	}
	defer c.Close()
	context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	c.SetReadBuffer(nfqReadBuffer) // as much as is allowed
	if err := c.SetOption(netlink.NoENOBUFS, true); err != nil {
		return fmt.Errorf("set up netfilter socket: %w", err)
	}
	header := []byte{unix.AF_UNSPEC, 0, byte(queue >> 8), byte(queue)}
	message := func(typ uint16, flags netlink.HeaderFlags, attrs ...netlink.Attribute) (netlink.Message, error) {
		b, err := netlink.MarshalAttributes(attrs)
		return netlink.Message{Header: netlink.Header{Type: netlink.HeaderType(typ), Flags: netlink.Request | flags},
			Data: append(append([]byte{}, header...), b...)}, err
	}
	for _, attrs := range [][]netlink.Attribute{
		{{Type: nfqaCfgCommand, Data: []byte{nfqBind, 0, 0, 0}}},
		{{Type: nfqaCfgParams, Data: []byte{0, 0, 0, 0, nfqCopyMeta}}},
		{{Type: nfqaCfgMaxLength, Data: []byte{0, 0, nfqMaxLength >> 8, nfqMaxLength & 0xff}}},
		{{Type: nfqaCfgMask, Data: []byte{0, 0, 0, nfqFailOpen | nfqGSO}}, {Type: nfqaCfgFlags, Data: []byte{0, 0, 0, nfqFailOpen | nfqGSO}}},
	} {
		m, err := message(nfqConfig, netlink.Acknowledge, attrs...)
		if err == nil {
			_, err = c.Execute(m)
		}
		if err != nil {
			return fmt.Errorf("set up netfilter queue %d: %w", queue, err)
		}
	}
	verdict := func(id, v uint32) {
		var b [8]byte
		binary.BigEndian.PutUint32(b[:], v)
		binary.BigEndian.PutUint32(b[4:], id)
		if m, err := message(nfqVerdict, 0, netlink.Attribute{Type: nfqaVerdictHeader, Data: b[:]}); err == nil {
			c.Send(m) // fails only for a packet that is gone
		}
	}
	type held struct {
		id uint32
		at time.Time
	}
	// One line: packets without jitter leave in the order in which they came.
	line := make(chan held, nfqMaxLength+1)
	defer close(line)
	go func() {
		for h := range line {
			time.Sleep(time.Until(h.at))
			verdict(h.id, nfAccept)
		}
	}()
	fmt.Fprintln(os.Stderr, "delaying")
	for {
		ms, err := c.Receive()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read netfilter queue: %w", err)
		}
		for _, m := range ms {
			if m.Header.Type != nfqPacket || len(m.Data) < len(header) {
				continue
			}
			ad, err := netlink.NewAttributeDecoder(m.Data[len(header):])
			if err != nil {
				return fmt.Errorf("read netfilter queue: %w", err)
			}
			for ad.Next() {
				if ad.Type() != nfqaPacketHeader || len(ad.Bytes()) < 4 {
					continue
				}
				switch id := binary.BigEndian.Uint32(ad.Bytes()); {
				case rand.Float64()*100 < loss:
					verdict(id, nfDrop)
				case jitter > 0:
					time.AfterFunc(base+rand.N(jitter), func() { verdict(id, nfAccept) })
				default:
					line <- held{id, time.Now().Add(base)}
				}
			}
		}
	}
}
