package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"causeway/hub/api"
	"causeway/hub/cmd/causeway/internal/frame"
	"causeway/internal/exitstatus"
	"causeway/protocol"
)

func (c *cli) contexts() *cobra.Command {
	return c.Group("context", "Stored connections to hubs elsewhere",
		`Stored connections to hubs elsewhere. They lie in the directory causeway/contexts of
your configuration (`+"$XDG_CONFIG_HOME or ~/.config"+`), readable for you alone. A command
goes to the hub of --context, of --socket, of $`+frame.EnvContext+` or $`+frame.EnvSocket+`, of
'context use', or else to the hub on this host, whichever is there first.`,
		c.contextList(), c.contextUse(), c.contextImport(), c.contextRemove())
}

// storedContext is a context as 'context list' shows it.
type storedContext struct {
	Name    string    `json:"name"`
	Hub     string    `json:"hub"`
	Admin   string    `json:"admin"`
	Role    string    `json:"role"`
	Expires time.Time `json:"expires"`
	Current bool      `json:"current"`
	Problem string    `json:"problem,omitempty"`
}

func stored() (out []storedContext, err error) {
	dir, err := frame.ContextDir()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, err
	}
	now, _ := frame.Current(dir) // a bad one is told by whoever uses it
	slices.Sort(files)
	for _, f := range files {
		s := storedContext{Name: strings.TrimSuffix(filepath.Base(f), ".pem")}
		s.Current = s.Name == now
		x, err := frame.ReadContext(f)
		switch {
		case err != nil:
			s.Problem = err.Error()
		case !time.Now().Before(x.Expires):
			s.Problem = "expired"
		case x.ExpiresSoon(time.Now()):
			s.Problem = "expires in " + frame.Left(x.Expires)
		}
		s.Hub, s.Admin, s.Role, s.Expires = x.Hub, x.Admin, x.Role, x.Expires
		out = append(out, s)
	}
	return out, nil
}

func (c *cli) contextList() *cobra.Command {
	return frame.Local(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List stored contexts; * is in use", Args: frame.Exactly()}, func([]string) error {
		all, err := stored()
		if err != nil {
			return err
		}
		return frame.List(c.CLI, all, func(s storedContext) string { return s.Name }, "No contexts: causeway context import FILE",
			[]string{"", "CONTEXT", "HUB", "ADMIN", "ROLE", "EXPIRES", "PROBLEM"},
			func(_ *frame.Page, s storedContext) []any {
				mark, ends := "", "-"
				if s.Current {
					mark = "*"
				}
				if !s.Expires.IsZero() {
					ends = frame.Stamp(s.Expires)
				}
				return []any{mark, s.Name, s.Hub, s.Admin, s.Role, ends, frame.Cell{Text: s.Problem, Meaning: frame.Warn}}
			})
	})
}

func (c *cli) contextUse() *cobra.Command {
	var none bool
	cmd := &cobra.Command{Use: "use NAME", Short: "Send commands to the hub of a context from now on", ValidArgsFunction: completeContexts,
		Args: func(cmd *cobra.Command, args []string) error {
			if none {
				return frame.Exactly()(cmd, args)
			}
			return frame.Exactly("NAME")(cmd, args)
		}}
	cmd.Flags().BoolVar(&none, "none", false, "use no context: commands go to the hub on this host again")
	return frame.Local(cmd, func(args []string) error {
		dir, err := frame.ContextDir()
		if err != nil {
			return err
		}
		at := filepath.Join(dir, frame.CurrentFile)
		if none {
			if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		if err := frame.CheckName("context", args[0]); err != nil {
			return err
		}
		if _, err := frame.FindContext(args[0]); err != nil {
			return err
		}
		return frame.ReplaceFile(at, []byte(args[0]+"\n"))
	})
}

func (c *cli) contextImport() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Store a context that 'causeway admin create' made", Args: frame.Exactly("FILE"),
		Long: `Store a context that 'causeway admin create' made, from FILE or, as '-', from standard
input. It takes the place of an older one of the same name and hub. FILE is left as it is:
remove it.`,
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the context here (default: the admin's)")
	return frame.Local(cmd, func(args []string) error {
		x, err := exitstatus.Until(cmd.Context(), func() (api.Context, error) {
			if args[0] != "-" {
				return frame.ReadContext(args[0])
			}
			b, err := io.ReadAll(io.LimitReader(c.In, api.MaxContext+1))
			if err != nil {
				return api.Context{}, err
			}
			return api.ParseContext(b)
		})
		if err != nil {
			return err
		}
		if name == "" {
			name = x.Admin
		}
		if err := frame.CheckName("context", name); err != nil {
			return err
		}
		dir, err := frame.ContextDir()
		if err != nil {
			return err
		}
		at := frame.ContextPath(dir, name)
		if old, err := frame.ReadContext(at); err == nil && old.Hub != x.Hub {
			return fmt.Errorf("context %s exists already, for the hub at %s; choose another name with --name", name, protocol.Printable(old.Hub))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := frame.ReplaceFile(at, x.Secret()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.Out, "Context %s: %s. Use it with --context %s, or for all commands: causeway context use %s\n", name, protocol.Printable(x.String()), name, name)
		return err
	})
}

func (c *cli) contextRemove() *cobra.Command {
	return frame.Local(&cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context", Args: frame.Exactly("NAME"), ValidArgsFunction: completeContexts,
		Long: "Forget a context. Its certificate stays good: 'causeway admin revoke' ends that."}, func(args []string) error {
		if err := frame.CheckName("context", args[0]); err != nil {
			return err
		}
		dir, err := frame.ContextDir()
		if err != nil {
			return err
		}
		if err := os.Remove(frame.ContextPath(dir, args[0])); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no context %s; see 'causeway context list'", args[0])
		} else if err != nil {
			return err
		}
		if now, _ := frame.Current(dir); now == args[0] {
			return os.Remove(filepath.Join(dir, frame.CurrentFile))
		}
		return nil
	})
}

func completeContexts(_ *cobra.Command, args []string, _ string) (names []string, _ cobra.ShellCompDirective) {
	if len(args) == 0 {
		all, _ := stored()
		for _, s := range all {
			names = append(names, s.Name)
		}
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}
