package lab

import (
	"context"
	"fmt"
	"path/filepath"
	"syscall"
	"time"
)

// Capture is a running tcpdump.
type Capture struct {
	File string // pcap
	p    *Process
}

// Capture starts to capture whole packets on an interface of the host ("any"
// for all) with an optional filter; it returns when packets are seen.
func (h *Host) Capture(dev, filter string) (*Capture, error) {
	h.lab.mu.Lock()
	h.lab.links++
	name := fmt.Sprintf("capture%d", h.lab.links)
	h.lab.mu.Unlock()
	c := &Capture{File: filepath.Join(h.lab.Dir, h.Name+"-"+name+".pcap")}
	args := []string{"tcpdump", "-Z", "root", "-i", dev, "--immediate-mode", "-s", "0", "-B", "16384", "-U", "-w", c.File}
	if filter != "" {
		args = append(args, filter)
	}
	p, err := h.Start(Program{Name: name, Args: args})
	if err != nil {
		return nil, err
	}
	c.p = p
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c, p.WaitOutput(ctx, "listening on")
}

// Stop ends the capture; the file is complete then.
func (c *Capture) Stop() error {
	c.p.Signal(syscall.SIGINT)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.p.Wait(ctx)
}
