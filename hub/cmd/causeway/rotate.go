package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

// rotatedPoll is how often the hub is asked whether a node has its new key.
const rotatedPoll = 50 * time.Millisecond

func (c *cli) nodeRotateKey() *cobra.Command {
	var wait time.Duration
	overlap := protocol.DefaultKeyOverlap
	cmd := &cobra.Command{
		Use:   "rotate-key NODE",
		Short: "Ask a node for a new WireGuard key",
		Long: `Ask a node for a new WireGuard key. It makes one, its identity signs it, and peers
take it for that; traffic goes on. A node that is away makes it when it is back.
The old key stays good at the node for --overlap, for peers that have not heard
of the new one; give 0 if it was stolen. With --wait, tell when it is done.`,
		Args:              frame.Exactly("NODE"),
		ValidArgsFunction: c.Completer(1, nodeNames),
	}
	flagenv.DurationVar(cmd.Flags(), &overlap, "overlap", overlap, "how long the old key stays good; 0: not at all")
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", 0, "wait until the node has the new key, at most so long (30s without a value)")
	cmd.Flags().Lookup("wait").NoOptDefVal = "30s"
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("node", args[0]); err != nil {
			return err
		}
		if wait < 0 || wait > time.Hour {
			return frame.Usagef("--wait %s is not between 0 and 1h", wait)
		}
		if overlap < 0 || overlap > protocol.MaxKeyOverlap {
			return frame.Usagef("--overlap %s is not between 0 and %s", overlap, protocol.MaxKeyOverlap)
		}
		n, err := hub.RotateKey(ctx, args[0], api.KeyRotation{Overlap: api.Duration(overlap)})
		if err != nil {
			return err
		}
		for end := time.Now().Add(wait); wait > 0 && n.KeyWanted != 0; {
			if time.Now().After(end) {
				return fmt.Errorf("node %s has not rotated its key within %s (it is %s); it does so when it can", n.Name, wait, n.State)
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(rotatedPoll):
			}
			if n, err = hub.Node(ctx, args[0]); err != nil {
				return err
			}
		}
		return c.Show(n, []string{n.Name}, func(p *frame.Page) { p.Facts("Node", n.Name, "Key", keyText(n)) })
	})
}

// keyText is a node's key for a person.
func keyText(n api.Node) string {
	s := n.WireGuardKey
	if n.KeyEpoch == 0 { // of a hub of an older version
		return s
	}
	s += fmt.Sprintf(", epoch %d, for %s", n.KeyEpoch, frame.Age(n.KeySince))
	if n.KeyWanted != 0 {
		s += fmt.Sprintf("; epoch %d is asked for", n.KeyWanted)
	}
	return s
}
