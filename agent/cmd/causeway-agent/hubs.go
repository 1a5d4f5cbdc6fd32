package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/agent"
	"causeway/agent/debug"
	"causeway/agent/desired"
	"causeway/agent/identity"
	"causeway/internal/exitstatus"
	"causeway/protocol"
)

func hubsCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "hubs", Short: "The hubs that this node knows, and where it looks for them",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; see 'causeway-agent hubs --help'", args[0])
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	show := &cobra.Command{
		Use: "show", Short: "Show the hub list that this node holds", Args: exactArgs(0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.agent(cmd, false)
			if err != nil {
				return err
			}
			var h debug.Hubs
			err = client.Get(cmd.Context(), protocol.DebugHubs, &h)
			if errors.Is(err, debug.ErrNotRunning) {
				if err := o.whoseState(cmd, err); err != nil {
					return err
				}
				var id identity.Identity
				if id, err = identity.Peek(o.stateDir); err != nil {
					return err
				}
				h, err = stored(id)
			}
			if err != nil {
				return err
			}
			return o.print(cmd.OutOrStdout(), h, func(w io.Writer) { writeHubs(w, h) })
		},
	}
	o.outputFlag(show)
	set := &cobra.Command{
		Use: "set @FILE|-", Short: "Take a hub list from a file, where no hub reaches this node any more",
		Long: "Take a hub list that the cluster key signed, as a file or '-' for standard input. It has to be newer than the one that this\n" +
			"node holds. That is for a hub that got another address while it had no name, and so is looked for where it is not any more.\n" +
			"On the hub's host 'causeway hubs list -o json' prints the list; so does any hub of it at https://HUB/v1/hublist.\n" +
			"With a running agent it takes effect at once.",
		Args: exactArgs(1, "the hub list ('@FILE' or '-')"),
		RunE: func(cmd *cobra.Command, args []string) error {
			l, err := exitstatus.Until(cmd.Context(), func() (protocol.SignedHubList, error) { return readHubList(args[0], cmd.InOrStdin()) })
			if err != nil {
				return err
			}
			client, err := o.agent(cmd, false)
			if err != nil {
				return err
			}
			r, err := client.SetHubs(cmd.Context(), l)
			if errors.Is(err, debug.ErrNotRunning) {
				if err := o.whoseState(cmd, err); err != nil {
					return err
				}
				r, err = setStored(o.stateDir, l)
			}
			switch {
			case err != nil:
				return err
			case r.Error != "":
				return fmt.Errorf("hub list: %s", r.Error)
			case !r.Taken:
				fmt.Fprintf(cmd.OutOrStdout(), "this node holds hub list %d already\n", r.Hubs.Serial)
			default:
				fmt.Fprintf(cmd.OutOrStdout(), "hub list %d is this node's now\n", r.Hubs.Serial)
			}
			writeHubs(cmd.OutOrStdout(), r.Hubs)
			return nil
		},
	}
	for _, c := range []*cobra.Command{show, set} {
		o.stateFlag(c)
		o.configFlag(c)
		o.socketFlag(c)
		cmd.AddCommand(c)
	}
	return cmd
}

// stored is the hub list of an identity.
func stored(id identity.Identity) (debug.Hubs, error) {
	l, err := id.HubList.Open(id.Pin)
	if err != nil {
		return debug.Hubs{}, fmt.Errorf("the stored hub list: %w", err)
	}
	return agent.ShownHubs(l, id.HubList, id.HubListConfirmed), nil
}

// setStored stores a newer hub list where no agent runs.
func setStored(dir string, s protocol.SignedHubList) (r debug.HubsResult, err error) {
	st, err := identity.Open(dir)
	if err != nil {
		return r, err
	}
	defer st.Close()
	id, err := st.Identity()
	if err != nil {
		return r, err
	}
	if r.Hubs, err = stored(id); err != nil {
		return r, err
	}
	l, newer, err := desired.NewerHubList(id, r.Hubs.Serial, s, time.Now())
	if err != nil {
		r.Error = err.Error()
		return r, nil
	}
	if !newer {
		return r, nil
	}
	id.HubList = s
	if err := st.SaveIdentity(id); err != nil {
		return r, err
	}
	return debug.HubsResult{Taken: true, Hubs: agent.ShownHubs(l, s, id.HubListConfirmed)}, nil
}

func readHubList(arg string, stdin io.Reader) (l protocol.SignedHubList, err error) {
	in, name := stdin, "standard input"
	switch {
	case strings.HasPrefix(arg, "@"):
		f, err := os.Open(arg[1:])
		if err != nil {
			return l, fmt.Errorf("hub list: %w", err)
		}
		defer f.Close()
		in, name = f, arg[1:]
	case arg != "-":
		return l, fmt.Errorf("%.80q is neither '@FILE' nor '-': 'causeway hubs list -o json' on the hub's host makes the file", arg)
	}
	b, err := io.ReadAll(io.LimitReader(in, protocol.MaxHubList+1))
	if err != nil {
		return l, fmt.Errorf("hub list: read %s: %w", name, err)
	}
	if len(b) > protocol.MaxHubList || json.Unmarshal(b, &l) != nil || len(l.Payload) == 0 {
		return l, fmt.Errorf("hub list: %s holds none; 'causeway hubs list -o json' on the hub's host makes one", name)
	}
	return l, nil
}

func writeHubs(w io.Writer, h debug.Hubs) {
	confirmed := "never yet"
	if !h.Confirmed.IsZero() {
		confirmed = h.Confirmed.Format(time.RFC3339)
	}
	fmt.Fprintf(w, "serial %d, valid until %s, last shown to be the newest: %s\n", h.Serial, h.NotAfter.Format(time.RFC3339), confirmed)
	for _, x := range h.Hubs {
		fmt.Fprintf(w, "hub %d, key %s: UDP %s, HTTPS %s\n", x.Number, x.WireGuardKey, protocol.Folded(strings.Join(x.UDP, " ")), protocol.Folded(strings.Join(x.HTTPS, " ")))
	}
}
