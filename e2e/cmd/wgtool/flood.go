package main

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/time/rate"
	"golang.zx2c4.com/wireguard/device"
)

// floodRate is above what any device works off one by one in an emulated
// machine, and leaves it time to answer.
const floodRate = 20000 // a second

// flood sends initiations whose mac1 is right, so that the device takes them
// up for the costly part, until ctx or the time ends.
func flood(ctx context.Context, key, addr string, d time.Duration) error {
	b, err := base64.StdEncoding.DecodeString(key)
	if err != nil || len(b) != device.NoisePublicKeySize {
		return errors.New("flood: want a public key in wg's form")
	}
	var g device.CookieGenerator
	g.Init(device.NoisePublicKey(b))
	c, err := net.Dial("udp", addr)
	if err != nil {
		return fmt.Errorf("flood: %w", err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	lim := rate.NewLimiter(floodRate, floodRate/50)
	m := make([]byte, device.MessageInitiationSize)
	n := 0
	for ; lim.Wait(ctx) == nil; n++ {
		rand.Read(m)
		binary.LittleEndian.PutUint32(m, device.MessageInitiationType)
		clear(m[len(m)-16:])
		g.AddMacs(m)
		c.Write(m) // refused or full: so be it
	}
	fmt.Println(n, "initiations")
	return nil
}
