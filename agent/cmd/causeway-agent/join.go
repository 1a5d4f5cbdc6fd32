package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/agent/config"
	"causeway/agent/identity"
	"causeway/agent/join"
	"causeway/internal/exitstatus"
	"causeway/internal/flagenv"
	"causeway/netns"
	"causeway/protocol"
)

// defaultWait is how long a join waits for what passes by itself.
const defaultWait = 2 * time.Minute

func joinCommand(o *options) *cobra.Command {
	var name string
	var replace bool
	var wait time.Duration
	cmd := &cobra.Command{
		Use:   "join TOKEN|-|@FILE",
		Short: "Redeem a token and write this host's identity",
		Long: "Redeem a one-time token of 'causeway token create', write this host's identity and exit.\n" +
			"The token is given as it is, as '-' (read from standard input) or as '@FILE'.\n" +
			"If the answer is lost, run the same command again: the same token gets the same answer.\n\n" +
			"What passes by itself (a hub that is away or busy, DNS that does not answer) is tried again for --wait.",
		Args: exactArgs(1, "the token (TOKEN, '-' or '@FILE')"),
		RunE: func(cmd *cobra.Command, args []string) error {
			token, err := exitstatus.Until(cmd.Context(), func() (protocol.Token, error) { return readToken(args[0], cmd.InOrStdin()) })
			if err != nil {
				return err
			}
			c, err := config.Load(o.config)
			if err != nil {
				return err
			}
			if wait < 0 {
				return fmt.Errorf("--wait %s is less than nothing", wait)
			}
			host := ""
			if name == "" {
				var err error
				host, err = os.Hostname()
				if err != nil {
					return fmt.Errorf("read this host's name: %w; give one with --name", err)
				}
				if name = join.DefaultName(host); name == "" {
					return fmt.Errorf("this host's name %q makes no node name; give one with --name", host)
				}
			}
			s, err := identity.Create(o.stateDir)
			if err != nil {
				if errors.Is(err, identity.ErrLocked) {
					if id, e := identity.Peek(o.stateDir); e == nil && !replace {
						return join.AlreadyJoined(o.stateDir, id)
					}
					return fmt.Errorf("an agent runs on %s; stop it before joining", o.stateDir)
				}
				return err
			}
			defer s.Close()
			said := &progress{w: cmd.ErrOrStderr()}
			jc := join.Config{Token: token, Name: name, Replace: replace, Version: version, Wait: wait, Progress: said.tell}
			if c.Proxy != nil {
				jc.Proxy, jc.ProxyFrom = http.ProxyURL(c.Proxy), cmp.Or(o.config, config.DefaultPath)
			}
			id, err := join.Join(cmd.Context(), s, jc)
			said.end()
			if err != nil {
				removeIfEmpty(s)
				return withOtherName(err, host)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "joined site %s as node %s (number %d, overlay %s)\n%s\nstart it with: %s\n",
				id.Site, id.Name, id.Number, joinStrings(id.Overlay), shieldsLine(c.Shields.On(id.Shields), o.config), startCommand(o.stateDir))
			return nil
		},
	}
	o.stateFlag(cmd)
	o.configFlag(cmd)
	cmd.Flags().StringVar(&name, "name", "", "node name (default this host's name)")
	flagenv.DurationVar(cmd.Flags(), &wait, "wait", defaultWait, "how long to try again what passes by itself; 0: not at all")
	cmd.Flags().BoolVar(&replace, "replace", false, "take over an existing node's name, if the token permits it; replaces an identity that is here")
	return cmd
}

// shieldsLine says what shields mean, for whoever has just joined.
func shieldsLine(s netns.Shields, file string) string {
	if file == "" {
		file = config.DefaultPath
	}
	if !s.Up {
		return fmt.Sprintf("shields are down, as %s says: other nodes reach all that listens on this host", file)
	}
	open := "nothing else"
	if len(s.Allow) > 0 {
		open = joinStrings(s.Allow)
	}
	return fmt.Sprintf("shields are up: of this host itself other nodes reach echo and %s; its pods and approved LANs are not meant\nto open a port, write into %s for example: shields: {allow: [tcp/22]}", open, file)
}

// unit is the service that the packages bring.
const unit = "/usr/lib/systemd/system/causeway-agent.service"

// startCommand is how an agent is started here.
func startCommand(stateDir string) string {
	if stateDir != identity.DefaultDir {
		return "causeway-agent run --state-dir " + stateDir
	}
	for _, p := range []string{unit, "/run/systemd/system"} {
		if _, err := os.Stat(p); err != nil {
			return "causeway-agent run"
		}
	}
	return "systemctl enable --now causeway-agent"
}

// removeIfEmpty takes a directory away that this join made and left nothing in.
func removeIfEmpty(s *identity.Store) {
	if s.Made() {
		os.Remove(s.Dir())
	}
}

// readToken takes the token from the command line, standard input or a file.
func readToken(arg string, stdin io.Reader) (protocol.Token, error) {
	text := arg
	switch {
	case arg == "-":
		b, err := io.ReadAll(io.LimitReader(stdin, protocol.MaxTokenText+1))
		if err != nil {
			return protocol.Token{}, fmt.Errorf("read the token from standard input: %w", err)
		}
		text = string(b)
	case strings.HasPrefix(arg, "@"):
		f, err := os.Open(arg[1:])
		if err != nil {
			var pe *fs.PathError
			if errors.As(err, &pe) {
				err = pe.Err
			}
			return protocol.Token{}, fmt.Errorf("token file %s: %w", arg[1:], err)
		}
		defer f.Close()
		b, err := io.ReadAll(io.LimitReader(f, protocol.MaxTokenText+1))
		if err != nil {
			return protocol.Token{}, fmt.Errorf("token file %s cannot be read", arg[1:])
		}
		text = string(b)
	}
	return protocol.ParseToken(text)
}
