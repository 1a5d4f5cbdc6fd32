package main

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/ipc"
	"golang.zx2c4.com/wireguard/tun"
)

// runWireGuardGo is wireguard-go with nothing of ours: its own sockets, its
// own configuration.
func runWireGuardGo(ctx context.Context, name string, mtu int, debug bool, ready func()) error {
	t, err := tun.CreateTUN(name, mtu)
	if err != nil {
		return fmt.Errorf("open tun %q: %w", name, err)
	}
	level := device.LogLevelError
	if debug {
		level = device.LogLevelVerbose
	}
	d := device.NewDevice(t, conn.NewDefaultBind(), device.NewLogger(level, name+": "))
	defer d.Close()
	f, err := ipc.UAPIOpen(name)
	if err != nil {
		return fmt.Errorf("open wireguard socket: %w", err)
	}
	ln, err := ipc.UAPIListen(name, f)
	if err != nil {
		f.Close()
		return fmt.Errorf("open wireguard socket: %w", err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go d.IpcHandle(c) // ends with its client
		}
	})
	defer wg.Wait()
	defer ln.Close()
	if err := d.Up(); err != nil {
		return fmt.Errorf("bring device up: %w", err)
	}
	ready()
	select {
	case <-ctx.Done():
		return nil
	case <-d.Wait():
		return errors.New("the tun device is gone")
	}
}
