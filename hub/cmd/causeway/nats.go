package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/protocol"
)

const roleReader = "reader"

func (c *cli) nats() *cobra.Command {
	return c.Group("nats", "Inventory and events for other programs, over NATS",
		`Inventory and events for other programs, over NATS. Any NATS client follows them
with the credentials of a user who is made here; docs/NATS.md says which subjects
there are. The hub has to be started with --listen-nats.`,
		c.Group("user", "Who may connect to the hub's NATS server", "Who may connect to the hub's NATS server from elsewhere, and with which role.",
			c.natsUserCreate(), c.natsUserList(), c.natsUserRevoke()))
}

func (c *cli) natsUserCreate() *cobra.Command {
	var role, file, ca string
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make a user and his credentials", Args: frame.Exactly("NAME"),
		Long: `Make a user and his credentials, in the format of NATS (.creds). They are printed, or
with --file written. Whoever has them is that user: keep them from others. The
private key is made here and never sent to the hub.

A reader follows inventory and events, and reads the present facts of nodes. He
publishes nothing. His client has to trust the hub's CA, which --ca-file writes, and
to have the inbox prefix that the answer names.`,
		Example: `  causeway nats user create graf --role reader --file graf.creds --ca-file hub-ca.pem
  nats --server tls://hub.example.net:4222 --creds graf.creds --tlsca hub-ca.pem \
    --inbox-prefix _INBOX.user.graf sub 'causeway.v1.event.>'`,
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "reader")
	f.StringVarP(&file, "file", "f", "", "`FILE` to write the credentials to, mode 0600; it must not exist")
	f.StringVar(&ca, "ca-file", "", "`FILE` to write the certificate of the hub's CA to; one that exists is replaced")
	frame.Must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{roleReader}, cobra.ShellCompDirectiveNoFileComp)))
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("NATS user", args[0]); err != nil {
			return err
		}
		if role != roleReader {
			return frame.Usagef("--role is missing: use %s", roleReader)
		}
		key, err := nkeys.CreateUser()
		if err != nil {
			return fmt.Errorf("make a key: %w", err)
		}
		defer key.Wipe()
		var made api.NATSUserCreated
		var creds []byte
		create := func(w io.Writer) error {
			var err error
			if creds, err = credentials(args[0], key); err != nil {
				return err
			}
			pub, err := key.PublicKey()
			if err != nil {
				return err
			}
			if made, err = hub.CreateNATSUser(ctx, api.NATSUserSpec{Name: args[0], Role: role, Key: pub}); err != nil {
				return err
			}
			_, err = w.Write(creds)
			return err
		}
		if file != "" {
			err = frame.WriteNew(file, create)
		} else {
			err = create(io.Discard)
		}
		if err == nil && ca != "" {
			err = writePublic(ca, []byte(made.CA))
		}
		if err != nil {
			return err
		}
		v := natsUserMade{Name: made.Name, Role: made.Role, Key: made.Key, Created: made.Created, Server: "tls://" + made.Address, InboxPrefix: made.InboxPrefix,
			CA: made.CA, CAFile: ca, File: file}
		if file == "" {
			v.Credentials = string(creds)
			if c.Format == frame.FormatTable {
				_, err := c.Out.Write(creds)
				return err
			}
		}
		return c.Show(v, []string{v.Name}, func(p *frame.Page) {
			p.Line("NATS user %s made, role %s; the credentials are in %s", protocol.Printable(v.Name), protocol.Printable(v.Role), protocol.Printable(file))
			if ca == "" {
				ca = "CA-FILE"
			}
			p.Line("Try: nats --server %s --creds %s --tlsca %s --inbox-prefix %s sub 'causeway.v1.event.>'", protocol.Printable(v.Server), protocol.Printable(file), protocol.Printable(ca), protocol.Printable(v.InboxPrefix))
		})
	})
}

// natsUserMade is what 'nats user create' prints as JSON.
type natsUserMade struct {
	Name        string    `json:"name"`
	Role        string    `json:"role"`
	Key         string    `json:"key"`
	Created     time.Time `json:"created"`
	Server      string    `json:"server"`
	InboxPrefix string    `json:"inbox_prefix"`
	CA          string    `json:"ca"`
	CAFile      string    `json:"ca_file,omitempty"`
	File        string    `json:"file,omitempty"`
	Credentials string    `json:"credentials,omitempty"` // with the private key
}

// credentials makes the text of a .creds file. Its JWT names the key for clients, and is signed
// by an account that is forgotten: the hub goes by the key alone.
func credentials(name string, key nkeys.KeyPair) ([]byte, error) {
	pub, err := key.PublicKey()
	if err != nil {
		return nil, err
	}
	account, err := nkeys.CreateAccount()
	if err != nil {
		return nil, err
	}
	defer account.Wipe()
	claims := jwt.NewUserClaims(pub)
	claims.Name = name
	token, err := claims.Encode(account)
	if err != nil {
		return nil, err
	}
	seed, err := key.Seed()
	if err != nil {
		return nil, err
	}
	return jwt.FormatUserConfig(token, seed)
}

// writePublic puts b at path, for everybody to read.
func writePublic(path string, b []byte) error {
	if err := frame.ReplaceFile(path, b); err != nil {
		return err
	}
	return os.Chmod(path, 0o644)
}

func (c *cli) natsUserList() *cobra.Command {
	return c.Leaf(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List users with roles and keys", Args: frame.Exactly()},
		func(ctx context.Context, hub *api.Client, _ []string) error {
			users, err := hub.NATSUsers(ctx)
			if err != nil {
				return err
			}
			return frame.List(c.CLI, users, func(u api.NATSUser) string { return u.Name },
				"No NATS users: causeway nats user create NAME --role reader",
				[]string{"USER", "ROLE", "STATE", "CREATED", "+KEY"},
				func(_ *frame.Page, u api.NATSUser) []any {
					m := frame.Good
					if u.State != "active" {
						m = frame.Bad
					}
					return []any{u.Name, u.Role, frame.Cell{Text: u.State, Meaning: m}, frame.Age(u.Created) + " ago", u.Key}
				})
		})
}

func (c *cli) natsUserRevoke() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "Shut a user out", Args: frame.Exactly("NAME"), ValidArgsFunction: c.Completer(1, activeNATSUsers),
		Long: "Shut a user out: his credentials are refused from now on, and connections that are open end.",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("NATS user", args[0]); err != nil {
			return err
		}
		if err := c.Confirm(yes, "Shut NATS user %s out?", args[0]); err != nil {
			return err
		}
		if err := hub.RevokeNATSUser(ctx, args[0]); err != nil {
			return err
		}
		return c.DoneAs(args[0], "revoked", "NATS user "+args[0]+" revoked")
	})
}

func activeNATSUsers(ctx context.Context, hub *api.Client, _ []string) (names []string, err error) {
	users, err := hub.NATSUsers(ctx)
	for _, u := range users {
		if u.State == "active" {
			names = append(names, u.Name)
		}
	}
	return names, err
}
