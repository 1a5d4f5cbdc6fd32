package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub"
)

// maxReadable bounds the lines about transactions that are lost.
const maxReadable = 50

func repairCommand() *cobra.Command {
	var dir string
	var yes bool
	var skip uint32
	var revoked []string
	c := &cobra.Command{
		Use: "repair", Short: "Keep what is whole of a state log that is damaged or was set back", Args: cobra.NoArgs,
		Long: `Look at the state log of a hub that does not start because the log is damaged. It says
where the damage is, how many transactions are whole from the first on, and what can be
read of the others. Or at that of a hub whose disk was set back to an earlier time, as its
agents found: it says how much later they had seen it. Nothing is changed without --yes.

With --yes the log is made anew from the whole ones; the damaged files are kept beside it.
What came behind them is lost, as after a restore from an old backup: open tokens, admins
and NATS users are void, hosts that joined since have to join again, and agents' netmaps
get a new epoch, so that they follow this hub. A newer backup is better than a repair:
see 'causeway-hub restore'. Run it as the user that runs the hub.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := meantDir(c, dir); err != nil {
				return err
			}
			r, err := hub.RepairLog(c.Context(), dir, yes, skip, revoked)
			if err != nil {
				return err
			}
			return explainRepair(c.OutOrStdout(), dir, r)
		},
	}
	fs := c.Flags()
	fs.StringVar(&dir, "data-dir", hub.DefaultDataDir, "the hub's data directory")
	fs.BoolVar(&yes, "yes", false, "make the log anew from what is whole, and lose what follows")
	fs.StringSliceVar(&revoked, "revoked", nil, "NODE,… that were revoked in what is lost")
	fs.Uint32Var(&skip, "skip-numbers", 1000, "node numbers that may have been given away in what is lost")
	return c
}

// explainRepair says what was found, and what was done or may be. What may be done is an error: nothing is
// repaired yet.
func explainRepair(w io.Writer, dir string, r hub.Repair) error {
	var b strings.Builder
	if r.Whole {
		if r.Damage != nil {
			fmt.Fprintf(&b, "damaged: %v\n", r.Damage)
		}
		fmt.Fprintf(&b, "all %d transactions are there: start the hub, it makes the damaged files anew by itself\n", r.Kept)
		_, err := io.WriteString(w, b.String())
		return err
	}
	if r.Damage != nil {
		fmt.Fprintf(&b, "damaged: %v\n", r.Damage)
	}
	fmt.Fprintf(&b, "whole: transactions 1 to %d, the last of %s: %d sites, %d nodes\n", r.Kept, r.KeptUntil, r.Sites, r.Nodes)
	if s := r.SetBack; s != nil {
		fmt.Fprintf(&b, "set back: the log ended at transaction %d of %s, and agents hold the cluster key's word of transaction %d of %s\nlost: what came between, and whatever followed\n",
			s.Sequence, s.Time.UTC().Format(time.RFC3339), s.Known.Sequence, s.Known.Time.UTC().Format(time.RFC3339))
	} else if r.Known {
		fmt.Fprintf(&b, "lost: transactions %d to %d\n", r.Kept+1, r.Kept+r.Lost)
	} else {
		fmt.Fprintf(&b, "lost: nobody knows how many transactions there were behind them\n")
	}
	for i, t := range r.Readable {
		if i == maxReadable {
			fmt.Fprintf(&b, "  and %d more that can be read\n", len(r.Readable)-i)
			break
		}
		what := make([]string, len(t.Changes))
		for i, c := range t.Changes {
			what[i] = c.Describe()
		}
		fmt.Fprintf(&b, "  lost: %s %s (%s): %s\n", t.Time.UTC().Format(time.RFC3339), t.Who, t.Why, strings.Join(what, "; "))
	}
	if r.Aside != "" {
		fmt.Fprintf(&b, "repaired: netmap epoch %d, node numbers go on at %d, tokens, admins and NATS users are void\nthe files of before are in %s\nstart the hub; then 'causeway node list' and 'causeway status' show what agents know of what is lost\n", r.Epoch, r.NextNumber, r.Aside)
	}
	if _, err := io.WriteString(w, b.String()); err != nil || r.Aside != "" {
		return err
	}
	return errors.New("nothing was changed: run it again with --yes to keep what is whole and lose what is named above, or restore a newer backup")
}
