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
	"causeway/internal/exitstatus"
	"causeway/protocol"
)

// envContext names the context when --context does not.
const envContext = "CAUSEWAY_CONTEXT"

// currentFile names the context in use, in the directory of contexts.
const currentFile = "current"

func (c *cli) contexts() *cobra.Command {
	return c.group("context", "Stored connections to hubs elsewhere",
		`Stored connections to hubs elsewhere. They lie in the directory causeway/contexts of
your configuration (`+"$XDG_CONFIG_HOME or ~/.config"+`), readable for you alone. A command
goes to the hub of --context, of --socket, of $`+envContext+` or $`+envSocket+`, of
'context use', or else to the hub on this host, whichever is there first.`,
		c.contextList(), c.contextUse(), c.contextImport(), c.contextRemove())
}

// contextDir is where contexts are stored.
func contextDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", errors.New("there is no directory for configuration: set HOME, or name a file with --context")
	}
	return filepath.Join(dir, "causeway", "contexts"), nil
}

func contextPath(dir, name string) string { return filepath.Join(dir, name+".pem") }

// readContext reads a context that others on this host cannot have read.
func readContext(path string) (api.Context, error) {
	f, err := os.Open(path)
	if err != nil {
		return api.Context{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return api.Context{}, err
	}
	if fi.Mode().Perm()&0o077 != 0 {
		return api.Context{}, fmt.Errorf("others may read or write %s, which has a private key: chmod 600 it", path)
	}
	b, err := io.ReadAll(io.LimitReader(f, api.MaxContext+1))
	if err != nil {
		return api.Context{}, err
	}
	c, err := api.ParseContext(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// findContext returns the context of a name or, if it has a slash or dot, a file.
func findContext(what string) (api.Context, error) {
	if strings.ContainsAny(what, "/.") {
		c, err := readContext(what)
		if err != nil {
			return c, usagef("--context: %w", err)
		}
		return c, nil
	}
	dir, err := contextDir()
	if err != nil {
		return api.Context{}, usage{err}
	}
	if !protocol.ValidName(what) {
		return api.Context{}, usagef("--context %.80q: give the name of a stored context or a file (./NAME)", what)
	}
	c, err := readContext(contextPath(dir, what))
	if errors.Is(err, fs.ErrNotExist) {
		return c, usagef("there is no context %s; see 'causeway context list', or name a file as ./FILE", what)
	}
	if err != nil {
		return c, usage{err}
	}
	return c, nil
}

// current is the name of the context in use, empty for none.
func current(dir string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, currentFile))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	name := strings.TrimSpace(string(b))
	if err == nil && !protocol.ValidName(name) {
		err = fmt.Errorf("%s names no context: run 'causeway context use'", filepath.Join(dir, currentFile))
	}
	return name, err
}

// target says which hub a command goes to.
func (c *cli) target() (api.ClientConfig, error) {
	name, socket := c.context, c.socket
	if name != "" && socket != "" {
		return api.ClientConfig{}, usagef("give --context or --socket, not both")
	}
	if name == "" && socket == "" {
		name, socket = os.Getenv(envContext), os.Getenv(envSocket)
		if name != "" && socket != "" {
			return api.ClientConfig{}, usagef("$%s says %.80q and $%s says %.80q, which may be two hubs: unset one, or give --context or --socket", envContext, name, envSocket, socket)
		}
	}
	if name == "" && socket == "" {
		if dir, err := contextDir(); err == nil {
			if name, err = current(dir); err != nil {
				return api.ClientConfig{}, err
			}
		}
	}
	if name == "" {
		return api.ClientConfig{Socket: socket}, nil
	}
	x, err := findContext(name)
	if err != nil {
		return api.ClientConfig{}, err
	}
	if now := time.Now(); now.Before(x.Expires) && x.ExpiresSoon(now) {
		fmt.Fprintf(c.err, "causeway: the certificate of %s expires in %s: have another context made with 'causeway admin create'\n", protocol.Printable(x.String()), left(x.Expires))
	}
	return api.ClientConfig{Context: &x}, nil
}

func left(t time.Time) string {
	d := time.Until(t)
	if d > 48*time.Hour {
		return fmt.Sprintf("%d days", int(d.Hours()/24))
	}
	return d.Round(time.Minute).String()
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
	dir, err := contextDir()
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.pem"))
	if err != nil {
		return nil, err
	}
	now, _ := current(dir) // a bad one is told by whoever uses it
	slices.Sort(files)
	for _, f := range files {
		s := storedContext{Name: strings.TrimSuffix(filepath.Base(f), ".pem")}
		s.Current = s.Name == now
		x, err := readContext(f)
		switch {
		case err != nil:
			s.Problem = err.Error()
		case !time.Now().Before(x.Expires):
			s.Problem = "expired"
		case x.ExpiresSoon(time.Now()):
			s.Problem = "expires in " + left(x.Expires)
		}
		s.Hub, s.Admin, s.Role, s.Expires = x.Hub, x.Admin, x.Role, x.Expires
		out = append(out, s)
	}
	return out, nil
}

func (c *cli) contextList() *cobra.Command {
	return local(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List stored contexts; * is in use", Args: exactly()}, func([]string) error {
		all, err := stored()
		if err != nil {
			return err
		}
		return list(c, all, func(s storedContext) string { return s.Name }, "No contexts: causeway context import FILE",
			[]string{"", "CONTEXT", "HUB", "ADMIN", "ROLE", "EXPIRES", "PROBLEM"},
			func(_ *page, s storedContext) []any {
				mark, ends := "", "-"
				if s.Current {
					mark = "*"
				}
				if !s.Expires.IsZero() {
					ends = stamp(s.Expires)
				}
				return []any{mark, s.Name, s.Hub, s.Admin, s.Role, ends, cell{text: s.Problem, meaning: warn}}
			})
	})
}

func (c *cli) contextUse() *cobra.Command {
	var none bool
	cmd := &cobra.Command{Use: "use NAME", Short: "Send commands to the hub of a context from now on", ValidArgsFunction: completeContexts,
		Args: func(cmd *cobra.Command, args []string) error {
			if none {
				return exactly()(cmd, args)
			}
			return exactly("NAME")(cmd, args)
		}}
	cmd.Flags().BoolVar(&none, "none", false, "use no context: commands go to the hub on this host again")
	return local(cmd, func(args []string) error {
		dir, err := contextDir()
		if err != nil {
			return err
		}
		at := filepath.Join(dir, currentFile)
		if none {
			if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}
		if err := checkName("context", args[0]); err != nil {
			return err
		}
		if _, err := findContext(args[0]); err != nil {
			return err
		}
		return replaceFile(at, []byte(args[0]+"\n"))
	})
}

func (c *cli) contextImport() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Store a context that 'causeway admin create' made", Args: exactly("FILE"),
		Long: `Store a context that 'causeway admin create' made, from FILE or, as '-', from standard
input. It takes the place of an older one of the same name and hub. FILE is left as it is:
remove it.`,
	}
	cmd.Flags().StringVar(&name, "name", "", "`NAME` of the context here (default: the admin's)")
	return local(cmd, func(args []string) error {
		x, err := exitstatus.Until(cmd.Context(), func() (api.Context, error) {
			if args[0] != "-" {
				return readContext(args[0])
			}
			b, err := io.ReadAll(io.LimitReader(c.in, api.MaxContext+1))
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
		if err := checkName("context", name); err != nil {
			return err
		}
		dir, err := contextDir()
		if err != nil {
			return err
		}
		at := contextPath(dir, name)
		if old, err := readContext(at); err == nil && old.Hub != x.Hub {
			return fmt.Errorf("context %s exists already, for the hub at %s; choose another name with --name", name, protocol.Printable(old.Hub))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return err
		}
		if err := replaceFile(at, x.Secret()); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.out, "Context %s: %s. Use it with --context %s, or for all commands: causeway context use %s\n", name, protocol.Printable(x.String()), name, name)
		return err
	})
}

func (c *cli) contextRemove() *cobra.Command {
	return local(&cobra.Command{Use: "remove NAME", Aliases: []string{"rm"}, Short: "Forget a context", Args: exactly("NAME"), ValidArgsFunction: completeContexts,
		Long: "Forget a context. Its certificate stays good: 'causeway admin revoke' ends that."}, func(args []string) error {
		if err := checkName("context", args[0]); err != nil {
			return err
		}
		dir, err := contextDir()
		if err != nil {
			return err
		}
		if err := os.Remove(contextPath(dir, args[0])); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no context %s; see 'causeway context list'", args[0])
		} else if err != nil {
			return err
		}
		if now, _ := current(dir); now == args[0] {
			return os.Remove(filepath.Join(dir, currentFile))
		}
		return nil
	})
}

// local finishes a command that calls no hub.
func local(cmd *cobra.Command, f func(args []string) error) *cobra.Command {
	cmd.RunE = func(_ *cobra.Command, args []string) error { return fail(f(args)) }
	return cmd
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
