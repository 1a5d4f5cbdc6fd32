package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/flagenv"
	"causeway/protocol"
)

var adminRoles = []string{"viewer", "operator", "admin"}

func (c *cli) admin() *cobra.Command {
	return c.Group("admin", "Whoever administers the hub from elsewhere",
		`Whoever administers the hub from elsewhere than its host, with a certificate that
the hub issued. The hub has to be started with --listen-admin.`,
		c.adminCreate(), c.adminList(), c.adminRevoke())
}

func (c *cli) adminCreate() *cobra.Command {
	var role, file, address string
	var ttl time.Duration
	cmd := &cobra.Command{
		Use: "create NAME", Short: "Make an admin and his context", Args: frame.Exactly("NAME"),
		Long: `Make an admin and his context: one file with the hub's address and CA, and the
admin's certificate and private key. It is printed, or with --file written. Whoever
has it is that admin: hand it over safely, and keep it from others. On the other
host, 'causeway context import FILE' takes it.

A viewer reads. An operator also makes sites and tokens, labels nodes and decides
routes. An admin may do everything: make and revoke admins, revoke and release
nodes, take backups. The private key is made here and never sent to the hub.`,
	}
	f := cmd.Flags()
	f.StringVar(&role, "role", "", "viewer, operator or admin")
	flagenv.DurationVar(f, &ttl, "ttl", 0, "how long the certificate is good, up to 8784h (default 2160h, 90 days)")
	f.StringVarP(&file, "file", "f", "", "`FILE` to write the context to, mode 0600; it must not exist")
	f.StringVar(&address, "address", "", "`HOST:PORT` at which the admin reaches the hub (default: its public host and the port of --listen-admin)")
	frame.Must(cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions(adminRoles, cobra.ShellCompDirectiveNoFileComp)))
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("admin", args[0]); err != nil {
			return err
		}
		if !slices.Contains(adminRoles, role) {
			return frame.Usagef("--role is missing: use %s", strings.Join(adminRoles, ", "))
		}
		if _, _, err := net.SplitHostPort(address); address != "" && err != nil {
			return frame.Usagef("--address %.80q is not HOST:PORT", address)
		}
		csr, key, err := newKey()
		if err != nil {
			return err
		}
		var made api.Context
		create := func(w io.Writer) error {
			a, err := hub.CreateAdmin(ctx, api.AdminSpec{Name: args[0], Role: role, TTL: api.Duration(ttl), CSR: csr})
			if err != nil {
				return err
			}
			if address != "" {
				a.Address = address
			}
			if made, err = api.NewContext(a, key); err != nil {
				return err
			}
			_, err = w.Write(made.Secret())
			return err
		}
		if file == "" {
			if c.Format == frame.FormatTable {
				return create(c.Out)
			}
			err = create(io.Discard)
		} else {
			err = frame.WriteNew(file, create)
		}
		if err != nil {
			return err
		}
		v := adminMade{Name: made.Admin, Role: made.Role, Hub: made.Hub, Expires: made.Expires, File: file}
		if file == "" {
			v.Context = string(made.Secret())
		}
		return c.Show(v, []string{v.Name}, func(p *frame.Page) {
			p.Line("Admin %s of %s until %s; the context is in %s: causeway context import %s", protocol.Printable(v.Name), protocol.Printable(v.Hub), frame.Stamp(v.Expires), protocol.Printable(file), protocol.Printable(file))
		})
	})
}

// adminMade is what 'admin create' prints as JSON.
type adminMade struct {
	Name    string    `json:"name"`
	Role    string    `json:"role"`
	Hub     string    `json:"hub"`
	Expires time.Time `json:"expires"`
	File    string    `json:"file,omitempty"`
	Context string    `json:"context,omitempty"` // with the private key
}

// newKey makes a key and a request for its certificate, in PEM.
func newKey() (csr string, key []byte, err error) {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", nil, err
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, k)
	if err != nil {
		return "", nil, fmt.Errorf("make certificate request: %w", err)
	}
	kd, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return "", nil, err
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: kd}), nil
}

func (c *cli) adminList() *cobra.Command {
	return c.Watchable(api.WatchAdmins, &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List admins with roles and expiry", Long: "List admins with roles and expiry. Those who expired more than 30 days ago are\nin 'causeway audit' alone.", Args: frame.Exactly()},
		func(ctx context.Context, hub *api.Client, _ []string) error {
			admins, err := frame.Listed(ctx, c.CLI, hub.Admins)
			if err != nil {
				return err
			}
			return frame.List(c.CLI, admins, func(a api.Admin) string { return a.Name },
				"No admins from elsewhere: causeway admin create NAME --role ROLE",
				[]string{"ADMIN", "ROLE", "STATE", "EXPIRES", "CREATED"},
				func(_ *frame.Page, a api.Admin) []any {
					m := frame.Good
					if a.State != "active" {
						m = frame.Bad
					}
					return []any{a.Name, a.Role, frame.Cell{Text: a.State, Meaning: m}, frame.Stamp(a.Expires), frame.AgedAgo(a.Created)}
				})
		})
}

func (c *cli) adminRevoke() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "revoke NAME", Short: "Shut an admin out", Args: frame.Exactly("NAME"), ValidArgsFunction: c.Completer(1, activeAdmins),
		Long: "Shut an admin out: his certificate is refused from now on, and connections that are open end.",
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "do not ask")
	return c.Leaf(cmd, func(ctx context.Context, hub *api.Client, args []string) error {
		if err := frame.CheckName("admin", args[0]); err != nil {
			return err
		}
		if err := c.Confirm(yes, "Shut admin %s out?", args[0]); err != nil {
			return err
		}
		if err := hub.RevokeAdmin(ctx, args[0]); err != nil {
			return err
		}
		return c.DoneAs(args[0], "revoked", "Admin "+args[0]+" revoked")
	})
}

func activeAdmins(ctx context.Context, hub *api.Client, _ []string) (names []string, err error) {
	admins, err := hub.Admins(ctx)
	for _, a := range admins {
		if a.State == "active" {
			names = append(names, a.Name)
		}
	}
	return names, err
}
