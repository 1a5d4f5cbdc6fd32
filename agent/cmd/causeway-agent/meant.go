package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/debug"
	"causeway/agent/identity"
	"causeway/protocol"
)

// findSocket fills in the debug socket of the configuration, if none was given.
func (o *options) findSocket() error {
	if o.socket != "" {
		return nil
	}
	c, err := config.Load(o.config)
	if err != nil {
		return err
	}
	o.socket = c.Debug.Socket
	return nil
}

// agent is the client of the agent that a command is about to act on. One that answers on the
// socket and is another than the one of the state directory is refused. Where nobody answers
// there is no error: that is the next call's.
//
// A socket that was given without a state directory names the agent by itself. owns says that the
// command acts on the state directory too, so that it always has to be that one's agent.
func (o *options) agent(cmd *cobra.Command, owns bool) (*debug.Client, error) {
	socketGiven := o.socket != "" || o.config != ""
	if err := o.findSocket(); err != nil {
		return nil, err
	}
	client := debug.NewClient(o.socket)
	dirGiven := cmd.Flags().Changed("state-dir")
	if socketGiven && !dirGiven && !owns {
		return client, nil
	}
	var s debug.Status
	err := client.Get(cmd.Context(), protocol.DebugStatus, &s)
	if errors.Is(err, debug.ErrNotRunning) {
		return client, nil
	}
	if err != nil {
		return nil, err
	}
	if !dirGiven && !owns && !isThere(o.stateDir) {
		return client, nil // the one agent of this host, which is elsewhere
	}
	return client, sameAgent(s, o.stateDir, o.socket)
}

// whoseState refuses, where nobody answers on the socket (err), to go on with the state directory of the
// default while a socket was given: whose that is nobody has said.
func (o *options) whoseState(cmd *cobra.Command, err error) error {
	if cmd.Flags().Changed("debug-socket") && !cmd.Flags().Changed("state-dir") {
		return fmt.Errorf("%w; where it does not run, say whose state is meant with --state-dir (%s is the default)", err, o.stateDir)
	}
	return nil
}

// sameAgent refuses an agent that is not that of a state directory. Both say who they are: agents
// of before by their number and name alone.
func sameAgent(s debug.Status, dir, socket string) error {
	id, err := identity.Peek(dir)
	unread := err != nil && !errors.Is(err, identity.ErrNotJoined) // so the name has to do
	same := unread || err == nil && id.Number == s.Number && (s.Cluster == "" || s.Cluster == id.Pin.String())
	// What a container calls its directory may be none here.
	if s.StateDir != "" && (unread || isThere(s.StateDir)) {
		same = same && sameDir(s.StateDir, dir)
	}
	if same {
		return nil
	}
	meant := "no node"
	if err == nil {
		meant = fmt.Sprintf("node %s (number %d, cluster %s)", id.Name, id.Number, id.Pin)
	} else if unread {
		meant = err.Error()
	}
	answers, cure := fmt.Sprintf("node %s (number %d", s.Name, s.Number), "--debug-socket with the socket of the one that is meant"
	if s.Cluster != "" {
		answers += ", cluster " + s.Cluster
	}
	answers += ")"
	if s.StateDir != "" {
		answers += " of " + s.StateDir
		cure += ", or --state-dir " + s.StateDir
	}
	return fmt.Errorf("the agent that answers on %s is %s, and %s has %s: nothing was done; give %s", socket, answers, dir, meant, cure)
}

// sameDir reports whether two paths are one directory. A directory that cannot be looked at is judged
// by its name.
func sameDir(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	if errA == nil && errB == nil {
		return os.SameFile(x, y)
	}
	abs, err := filepath.Abs(b)
	return err == nil && filepath.Clean(a) == abs
}

func isThere(path string) bool {
	_, err := os.Lstat(path)
	return !errors.Is(err, fs.ErrNotExist)
}
